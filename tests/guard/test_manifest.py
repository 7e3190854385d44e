"""A manifest says exactly what is frozen, comes back as it was, and refuses what it does not understand."""

import contextlib
import hashlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests import toys
from tests.guard.checkpoints import HELD, WEIGHTS, World, base, world

from unteach.diffusion.model import load as load_model
from unteach.errors import CheckpointError, ConfigError, ModelError, NumericsError, UnteachError
from unteach.guard.manifest import FreezeManifest, Provenance, stamp, stamped
from unteach.guard.verify.hashes import InMemory, matches, model_digest
from unteach.guard.verify.names import compvis, vae_compvis
from unteach.guard.verify.reader import Safetensors


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("toy") / "sd")


@pytest.fixture(scope="module")
def shared(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(toy, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def w(toy: Path, tmp_path: Path) -> World:
    return world(toy, tmp_path)


def test_it_counts_exactly(w: World) -> None:
    budget = w.manifest.budget
    assert set(w.manifest.frozen) == set(HELD) and budget.frozen_tensors == len(HELD)
    assert budget.tensors == len(w.tensors) == len(w.manifest.tensors)
    assert budget.parameters == sum(tensor.numel() for tensor in w.tensors.values())
    assert budget.frozen_parameters == sum(w.tensors[name].numel() for name in HELD)
    assert budget.share_of_tensors == len(HELD) / len(w.tensors)
    assert budget.share_of_parameters == budget.frozen_parameters / budget.parameters


def test_hashes_are_those_of_the_bytes(w: World) -> None:
    row = next(tensor for tensor in w.manifest.tensors if tensor.name == HELD[1])
    tensor = w.tensors[row.name]
    assert row.hashes["fp32"] == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert row.hashes["fp16"] == hashlib.sha256(tensor.half().numpy().tobytes()).hexdigest()
    assert row.hashes["bf16"] == hashlib.sha256(tensor.bfloat16().view(torch.int16).numpy().tobytes()).hexdigest()
    assert not any(tensor.hashes for tensor in w.manifest.tensors if not tensor.frozen)


def test_memory_file_and_model_agree(w: World, toy: Path) -> None:
    model = load_model(toy)
    from_module = FreezeManifest.from_model(model.denoiser, HELD, created="t")
    with Safetensors(toy / WEIGHTS) as file:
        from_file = FreezeManifest.from_readable(file.entries, HELD, created="t")
    assert from_module.model == from_file.model == w.manifest.model == model.digest()
    assert from_module.frozen != () and set(from_module.frozen) == set(from_file.frozen)
    assert {t.name: t.hashes for t in from_module.tensors} == {t.name: t.hashes for t in from_file.tensors}
    # Another dtype of the same values is the same model; other values are another.
    half = {name: tensor.half() for name, tensor in w.tensors.items()}
    wide = {name: tensor.float() for name, tensor in half.items()}
    assert FreezeManifest.from_model(half, ()).model == FreezeManifest.from_model(wide, ()).model != w.manifest.model


def test_it_comes_back_as_it_was(w: World) -> None:
    provenance = Provenance(
        {"guard": "freezeasguard", "rates": (1e-4, 3e-4)}, (0, 1), {"illegal": "ab"}, {"torch": "2"}
    )
    manifest = FreezeManifest.from_model(
        w.tensors, HELD, dict.fromkeys(w.tensors, 1 / 3), policy="no-twemoji", granularity="module",
        measure="parameters", rho=0.3, provenance=provenance, components={"vae": "0" * 64},
    )  # fmt: skip
    path = manifest.save(w.folder / "manifest.json")
    again = FreezeManifest.load(path)
    assert again == manifest and again.digest() == manifest.digest()
    # The layout of the file does not matter to the digest, every value does.
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert FreezeManifest.load(path).digest() == manifest.digest()
    assert replace(manifest, policy="other").digest() != manifest.digest()


def edited(w: World, *where: Any, value: Any) -> Path:
    path = w.manifest.save(w.folder / "manifest.json")
    content = json.loads(path.read_text())
    place = content
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("surprise",), 1, "unknown key.*surprise"),
        (("budget", "surprise"), 1, "unknown key.*surprise"),
        (("tensors", 0, "surprise"), 1, "unknown key.*surprise"),
        (("version",), 2, "newer version"),
        (("version",), True, "version must be a whole number"),
        (("format",), "other", "not a file of the format unteach-freeze-manifest"),
        (("granularity",), "layer", "granularity"),
        (("model",), "abc", "64 hex"),
        (("budget", "frozen_tensors"), 3, "budget does not fit"),
        (("budget", "share_of_parameters"), 0.5, "budget does not fit"),
        (("budget", "rho"), "0.3", "must be a finite number"),
        (("tensors", 0, "frozen"), 1, "must be true or false"),
        (("tensors", 0, "shape"), "12", "must be a list"),
        (("tensors",), [], "no tensor"),
        (("tensors",), 5, "must be a list"),
        (("components",), {"vae": "x"}, "64 hex"),
        (("component",), "../unet", "not a name"),
        (("created",), None, "must be text"),
        (("provenance",), None, "provenance"),
    ],
)  # fmt: skip
def test_what_it_does_not_understand_is_refused(w: World, where: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        FreezeManifest.load(edited(w, *where, value=value))


def test_a_frozen_tensor_cannot_be_switched_off_or_lose_a_hash(w: World) -> None:
    i = next(i for i, tensor in enumerate(w.manifest.tensors) if tensor.frozen)
    with pytest.raises(CheckpointError, match="must have no hashes"):
        FreezeManifest.load(edited(w, "tensors", i, "frozen", value=False))
    with pytest.raises(CheckpointError, match="must have hashes"):
        FreezeManifest.load(edited(w, "tensors", i, "hashes", value={"fp32": "0" * 64}))


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b'{"format": 1, "format": 2}', b"[" * 100_000, b'{"a":' * 5000, b"\xff", b"NaN", b'{"a": NaN}'],
)
def test_files_that_are_no_json_are_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError):
        FreezeManifest.load(path)


@settings(max_examples=60)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=5), st.data())  # fmt: skip
def test_no_content_makes_it_crash(shared: World, value: Any, data: Any) -> None:
    w = shared
    key = data.draw(st.sampled_from(sorted(json.loads(w.manifest.canonical()))))
    path = edited(w, key, value=value)
    with contextlib.suppress(UnteachError):
        assert isinstance(FreezeManifest.load(path), FreezeManifest)


def test_names_scores_and_values_are_checked(w: World) -> None:
    with pytest.raises(ModelError, match=r"conv_inn\.bias.*conv_in\.bias"):
        FreezeManifest.from_model(w.tensors, ["conv_inn.bias"])
    with pytest.raises(NumericsError, match="finite"):
        FreezeManifest.from_model(w.tensors, [], {"conv_in.bias": float("inf")})
    with pytest.raises(NumericsError, match="not finite"):
        FreezeManifest.from_model({"a": torch.tensor([float("nan")])}, ["a"])
    with pytest.raises(ModelError, match="cannot be frozen"):
        FreezeManifest.from_model({"a": torch.tensor([1])}, ["a"])
    with pytest.raises(ModelError, match="tied"):
        FreezeManifest.from_model({"a": (x := torch.ones(2)), "b": x}, ["a"])
    with pytest.raises(ConfigError, match="JSON"):
        Provenance({"rate": float("nan")})


def test_only_casts_match(w: World) -> None:
    tensor, row = w.tensors[HELD[1]], next(t for t in w.manifest.tensors if t.name == HELD[1])
    for cast, copy in {
        "fp32": tensor, "fp16": tensor.half(), "bf16": tensor.bfloat16(),
        "fp16 in wider numbers": tensor.half().float(),
        "bf16 in wider numbers": tensor.bfloat16().double(), "fp32 in wider numbers": tensor.double(),
    }.items():  # fmt: skip
        assert matches(InMemory(copy), row.hashes) == cast
    # Near the 16-bit cast is not the cast: a change below 16 bits of precision is a change.
    assert matches(InMemory(tensor * (1 + 2e-7)), row.hashes) is None
    assert matches(InMemory(tensor.to(torch.int32)), row.hashes) is None


# ---------------------------------------------------------------------------------------------------- stamp


def test_a_stamp_changes_the_metadata_alone(w: World) -> None:
    path = w.file(w.tensors, "w.safetensors", note="kept")
    path.chmod(0o640)
    stamp(path, w.manifest)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"note": "kept", "unteach.freeze_manifest": w.manifest.digest()}
    after = load_file(path)
    assert after.keys() == w.tensors.keys()
    assert all(torch.equal(after[name].view(torch.int32), w.tensors[name].view(torch.int32)) for name in after)
    assert path.stat().st_mode & 0o777 == 0o640
    first = path.read_bytes()
    stamp(path, w.manifest)
    assert path.read_bytes() == first
    with Safetensors(path) as mine:
        assert stamped(mine.metadata) == w.manifest.digest() and model_digest(mine.entries) == w.manifest.model


def test_a_damaged_file_is_not_stamped(w: World) -> None:
    path = w.file(w.tensors)
    path.write_bytes(path.read_bytes()[:-1])
    before = path.read_bytes()
    with pytest.raises(CheckpointError):
        stamp(path, w.manifest)
    assert path.read_bytes() == before and [p.name for p in w.folder.iterdir()] == [path.name]


def test_stamping_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    header = json.dumps({"w": {"dtype": "F32", "shape": [300 << 18], "data_offsets": [0, 300 << 20]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (300 << 20))
    tracemalloc.start()
    try:
        stamp(path, FreezeManifest.from_model({"w": torch.zeros(1)}, ["w"]))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 300 << 20


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_diffusers_own_converter_reads_our_compvis_names(tmp_path: Path, kind: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    folder = toys.build(kind, tmp_path / kind)
    tensors = load_file(folder / WEIGHTS)
    names = compvis(tensors)
    assert names.keys() == tensors.keys() and len(set(names.values())) == len(names)
    single = {f"model.diffusion_model.{names[name]}": tensor for name, tensor in tensors.items()}
    config = json.loads((folder / "unet" / "config.json").read_text())
    back = convert_ldm_unet_checkpoint(dict(single), config)
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)

    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    other = vae_compvis(vae)
    assert len(set(other.values())) == len(other)
    convolved = {
        f"first_stage_model.{other[name]}": t[..., None, None] if ".attn_1." in other[name] and t.ndim == 2 else t
        for name, t in vae.items()
    }
    back = convert_ldm_vae_checkpoint(convolved, json.loads((folder / "vae" / "config.json").read_text()))
    assert back.keys() == vae.keys() and all(torch.equal(back[name], vae[name]) for name in vae)


def test_names_of_stable_diffusion_as_everyone_knows_them() -> None:
    sd1 = [f"down_blocks.{i}.resnets.{j}.conv1.weight" for i in range(4) for j in range(2)]
    sd1 += [f"down_blocks.{i}.attentions.{j}.proj_in.weight" for i in range(3) for j in range(2)]
    sd1 += [f"up_blocks.{i}.attentions.{j}.proj_in.weight" for i in range(1, 4) for j in range(3)]
    sd1 += ["down_blocks.0.downsamplers.0.conv.weight", "up_blocks.0.upsamplers.0.conv.bias"]
    sd1 += ["up_blocks.1.upsamplers.0.conv.bias", "mid_block.attentions.0.norm.weight", "conv_out.weight"]
    names = compvis(sd1)
    assert names["down_blocks.1.attentions.0.proj_in.weight"] == "input_blocks.4.1.proj_in.weight"
    assert names["down_blocks.0.downsamplers.0.conv.weight"] == "input_blocks.3.0.op.weight"
    assert names["up_blocks.3.attentions.2.proj_in.weight"] == "output_blocks.11.1.proj_in.weight"
    assert names["up_blocks.0.upsamplers.0.conv.bias"] == "output_blocks.2.1.conv.bias"
    assert names["up_blocks.1.upsamplers.0.conv.bias"] == "output_blocks.5.2.conv.bias"
    assert names["mid_block.attentions.0.norm.weight"] == "middle_block.1.norm.weight"
    assert names["conv_out.weight"] == "out.2.weight"
