"""Whatever a file holds, verify gives a verdict or an error of ours; it never crashes, hangs or runs anything."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from unteach.errors import CheckpointError, UnteachError
from unteach.guard.manifest import FreezeManifest
from unteach.guard.verify import reader as files
from unteach.guard.verify import verify
from unteach.guard.verify.reader import Safetensors, walk
from unteach.guard.verify.verdict import Verdict

TENSORS = {
    "conv.weight": torch.arange(32.0).view(4, 2, 2, 2), "conv.bias": torch.ones(4),
    "attn.to_k.weight": torch.eye(4), "attn.to_v.weight": torch.full((4, 4), 0.5),
}  # fmt: skip
HELD = ("conv.weight", "attn.to_k.weight")
GOOD = save(TENSORS)
LENGTH = int.from_bytes(GOOD[:8], "little")
BODY = GOOD[8 + LENGTH :]
HEADER: dict[str, Any] = json.loads(GOOD[8 : 8 + LENGTH])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "base.safetensors").write_bytes(GOOD)
    FreezeManifest.from_model(TENSORS, HELD).save(folder / "manifest.json")
    return folder


def run(place: Path, candidate: Path) -> Verdict | None:
    """The verdict, or None for an error that says what was wrong; anything else fails the test. Bounded in time."""
    begun = time.monotonic()
    try:
        verdict = verify(place / "base.safetensors", candidate, place / "manifest.json")
        assert verdict.outcome in ("conform", "violates", "undecidable")
        assert verdict.text().replace("\n", "").isprintable() and json.dumps(verdict.to_dict(), allow_nan=False)
        return verdict
    except UnteachError as error:
        assert error.problem
        return None
    finally:
        assert time.monotonic() - begun < 10


def given_bytes(place: Path, data: bytes) -> Verdict | None:
    path = place / "candidate.safetensors"
    path.write_bytes(data)
    return run(place, path)


def packed(header: object, body: bytes = BODY) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def refused(place: Path, data: bytes, message: str) -> None:
    path = place / "candidate.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        verify(place / "base.safetensors", path, place / "manifest.json")


# ------------------------------------------------------------------------------------------------ bytes


def test_the_good_file_is_good(place: Path) -> None:
    verdict = given_bytes(place, GOOD)
    assert verdict is not None and verdict.outcome == "conform"
    verdict = given_bytes(place, packed(HEADER))
    assert verdict is not None and verdict.outcome == "conform"


def test_every_truncation_is_refused(place: Path) -> None:
    for size in range(0, len(GOOD), 3):
        refused(place, GOOD[:size], "safetensors")
    refused(place, GOOD + b"\0", "length does not fit")


@given(st.binary(max_size=300))
@example(b"\x80\x02c" + b"posix\nsystem\n")
def test_random_bytes(place: Path, data: bytes) -> None:
    assert given_bytes(place, data) is None


@settings(max_examples=150)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_one_changed_byte_never_conforms_where_it_matters(place: Path, where: int, change: int) -> None:
    data = bytearray(GOOD)
    data[where] ^= change
    verdict = given_bytes(place, bytes(data))
    begin, end = HEADER["conv.weight"]["data_offsets"]
    other = HEADER["attn.to_k.weight"]["data_offsets"]
    body = where - 8 - LENGTH
    if begin <= body < end or other[0] <= body < other[1]:
        assert verdict is not None and verdict.outcome == "violates"
    elif body >= 0:
        assert verdict is not None and verdict.outcome == "conform"


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=40), st.integers(0, len(GOOD)))
def test_spliced_bytes(place: Path, extra: bytes, where: int) -> None:
    verdict = given_bytes(place, GOOD[:where] + extra + GOOD[where:])
    assert verdict is None or verdict.outcome != "conform"


# ------------------------------------------------------------------------------------------------ headers


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape,
            "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets, **more}  # fmt: skip


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": entry(offsets=(0, 20))}, "does not fit its shape"),
        ({"w": entry(offsets=(-4, 12))}, "offsets"),
        ({"w": entry(offsets=(16, 0))}, "offsets"),
        ({"w": entry(offsets=(0, 1 << 62))}, "offsets"),
        ({"w": entry(offsets=(0, 1 << 70))}, "offsets"),
        ({"w": entry(offsets=(0, 16.0))}, "offsets"),
        ({"w": entry(offsets=(False, 16))}, "offsets"),
        ({"w": entry(offsets=(0,))}, "offsets"),
        ({"w": entry(offsets="0,16")}, "offsets"),
        ({"w": entry(offsets=(0, 8), shape=(2,)), "v": entry(offsets=(4, 16), shape=(3,))}, "overlap or leave a gap"),
        ({"w": entry(offsets=(0, 4), shape=(1,)), "v": entry(offsets=(8, 16), shape=(2,))}, "overlap or leave a gap"),
        ({"w": entry(offsets=(4, 16), shape=(3,))}, "overlap or leave a gap"),
        ({"w": entry(offsets=(0, 12), shape=(3,))}, "length does not fit"),
        ({"w": entry(shape=(-4,))}, "shape"),
        ({"w": entry(shape=(4.0,))}, "shape"),
        ({"w": entry(shape=(1 << 62, 1 << 62))}, "does not fit its shape"),
        ({"w": entry(shape=[1] * 17)}, "shape"),
        ({"w": entry(shape={})}, "shape"),
        ({"w": entry(dtype=5)}, "dtype"),
        ({"w": entry(dtype="F32\n")}, "dtype"),
        ({"w": entry(dtype="x" * 33)}, "dtype"),
        ({"w": entry(more=1)}, "nothing else"),
        ({"w": 5}, "nothing else"),
        ({"w": {"dtype": "F32"}}, "nothing else"),
        ({"": entry()}, "name"),
        ({"a\x1b[2J": entry()}, "name"),
        ({"\ud800": entry()}, "name"),
        ({"x" * 600: entry()}, "name"),
        ({"__metadata__": {"a": 1}, "w": entry()}, "metadata"),
        ({"__metadata__": [], "w": entry()}, "metadata"),
        (b'{"w": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not clean JSON"),
        (b'{"w": ' * 20 + b"1" + b"}" * 20, "JSON object"),
        (b'{"w": 1, "w": 2}', "stands twice"),
        (b'{"w": {"dtype": "F32", "dtype": "F16"}}', "stands twice"),
        (b'{"w": NaN}', "not clean JSON"),
        (b'{"w": ' + b"9" * 5000 + b"}", "not clean JSON"),
        (b'{"w"', "not clean JSON"),
        (b"{\xff}", "not clean JSON"),
        (b"[1]", "begin"),
        (b" {}", "begin"),
        (b"", "begin"),
    ],
    ids=lambda value: str(value)[:40].replace("\x1b", "ESC").replace("\ud800", "surrogate"),
)  # fmt: skip
def test_bad_headers_are_refused_with_the_reason(place: Path, header: object, message: str) -> None:
    refused(place, packed(header, bytes(16)), message)


def test_huge_headers_are_not_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(place, struct.pack("<Q", (1 << 64) - 1) + b"{}", "too long")
    refused(place, struct.pack("<Q", 1 << 20) + b"{}", "longer than the file")
    path = place / "huge.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 40) + b"{")
        file.truncate(1 << 41)  # two sparse terabytes
    assert run(place, path) is None
    path.unlink()
    monkeypatch.setattr(files, "MOST_TENSORS", 3)
    refused(place, GOOD, "too many tensors")


def test_a_long_list_of_empty_tensors_is_answered_in_time(place: Path) -> None:
    header = {**HEADER, **{f"x{i}": entry(shape=(0,), offsets=(len(BODY), len(BODY))) for i in range(20_000)}}
    verdict = given_bytes(place, packed(header))
    assert verdict is not None and len(verdict.findings) == 20_000 and len(verdict.text().splitlines()) < 30


DTYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U8", "I64", "F8_E4M3", "F4", "C64", "BOOL", "XYZ", "f32"])
NAMES = st.sampled_from(
    [*TENSORS, "__metadata__", "unet.attn.to_k.lora_A.weight", "lora_unet_attn_to_k.lora_down.weight",
     "attn.to_kv.weight", "conv.weight.absmax", "model.diffusion_model.conv.weight", "base_model.model.conv.bias",
     "../../etc/passwd", "conv.weight\x00"]
) | st.text(max_size=8)  # fmt: skip
SIZES = st.integers(-1, 8) | st.sampled_from([1 << 31, 1 << 63, 1 << 64])


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """Headers that are nearly right: tensors one after the other, now and then with a mistake."""
    table: dict[str, Any] = {}
    here = 0
    for _ in range(draw(st.integers(0, 6))):
        dtype, shape = draw(DTYPES), draw(st.lists(st.integers(0, 4), max_size=4) | st.lists(SIZES, max_size=4))
        bits = files._BITS.get(dtype, 8)
        size = 1
        for dimension in shape:
            size *= dimension
        stop = here + max(0, min((size * bits + 7) // 8, 4096))
        wrong = draw(st.integers(0, 9)) == 0
        table[draw(NAMES)] = entry(dtype, shape, [here, stop + draw(SIZES) if wrong else stop])
        here = stop
    return table


@settings(max_examples=300)
@given(headers(), st.integers(-2, 2))
def test_headers_that_are_nearly_right(place: Path, header: dict[str, Any], more: int) -> None:
    stop = max((value["data_offsets"][1] for value in header.values()), default=0)
    body = bytes(max(0, min(stop, 65536) + (more if abs(more) == 2 else 0)))
    verdict = given_bytes(place, packed(header, body))
    if verdict is not None and verdict.outcome == "conform":  # only possible for adapters and tensors that are free
        assert not set(HELD) & header.keys()


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(TENSORS)), st.tuples(DTYPES, st.booleans()), min_size=1))
def test_wrong_dtypes_never_conform(place: Path, changes: dict[str, tuple[str, bool]]) -> None:
    """Numbers of another format under the old bytes: quantised, a changed tensor, or a refusal."""
    header = json.loads(json.dumps(HEADER))
    for name, (dtype, fit) in changes.items():
        header[name]["dtype"] = dtype
        begin, end = header[name]["data_offsets"]
        if fit and dtype in files._BITS:
            header[name]["shape"] = [(end - begin) * 8 // files._BITS[dtype]]
    verdict = given_bytes(place, packed(header))
    touched = [name for name, (dtype, _) in changes.items() if name in HELD and dtype != "F32"]
    if touched and verdict is not None:
        assert verdict.outcome != "conform"


# ------------------------------------------------------------------------------------------------ folders


def folder_of(tmp_path: Path, place: Path) -> Path:
    folder = tmp_path / "candidate"
    folder.mkdir()
    save_file({name: TENSORS[name] for name in HELD}, folder / "m-00001-of-00002.safetensors")
    save_file({n: t for n, t in TENSORS.items() if n not in HELD}, folder / "m-00002-of-00002.safetensors")
    return folder


def index(folder: Path, table: object) -> None:
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


TRICKS = [
    "../base.safetensors", "/etc/passwd", "sub/../m-00001-of-00002.safetensors", "./m-00001-of-00002.safetensors",
    "", ".", "..", "m.bin", "..\\x.safetensors", "missing.safetensors", "a\0b.safetensors", "~/x.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_an_index_names_files_beside_it_alone(tmp_path: Path, place: Path, trick: str) -> None:
    folder = folder_of(tmp_path, place)
    whole = {name: f"m-0000{1 if name in HELD else 2}-of-00002.safetensors" for name in TENSORS}
    index(folder, whole)
    verdict = run(place, folder)
    assert verdict is not None and verdict.outcome == "conform"
    (tmp_path / "base.safetensors").write_bytes(GOOD)
    index(folder, {"conv.weight": trick})
    with pytest.raises(CheckpointError, match=r"index\.json' names a file"):
        verify(place / "base.safetensors", folder, place / "manifest.json")


@given(st.recursive(st.none() | st.integers() | st.text(max_size=6) | st.sampled_from(TRICKS),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
                    max_leaves=6))  # fmt: skip
def test_any_index(tmp_path_factory: pytest.TempPathFactory, place: Path, table: object) -> None:
    folder = folder_of(tmp_path_factory.mktemp("i"), place)
    index(folder, table)
    run(place, folder)
    (folder / "m.safetensors.index.json").write_text(json.dumps(table))
    run(place, folder)


def test_links(tmp_path: Path, place: Path) -> None:
    folder = folder_of(tmp_path, place)
    inner = folder / "m-00001-of-00002.safetensors"
    outside = tmp_path / "outside.safetensors"
    inner.rename(outside)
    inner.symlink_to(outside)
    with pytest.raises(CheckpointError, match="link that leads out"):
        verify(place / "base.safetensors", folder, place / "manifest.json")
    inner.unlink()
    inner.symlink_to("../outside.safetensors")
    with pytest.raises(CheckpointError, match="link that leads out"):
        verify(place / "base.safetensors", folder, place / "manifest.json")
    # The publisher's own base may lie in a hub's cache, whose files are links.
    assert set(walk(folder, links=True)) == {"m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"}
    inner.unlink()
    (folder / "blob").write_bytes(outside.read_bytes())
    inner.symlink_to("blob")  # inside: fine, but the file behind it is weights in disguise
    verdict = run(place, folder)
    assert verdict is not None and verdict.outcome == "undecidable"
    (folder / "blob").unlink()
    assert run(place, folder) is None  # a link to nothing
    inner.unlink()
    inner.symlink_to(inner.name)
    assert run(place, folder) is None  # a link to itself
    inner.unlink()
    inner.symlink_to(tmp_path, target_is_directory=True)
    assert run(place, folder) is None
    inner.unlink()
    (folder / "self").symlink_to(folder, target_is_directory=True)
    assert run(place, folder) is None


def test_pipes_devices_and_folders_do_not_hang(tmp_path: Path, place: Path) -> None:
    folder = folder_of(tmp_path, place)
    os.mkfifo(folder / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        verify(place / "base.safetensors", folder, place / "manifest.json")
    (folder / "pipe.safetensors").unlink()
    os.mkfifo(folder / "README")
    assert run(place, folder) is None
    (folder / "README").unlink()
    (folder / "folder.safetensors").mkdir()
    verdict = run(place, folder)
    assert verdict is not None and verdict.outcome == "conform"
    for path in (Path("/dev/zero"), Path("/dev/null"), folder / "m\0"):
        assert run(place, path) is None


def test_endless_folders_are_refused(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, place)
    for i in range(20):
        (folder / f"{i}.txt").touch()
    monkeypatch.setattr(files, "MOST_FILES", 10)
    with pytest.raises(CheckpointError, match="too much to check"):
        verify(place / "base.safetensors", folder, place / "manifest.json")
    monkeypatch.setattr(files, "MOST_FILES", 10_000)
    monkeypatch.setattr("unteach.guard.verify.collect.MOST_WEIGHT_FILES", 1)
    with pytest.raises(CheckpointError, match="too many weight files"):
        verify(place / "base.safetensors", folder, place / "manifest.json")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(GOOD)
    with Safetensors(path) as file:
        os.truncate(path, len(GOOD) - 40)

        def read() -> Iterator[torch.Tensor]:
            for item in file.entries.values():
                yield from item.pieces()

        with pytest.raises(CheckpointError, match="ends before"):
            list(read())


def test_it_reads_what_safetensors_reads(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "w.safetensors"
    tensors = {
        "a": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), "b": torch.tensor(2, dtype=torch.int64),
        "c": torch.empty(0, 3), "d": torch.ones(7, dtype=torch.bfloat16), "e": torch.tensor([True, False]),
    }  # fmt: skip
    save_file(tensors, path, {"note": "x"})
    with Safetensors(path) as file:
        assert file.metadata == {"note": "x"} and file.entries.keys() == load_file(path).keys()
        for name, item in file.entries.items():
            flat = torch.cat([torch.empty(0, dtype=tensors[name].dtype), *item.pieces()])
            assert item.shape == tensors[name].shape and torch.equal(flat, tensors[name].reshape(-1))
