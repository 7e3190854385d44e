"""A file of a run is whole and ours, or it is refused; a write that fails leaves what stood there before."""

import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unteach.core import state
from unteach.errors import CheckpointError

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.part"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return state.save(tmp_path / "state.safetensors", {"w": torch.arange(6.0), "n": torch.tensor(3)}, {"step": 4})


# ------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "vector": (torch.arange(12) - 6).to(dtype),
        "matrix": (torch.arange(12) - 6).to(dtype).view(3, 4),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, dtype=dtype),
        "flat": torch.empty(3, 0, 2, dtype=dtype),
    }
    state.save(tmp_path / "s.safetensors", tensors, {})
    loaded, meta = state.load(tmp_path / "s.safetensors")
    assert meta == {} and set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype and loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor)


def test_values_that_are_hard_to_keep(tmp_path: Path) -> None:
    hard = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 3.4e38])
    state.save(tmp_path / "s.safetensors", {"x": hard}, {})
    assert bits(state.load(tmp_path / "s.safetensors")[0]["x"]) == bits(hard)


def test_views_transposed_expanded_tied_and_trainable_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    weight = torch.nn.Parameter(base.clone())
    tensors = {
        "a": base, "same": base, "row": base[1], "rest": base[1:], "turned": base.T,
        "wide": base[0].expand(5, 4),
        "every second": base[:, ::2], "param": weight, "tied": weight,
    }  # fmt: skip
    state.save(tmp_path / "s.safetensors", tensors, {})
    loaded, _ = state.load(tmp_path / "s.safetensors")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.detach()), name
        assert not loaded[name].requires_grad
    assert weight.requires_grad
    loaded["a"][0, 0] = 99  # the copies of a file share nothing
    assert loaded["same"][0, 0] == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(0, 3), max_size=3),
        max_size=4,
    ),
    st.dictionaries(
        st.text(max_size=5).filter(lambda text: text.isprintable()),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('aé"\n{}\\', max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    ),
)
def test_any_names_shapes_and_metadata(tmp_path: Path, shapes: dict[str, list[int]], meta: dict[str, Any]) -> None:
    tensors = {name: torch.rand(shape) for name, shape in shapes.items()}
    state.save(tmp_path / "s.safetensors", tensors, meta)
    loaded, found = state.load(tmp_path / "s.safetensors")
    assert found == meta
    assert set(loaded) == set(tensors) and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_the_file_is_plain_safetensors_that_others_read_too(saved: Path) -> None:
    assert torch.equal(safetensors.torch.load_file(saved)["w"], torch.arange(6.0))


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3), "b": torch.rand(2)}
    one = state.save(tmp_path / "1", tensors, {"x": 1, "y": [2]})
    two = state.save(tmp_path / "2", dict(reversed(tensors.items())), {"y": [2], "x": 1})
    assert one.read_bytes() == two.read_bytes()


def test_saving_makes_folders_replaces_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "s.safetensors"
    for step in range(3):
        state.save(path, {"w": torch.full((4,), float(step))}, {"step": step})
    tensors, meta = state.load(str(path))
    assert meta == {"step": 2} and tensors["w"].tolist() == [2.0] * 4
    assert [p.name for p in path.parent.iterdir()] == ["s.safetensors"]


# --------------------------------------------------------------------------------------- damaged and foreign


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=r"there is no file"):
            state.load(path)


def test_every_truncation_is_found(saved: Path) -> None:
    data = saved.read_bytes()
    for length in range(len(data)):
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            state.load(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="is damaged"):
        state.load(saved)


def test_a_flipped_bit_is_found_in_every_byte(saved: Path) -> None:
    """In the tensors, in their names, dtypes and shapes, in the metadata, in the digest, in the padding."""
    data = saved.read_bytes()
    assert len(data) < 1000
    for place in range(len(data)):
        for bit in (0, 5):  # bit 5 turns capitals into small letters
            saved.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
            with pytest.raises(CheckpointError, match=r"is damaged|was not written by Unteach"):
                state.load(saved)
    saved.write_bytes(data)
    assert state.load(saved)[1] == {"step": 4}


def test_swapped_tensors_are_found(tmp_path: Path) -> None:
    """A file with a right digest for other content: the digest is over names and metadata too."""
    path = tmp_path / "s.safetensors"
    state.save(path, {"a": torch.zeros(2), "b": torch.ones(2)}, {"step": 1})
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
    for tensors, meta in (
        ({"a": torch.ones(2), "b": torch.zeros(2)}, header),
        ({"a": torch.zeros(2), "c": torch.ones(2)}, header),
        ({"a": torch.zeros(2, 1), "b": torch.ones(2)}, header),
        ({"a": torch.zeros(2)}, header),
        ({"a": torch.zeros(2), "b": torch.ones(2)}, {**header, "unteach": '{"step":2}'}),
    ):
        safetensors.torch.save_file(tensors, path, metadata=meta)
        with pytest.raises(CheckpointError, match="its digest does not fit"):
            state.load(path)
    safetensors.torch.save_file({"a": torch.zeros(2), "b": torch.ones(2)}, path, metadata=header)
    assert state.load(path)[1] == {"step": 1}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"unteach": "{}"}, {"digest": "0"}], ids=str)
def test_a_foreign_safetensors_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "f.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="was not written by Unteach; found: metadata keys"):
        state.load(tmp_path / "f.safetensors")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"not safetensors at all" * 20, b"\0" * 64, b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60],
    ids=["empty", "json", "text", "zeros", "ones", "zip"],
)
def test_not_a_safetensors_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file.*delete it and run again"):
        state.load(tmp_path / "x.safetensors")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file"):
        state.load(tmp_path / "old.pt")


# ------------------------------------------------------------------------------------------ writes that fail


def test_a_folder_that_is_a_file(saved: Path) -> None:
    before = saved.read_bytes()
    for write in (
        lambda path: state.save(path, {"w": torch.zeros(2)}, {}),
        lambda path: state.write_json(path, {"a": 1}),
        lambda path: state.write_bytes(path, b"x"),
    ):
        with pytest.raises(CheckpointError, match=r"cannot write .*; to do: choose a folder"):
            write(saved / "inner.safetensors")
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inner").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="what stood there before is untouched"):
        state.save(tmp_path / "taken", {"w": torch.zeros(2)}, {})
    assert (tmp_path / "taken" / "inner").is_dir() and parts(tmp_path) == []


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import torch
from unteach.core import state
from unteach.errors import CheckpointError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG, as with ENOSPC on a full disk
folder = Path(sys.argv[1])
small = {"w": torch.arange(6.0)}
paths = {"save": folder / "s.safetensors", "json": folder / "r.json", "bytes": folder / "b.bin"}
state.save(paths["save"], small, {"step": 1})
state.write_json(paths["json"], [1])
state.write_bytes(paths["bytes"], b"1")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
writes = {
    "save": lambda path: state.save(path, {"w": torch.zeros(4000)}, {"step": 2}),
    "json": lambda path: state.write_json(path, list(range(4000))),
    "bytes": lambda path: state.write_bytes(path, b"2" * 4097),
}
said = {}
for kind, write in writes.items():
    for where in ("old", "new"):
        try:
            write(paths[kind] if where == "old" else folder / f"{kind}.new")
        except CheckpointError as error:
            said[f"{kind} {where}"] = str(error)
state.save(paths["save"], {"w": torch.arange(6.0) + 1}, {"step": 3})  # what fits is written still
print(json.dumps(said))
"""


def test_a_full_disk_leaves_the_file_before_intact_and_nothing_half_written(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=300, env=ENV
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert set(said) == {f"{kind} {where}" for kind in ("save", "json", "bytes") for where in ("old", "new")}
    for message in said.values():
        assert "untouched" in message and "found: File too large" in message and "free some disk space" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.bin", "r.json", "s.safetensors"]
    assert state.read_json(tmp_path / "r.json") == [1] and (tmp_path / "b.bin").read_bytes() == b"1"
    tensors, meta = state.load(tmp_path / "s.safetensors")
    assert meta == {"step": 3} and torch.equal(tensors["w"], torch.arange(6.0) + 1)


def test_a_full_disk_for_real(saved: Path) -> None:
    """/dev/full answers every write with ENOSPC; a link to it stands for the file that is being written."""
    before = saved.read_bytes()
    with (
        pytest.raises(CheckpointError, match=r"found: No space left on device"),
        state.replacing(saved) as aside,
    ):
        aside.unlink()
        aside.symlink_to("/dev/full")
        aside.write_bytes(b"x")
    assert saved.read_bytes() == before and parts(saved.parent) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_while_writing(saved: Path, error: type[BaseException]) -> None:
    before = saved.read_bytes()
    with pytest.raises(error), state.replacing(saved) as aside:
        aside.write_bytes(b"half")
        raise error
    assert saved.read_bytes() == before and parts(saved.parent) == []


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError, match="a Tensor cannot be part of a configuration"):
        state.save(saved, {}, {"x": torch.zeros(2)})
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_no_file_size_limit_was_left_in_this_process() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_files_are_readable_for_all_whatever_the_temporary_file_was(saved: Path) -> None:
    assert os.stat(saved).st_mode & 0o777 == 0o644


# ---------------------------------------------------------------------------------------- JSON, fingerprints


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = state.write_json(tmp_path / "deep" / "r.json", {"b": [1, 2.5, None], "a": "é", "p": Path("x/y")})
    assert state.read_json(path) == {"a": "é", "b": [1, 2.5, None], "p": "x/y"}
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n") and '"a": "é"' in text and text.index('"a"') < text.index('"b"')
    for data in (b"", text.encode()[:-3], b"\xff\xfe", b"{'a': 1}"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"is damaged: not JSON|is not a text in UTF-8"):
            state.read_json(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*No such file"):
        state.read_json(tmp_path / "none.json")


@dataclass(frozen=True)
class Settings:
    rate: float
    names: tuple[str, ...]


def test_equal_configurations_have_equal_fingerprints() -> None:
    one = state.fingerprint({"a": 1, "b": (1, 2), "c": {"x", "y"}, "d": Settings(0.1, ("p", "q"))})
    two = state.fingerprint({"d": {"names": ["p", "q"], "rate": 0.1}, "c": ["x", "y"], "b": [1, 2], "a": 1})
    assert one == two and len(one) == 64
    assert state.fingerprint(Path("a/b")) == state.fingerprint("a/b")


def test_different_configurations_have_different_fingerprints() -> None:
    values: list[object] = [
        None, False, 0, "", "0", [], {}, [[]], [0], {"a": 0}, {"a": None}, {"b": 0}, 0.1, 0.1 + 1e-16, 1.0,
        1, "1", [1, 2], [2, 1], "é", "e",
    ]  # fmt: skip
    assert len({state.fingerprint(value) for value in values}) == len(values)
    with pytest.raises(TypeError, match="cannot be part of a configuration"):
        state.fingerprint({"f": print})


def test_a_digest_is_over_names_dtypes_shapes_and_bits_in_any_order() -> None:
    a, b = torch.arange(4.0), torch.ones(2, 2)
    one = state.digest({"a": a, "b": b})
    assert one == state.digest({"b": b.T.clone().T, "a": a.detach().requires_grad_()})
    others = [
        {"a": a, "c": b}, {"a": a}, {}, {"a": a.view(2, 2), "b": b}, {"a": a.double(), "b": b},
        {"a": a, "b": -b},
        {"a": a.int(), "b": b}, {"a": b, "b": a}, {"a": a, "b": b, "e": torch.empty(0)},
        {"a": a, "b": b, "e": torch.empty(0, 2)},
    ]  # fmt: skip
    assert len({one, *map(state.digest, others)}) == len(others) + 1
    assert state.digest({"z": torch.tensor([0.0])}) != state.digest({"z": torch.tensor([-0.0])})
