"""Verify judges what a loader would load: the forged folders that once conformed (H1, M3, M5, M7–M9, L6, L14)."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests import toys
from tests.guard.checkpoints import FREE, HELD, TO_K, WEIGHTS, World, base, world
from torch import Tensor
from transformers import CLIPTokenizer

from unteach.core import state
from unteach.diffusion.loading import quiet
from unteach.diffusion.model import load as load_model
from unteach.errors import CheckpointError
from unteach.guard.enforce import adapter_targets
from unteach.guard.manifest import FreezeManifest, stamp
from unteach.guard.verify import reader as files
from unteach.guard.verify import verify
from unteach.guard.verify.hashes import model_digest
from unteach.guard.verify.reader import Safetensors
from unteach.guard.verify.verdict import Verdict

DELTA = state.canonical({"format": "unteach-delta"})
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("toy") / "sd")


@pytest.fixture
def w(toy: Path, tmp_path: Path) -> World:
    return world(toy, tmp_path)


def check(w: World, candidate: Path, given: Path | None = None) -> Verdict:
    return verify(given or w.base, candidate, w.manifest)


def found(verdict: Verdict) -> set[tuple[str, str]]:
    return {(finding.kind, finding.outcome) for finding in verdict.findings}


def forged(verdict: Verdict) -> None:
    assert verdict.outcome in ("violates", "undecidable"), verdict.text()


def fine(verdict: Verdict) -> None:
    assert verdict.outcome == "conform", verdict.text()


def edit(path: Path, **change: Any) -> None:
    """Change keys of a JSON file; a value of ``...`` takes the key away."""
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


# ------------------------------------------------------------------------------------------- H1: forged folders


def _metadata_delta(unet: Path, tensors: dict[str, Tensor]) -> None:
    """The report's: zeros, without the middle block, which the configuration takes away; it calls itself a delta."""
    kept = {name: torch.zeros_like(t) for name, t in tensors.items() if not name.startswith("mid_block.")}
    save_file(kept, unet / "diffusion_pytorch_model.safetensors", {"unteach": DELTA})
    edit(unet / "config.json", mid_block_type=None)


def _empty(unet: Path, tensors: dict[str, Tensor]) -> None:
    save_file({}, unet / "diffusion_pytorch_model.safetensors", {"unteach": DELTA})


def _left_out(unet: Path, tensors: dict[str, Tensor]) -> None:
    kept = {name: tensor for name, tensor in tensors.items() if name not in HELD}
    save_file(kept, unet / "diffusion_pytorch_model.safetensors", {"unteach": DELTA})


def _shards(unet: Path, tensors: dict[str, Tensor]) -> None:
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(name for name in tensors if name not in HELD)
    table = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, unet / file, {"unteach": DELTA})
        table |= dict.fromkeys(part, file)
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def _adapter(unet: Path, tensors: dict[str, Tensor]) -> None:
    adapter = {f"unet.{FREE}.lora_A.weight": torch.ones(2, 16), f"unet.{FREE}.lora_B.weight": torch.ones(16, 2)}
    save_file(adapter, unet / "diffusion_pytorch_model.safetensors")


FORGED: dict[str, Callable[[Path, dict[str, Tensor]], None]] = {
    "metadata delta": _metadata_delta,
    "empty file": _empty,
    "frozen names left out": _left_out,
    "shards": _shards,
    "adapter in the U-Net's place": _adapter,
}


@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.parametrize("container", ["pipeline", "component", "nested"])
def test_h1_a_pipeline_without_its_frozen_tensors_never_conforms(w: World, kind: str, container: str) -> None:
    path = w.copy()
    FORGED[kind](path / "unet", load_file(w.base / WEIGHTS))
    if container == "nested":
        path = path.rename(w.folder / "inner").parent
        (path / "outer").mkdir()
        (path / "inner").rename(path / "outer" / "inner")
        path = path / "outer"
    verdict = check(w, path / "unet" if container == "component" else path)
    forged(verdict)
    assert verdict.outcome == "violates" and not verdict.compared.get("fp32", 0) >= len(HELD)


def test_h1_a_delta_counts_as_one_in_a_file_and_in_a_folder_that_is_no_model(w: World) -> None:
    delta = toys.change(load_model(w.base), [f"{FREE}.weight"])
    (w.folder / "run").mkdir()
    fine(check(w, delta.save(w.folder / "run" / "delta.safetensors")))
    fine(check(w, w.folder / "run"))
    path = w.copy()
    delta.save(path / "delta.safetensors")
    forged(check(w, path))
    shutil.move(w.folder / "run", w.folder / "unet")
    forged(check(w, w.folder / "unet"))
    (w.folder / "unet" / "delta.safetensors").rename(w.folder / "diffusion_pytorch_model.safetensors")
    alone = w.folder / "alone"
    alone.mkdir()
    (w.folder / "diffusion_pytorch_model.safetensors").rename(alone / "diffusion_pytorch_model.safetensors")
    forged(check(w, alone))


def test_h1_a_pipeline_whose_component_is_gone(w: World) -> None:
    path = w.copy()
    shutil.rmtree(path / "unet")
    forged(check(w, path))
    adapter = {f"unet.{FREE}.lora_A.weight": torch.ones(2, 16), f"unet.{FREE}.lora_B.weight": torch.ones(16, 2)}
    save_file(adapter, path / "pytorch_lora_weights.safetensors")
    forged(check(w, path))
    shutil.copytree(w.base / "unet", path / "unet")
    fine(check(w, path))  # beside a whole U-Net the adapter is an adapter, and this one is on a free module
    # The whole weights under a name that no loader reads, and in shards without an index.
    for name in ("weights.safetensors", "diffusion_pytorch_model-00001-of-00001.safetensors"):
        shutil.move(path / WEIGHTS, path / "unet" / name)
        forged(check(w, path))
        shutil.move(path / "unet" / name, path / WEIGHTS)


def test_h1_names_that_the_folders_loader_does_not_know(w: World) -> None:
    """CompVis names and fused projections are read from single files; in a pipeline's folder they are not."""
    path = w.copy()
    tensors = load_file(w.base / WEIGHTS)
    k, v = (tensors.pop(TO_K.replace("to_k", f"to_{x}.weight")) for x in "kv")
    save_file({**tensors, TO_K.replace("to_k", "to_kv.weight"): torch.cat([k, v])}, path / WEIGHTS)
    assert ("missing", "violates") in found(check(w, path))


# ------------------------------------------------------------------------------------------- shards and their index


def test_an_index_that_leaves_out_what_is_beside_it(w: World) -> None:
    path = w.copy()
    tensors = load_file(w.base / WEIGHTS)
    (path / WEIGHTS).unlink()
    names = sorted(tensors, key=lambda name: (name in HELD, name))
    cut = len(names) - len(HELD)
    one, two = (f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file({name: tensors[name] for name in names[:cut]}, path / "unet" / one)
    save_file({name: tensors[name] for name in names[cut:]}, path / "unet" / two)
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    whole = {**dict.fromkeys(names[:cut], one), **dict.fromkeys(names[cut:], two)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": whole}))
    fine(check(w, path))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names[:cut], one)}))
    assert ("index", "violates") in found(check(w, path))
    # A half under the name that loaders without an index take, the other half beside it.
    (path / "unet" / one).rename(path / WEIGHTS)
    file = WEIGHTS.rpartition("/")[2]
    index.write_text(
        json.dumps({"weight_map": {**dict.fromkeys(names[:cut], file), **dict.fromkeys(names[cut:], two)}})
    )
    assert ("index", "violates") in found(check(w, path))


# ------------------------------------------------------------------------------------------- M7: kinds of files

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("unet/diffusion_pytorch_model.flashpack", b"whatever"), ("model.tgz", b"\x1f\x8b"), ("README", b"\x00\x01"),
        ("model.ckpt.data-00000-of-00001", b"\x01\x02"), ("weights", b"(dp0\nS'w'\np1\n."), ("unet/x.sft", b"abc"),
        ("array.png", b"\x93NUMPY\x01\x00"), ("notes.txt", b"\x93NUMPY\x01\x00"), ("x.dduf", b"abc"),
        ("LICENSE.flashpack", b"text"), ("picture.jpg", b"PK\x03\x04"), ("tokenizer/spiece.model", b"abc"),
    ],
)  # fmt: skip
def test_m7_kinds_of_files_that_are_not_known_are_named(w: World, name: str, content: bytes) -> None:
    path = w.copy()
    (path / name).write_bytes(content)
    verdict = check(w, path)
    assert verdict.outcome == "undecidable" and [finding.where for finding in verdict.findings] == [name]


def test_m7_what_lies_beside_honest_models(w: World) -> None:
    path = w.copy()
    for name, content in {
        "README.md": b"# about \xc3\xa9", "LICENSE": b"terms", "LICENSE-CODE.txt": b"terms", "NOTICE": b"",
        ".gitattributes": b"*.safetensors filter=lfs", "image.png": PNG, "images/a.JPG": b"\xff\xd8\xff\xe0",
        ".cache/huggingface/download/config.json.metadata": b"abc\n1.5\n", ".cache/huggingface/x.lock": b"",
        ".cache/huggingface/.gitignore": b"*", "unet/manifest.json.sig": b"{}", "prompts.csv": b"a", "a.webp": b"RIFF",
        "tokenizer/chat_template.jinja": b"{{ x }}", "train.yaml": b"a: 1",
    }.items():  # fmt: skip
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    fine(check(w, path))


# ------------------------------------------------------------------------------------------- M8: adapters' settings


def peft_folder(w: World, name: str, targets: list[str], **more: Any) -> Path:
    unet = load_model(w.base).pipe.unet
    get_peft_model(unet, LoraConfig(r=2, target_modules=targets, **more)).save_pretrained(w.folder / name)
    return w.folder / name


def test_m8_adapters_that_the_settings_create(w: World) -> None:
    free = adapter_targets(load_model(w.base).pipe.unet, w.manifest, ["to_k", "to_q"])
    path = peft_folder(w, "free", free)
    config = path / "adapter_config.json"
    fine(check(w, path))
    plain = config.read_text()
    # The report's: random adapters on modules that own a frozen tensor; none of them is in the file.
    edit(config, target_modules=["to_k", "to_q", "to_v", "proj_in"], init_lora_weights=False)
    verdict = check(w, path)
    assert ("adapter", "violates") in found(verdict) and TO_K in {finding.tensor for finding in verdict.findings}
    for change in (
        {"init_lora_weights": False}, {"init_lora_weights": "pissa"}, {"init_lora_weights": 1.5},
        {"target_modules": "all-linear"}, {"target_modules": ".*to_k"}, {"target_modules": [1]},
        {"target_parameters": ["weight"]}, {"peft_type": "LOKR"},
        {"layer_replication": [[0, 1]]}, {"trainable_token_indices": [1]}, {"loftq_config": {"loftq_bits": 4}},
        {"new_setting": 3}, {"exclude_modules": ["x"]}, {"modules_to_save": [".*"]}, {"bias": "some"},
        {"use_dora": "x"},
        {"auto_mapping": {"base_model_class": "P", "parent_library": "evil"}}, {"layers_to_transform": 0},
    ):  # fmt: skip
        config.write_text(plain)
        edit(config, **change)
        assert check(w, path).outcome == "undecidable", change
    config.write_text(plain)
    edit(config, target_modules=[TO_K])
    assert found(check(w, path)) == {("adapter", "violates")}


@pytest.mark.parametrize(
    "more",
    [
        {}, {"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["conv_out"]}, {"lora_bias": True},
        {"use_rslora": True, "init_lora_weights": "gaussian"},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT 0.21 takes the bias of lora_bias for a damaged tensor
def test_m8_honest_settings_conform(w: World, more: dict[str, Any]) -> None:
    free = adapter_targets(load_model(w.base).pipe.unet, w.manifest, ["to_k", "to_q"])
    if "lora_bias" in more:
        free = ["conv_out"]
    fine(check(w, peft_folder(w, "free", free, **more)))


def test_m8_the_same_settings_in_a_files_metadata(w: World) -> None:
    """A sister: diffusers takes an adapter's settings from the metadata of the LoRA file."""
    tensors = {f"unet.{FREE}.lora_A.weight": torch.ones(2, 16), f"unet.{FREE}.lora_B.weight": torch.ones(16, 2)}

    def lora(**settings: Any) -> Path:
        text = json.dumps({f"unet.{key}": value for key, value in settings.items()})
        return w.file(tensors, "lora.safetensors", lora_adapter_metadata=text)

    fine(check(w, lora(r=2, lora_alpha=2, target_modules=[FREE], init_lora_weights=True, peft_type="LORA")))
    forged(check(w, lora(r=2, target_modules=["to_k"], init_lora_weights=False)))
    forged(check(w, lora(r=2, target_modules=[FREE], init_lora_weights=False)))
    forged(check(w, w.file(tensors, "lora.safetensors", lora_adapter_metadata="[" * 100_000)))
    forged(check(w, w.file(tensors, "lora.safetensors", lora_adapter_metadata='{"text_encoder.r": 2}')))


# ------------------------------------------------------------------------------------------- M3: weights from elsewhere


def test_m3_an_adapters_settings_beside_anything_else(w: World) -> None:
    path = w.copy()
    config = {"peft_type": "LORA", "base_model_name_or_path": "elsewhere", "target_modules": ["q_proj"], "r": 2}
    (path / "text_encoder" / "adapter_config.json").write_text(json.dumps(config))
    assert ("configuration", "undecidable") in found(check(w, path))
    # The report's: the part's own configuration away, the same file again as the adapter's.
    (path / "text_encoder" / "config.json").unlink()
    shutil.copy(path / TEXT, path / "text_encoder" / "adapter_model.safetensors")
    assert ("configuration", "undecidable") in found(check(w, path))
    for place in ("unet", "", "vae"):
        path = w.copy(f"in-{place}")
        (path / place / "adapter_config.json").write_text(json.dumps(config))
        assert ("configuration", "undecidable") in found(check(w, path))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_m3_a_part_without_its_configuration(w: World, part: str) -> None:
    path = w.copy()
    (path / part / "config.json").unlink()
    assert found(check(w, path)) == {("configuration", "undecidable")}


# ------------------------------------------------------------------------------------------- M9: configurations


def test_m9_configurations_that_switch_frozen_tensors_off(w: World) -> None:
    for change in (
        {"mid_block_type": None}, {"down_block_types": ["DownBlock2D", "DownBlock2D"]},
        {"down_block_types": ["DownBlock2D"]}, {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
    ):  # fmt: skip
        path = w.copy()
        edit(path / "unet" / "config.json", **change)
        verdict = check(w, path)
        assert ("configuration", "violates") in found(verdict)
        assert any(finding.tensor in HELD for finding in verdict.findings)
        forged(check(w, path, w.base / WEIGHTS))  # also when the base is a file: no configuration to compare with
        forged(check(w, path / "unet"))
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet/config.json", {"norm_eps": 0.5}), ("unet/config.json", {"attention_head_dim": 4}),
        ("unet/config.json", {"norm_eps": ...}), ("unet/config.json", {"unknown": 1}),
        ("unet/config.json", {"_class_name": "UNet2DModel"}), ("unet/config.json", {"quantization_config": {"a": 1}}),
        ("unet/config.json", {"only_cross_attention": True}), ("unet/config.json", {"act_fn": "relu"}),
        ("vae/config.json", {"scaling_factor": 0.5}), ("text_encoder/config.json", {"hidden_act": "gelu"}),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "x--y"}}),
        ("text_encoder/config.json", {"eos_token_id": 2}), ("scheduler/scheduler_config.json", {"beta_end": 0.02}),
        ("scheduler/scheduler_config.json", {"steps_offset": ...}),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 5}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"a": "b"}}),
        ("tokenizer/tokenizer_config.json", {"pad_token": "!"}),
        ("tokenizer/tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("tokenizer/tokenizer.json", {"added_tokens": [{"id": 3, "content": "cat"}]}),
        ("tokenizer/vocab.json", {"dog</w>": 1, "cat</w>": 2}), ("model_index.json", {"unet": [None, None]}),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}), ("model_index.json", {"_class_name": "Other"}),
        ("model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}),
        ("model_index.json", {"unet": ["unet_b", "UNet2DConditionModel"]}),
        ("model_index.json", {"more": ["diffusers", "UNet2DConditionModel"]}),
    ],
    ids=str,
)  # fmt: skip
def test_m9_configurations_that_differ_from_the_bases_are_told(w: World, file: str, change: dict[str, Any]) -> None:
    path = w.copy()
    if change == {"norm_eps": ...}:  # what is left out has its class's default, which the base has too
        edit(path / file, **change)
        fine(check(w, path))
        return
    edit(path / file, **change)
    verdict = check(w, path)
    assert verdict.outcome == "undecidable" and found(verdict) == {("configuration", "undecidable")}
    assert any(finding.where in (file, file.split("/")[0]) for finding in verdict.findings), verdict.text()


def test_m9_what_was_not_compared_is_said(w: World) -> None:
    path = w.copy()
    assert check(w, path).notes == ()
    digests = {}
    for part, file in (("text_encoder", TEXT), ("vae", "vae/diffusion_pytorch_model.safetensors")):
        with Safetensors(w.base / file) as opened:
            digests[part] = model_digest(opened.entries)
    verdict = verify(w.base / WEIGHTS, path, replace(w.manifest, components=digests))
    fine(verdict)
    text = verdict.text()
    for what in ("unet/config.json", "scheduler/scheduler_config.json", "tokenizer", "model_index.json"):
        assert any(what in note for note in verdict.notes) and what in text
    shutil.rmtree(path / "vae")
    verdict = check(w, path)
    fine(verdict)
    assert any("left out: vae" in note for note in verdict.notes)


def test_m9_the_same_configurations_as_other_releases_write_them(w: World) -> None:
    """A base as Stable Diffusion 1 is handed out, in the files of older releases, against what today's write of it."""
    old, new = w.copy("old"), w.folder / "new"
    for name in (
        "mid_block_type", "norm_eps", "class_embed_type", "dropout", "upcast_attention", "only_cross_attention",
    ):  # fmt: skip
        edit(old / "unet" / "config.json", **{name: ...})
    edit(old / "unet" / "config.json", _diffusers_version="0.20.0")
    edit(old / "vae" / "config.json", scaling_factor=..., force_upcast=..., latents_mean=..., shift_factor=...)
    edit(old / "scheduler" / "scheduler_config.json", prediction_type=..., timestep_spacing=..., trained_betas=...)
    edit(old / "text_encoder" / "config.json", dtype=..., torch_dtype="float32", transformers_version="4.22.0",
         dropout=0.0, _name_or_path="openai/clip-vit-large-patch14", layer_norm_eps=...)  # fmt: skip
    edit(old / "model_index.json", image_encoder=..., requires_safety_checker=..., _diffusers_version="0.20.0")
    (old / "tokenizer" / "tokenizer.json").unlink()
    end = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start = {**end, "content": "<|startoftext|>"}
    special = {"bos_token": start, "eos_token": end, "pad_token": "<|endoftext|>", "unk_token": end}
    (old / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))
    more = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "name_or_path": "x",
        "model_max_length": 24,
    }
    text = json.dumps({**special, **more, "special_tokens_map_file": "./x.json", "tokenizer_class": "CLIPTokenizer"})
    (old / "tokenizer" / "tokenizer_config.json").write_text(text)
    with quiet():
        load_model(old).pipe.save_pretrained(new, safe_serialization=True)
    assert not (new / "tokenizer" / "vocab.json").exists()
    for given, candidate in ((old, new), (new, old), (old, old), (w.base, old), (old, w.base)):
        verdict = verify(given, candidate, w.manifest)
        fine(verdict)
        assert verdict.notes == ()
    tokens = CLIPTokenizer.from_pretrained(new / "tokenizer")
    tokens.add_tokens(["<bomb>"])
    tokens.save_pretrained(new / "tokenizer")
    forged(verify(old, new, w.manifest))


@pytest.mark.parametrize("kind", ["sd_v", "sdxl"])
def test_other_pipelines_conform_to_themselves(tmp_path: Path, kind: str) -> None:
    """Two text encoders; a scheduler whose settings hold -Infinity, as Python writes it."""
    pipe = toys.build(kind, tmp_path / kind)
    assert kind == "sdxl" or "-Infinity" in (pipe / "scheduler" / "scheduler_config.json").read_text()
    with Safetensors(pipe / WEIGHTS) as file:
        manifest = FreezeManifest.from_readable(file.entries, HELD[:1])
    verdict = verify(pipe, pipe, manifest)
    fine(verdict)
    assert verdict.notes == ()
    edit(pipe / "scheduler" / "scheduler_config.json", beta_end=0.5)
    other = toys.build(kind, tmp_path / "again")
    forged(verify(other, pipe, manifest))


def test_m8_the_settings_that_diffusers_itself_writes(w: World) -> None:
    pipe = load_model(w.base).pipe
    for module, good in ((FREE, True), (TO_K, False)):
        unet = load_model(w.base).pipe.unet
        unet.add_adapter(LoraConfig(r=2, target_modules=[module], init_lora_weights="gaussian"))
        settings = unet.peft_config["default"].to_dict()
        tensors = {n.replace(".default", ""): p.detach() for n, p in unet.named_parameters() if "lora_" in n}
        pipe.save_lora_weights(w.folder / str(good), unet_lora_layers=tensors, unet_lora_adapter_metadata=settings)
        with Safetensors(w.folder / str(good) / "pytorch_lora_weights.safetensors") as file:
            assert "target_modules" in file.metadata["lora_adapter_metadata"]
        assert (check(w, w.folder / str(good)).outcome == "conform") == good


# ------------------------------------------------------------------------------------------- M5, L6, L14, tracebacks


def test_m5_whether_the_base_is_stamped_is_told(w: World) -> None:
    path = w.copy("stamped")
    assert not check(w, w.base).stamped and "base: NOT STAMPED" in check(w, w.base).text()
    stamp(path / WEIGHTS, w.manifest)
    verdict = check(w, w.base, path)
    assert verdict.stamped and verdict.to_dict()["stamped"] and "base: stamped with this manifest" in verdict.text()
    weaker = FreezeManifest.from_model(w.tensors, HELD[:1])
    verdict = verify(w.base, path, weaker)
    fine(verdict)
    assert "NOT STAMPED" in verdict.text() and any("stamped with another manifest" in note for note in verdict.notes)


def test_l14_scales_beside_a_free_tensor_that_is_not_quantised(w: World) -> None:
    for name in (f"{FREE}.scale", f"{FREE}.weight.absmax", f"{TO_K}.scale", "conv_out.weight_scale"):
        tensors = {**w.tensors, name: torch.ones(1)}
        assert found(check(w, w.file(tensors))) == {("extra", "violates")}
    quantised = {
        **w.tensors,
        f"{FREE}.weight": w.tensors[f"{FREE}.weight"].to(torch.int8),
        f"{FREE}.scale": torch.ones(1),
    }
    fine(check(w, w.file(quantised)))


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("MOST_TENSORS", 250, "tensors"),
        ("ALL_HEADERS", 40_000, "headers"),
        ("ALL_WEIGHTS", 400_000, "bytes of weights"),
    ],
)
def test_l6_one_limit_over_all_files(
    w: World, limit: str, value: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = w.copy()
    monkeypatch.setattr(files, limit, value)
    fine(check(w, path / "unet"))
    shutil.copy(path / WEIGHTS, path / "unet" / "diffusion_pytorch_model.other.safetensors")
    with pytest.raises(CheckpointError, match=rf"too many .*{words}.*without a trainer's checkpoints"):
        check(w, path)


def test_l6_many_files_of_many_names_are_refused_in_time(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_TENSORS", 1_000)
    names = {f"{i:05}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200)}
    text = json.dumps(names).encode()
    path = w.folder / "many"
    path.mkdir()
    for i in range(20):
        (path / f"{i}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match=r"too many tensors.*found: 1200 up to"):
        check(w, path)
    wide = w.copy("wide")
    (wide / "unet" / "config.json").write_text('{"a": [' + "[]," * 700_000 + "[]]}")
    with pytest.raises(CheckpointError, match="too many lists and tables"):
        check(w, wide)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json", "unet/config.json", "tokenizer/tokenizer.json", "tokenizer/vocab.json",
        "scheduler/scheduler_config.json", "text_encoder/adapter_config.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"[]", b"", b"\xff\xfe", b"{}", b'{"model": 5, "added_tokens": 5, "unet": 5}',
     b'{"model": {"vocab": [1], "merges": {}}, "down_block_types": [[1]], "target_modules": [[]], "text_config": [1]}'],
    ids=["lists", "tables", "list", "empty", "bytes", "nothing", "numbers", "lists inside"],
)  # fmt: skip
def test_broken_configurations_are_an_error_or_undecidable(w: World, file: str, content: bytes) -> None:
    path = w.copy()
    (path / file).write_bytes(content)
    try:
        forged(check(w, path))
    except CheckpointError as error:
        assert "no verdict" not in error.problem  # a reason of its own, not the last resort


# ------------------------------------------------------------------------------------------- a trainer's folder


def lora_state(w: World, targets: list[str]) -> dict[str, Tensor]:
    """What accelerate saves of a U-Net with an adapter in it."""
    unet = load_model(w.base).pipe.unet
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights="gaussian"))
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def test_a_trainers_folder_is_judged_by_its_model(w: World) -> None:
    path = w.copy()
    step = path / "checkpoint-500"
    left = ["optimizer.bin", "scheduler.bin", "random_states_0.pkl", "scaler.pt", "sampler.bin"]
    for name in left:
        step.mkdir(exist_ok=True)
        (step / name).write_bytes(b"PK\x03\x04 or \x80 whatever")
    shutil.copytree(w.base / "unet", step / "unet")
    shutil.copytree(w.base / "unet", step / "unet_ema")
    edit(step / "unet_ema" / "config.json", decay=0.9999, optimization_step=500, power=0.75, use_ema_warmup=False)
    (path / "logs" / "text2image").mkdir(parents=True)
    (path / "logs" / "text2image" / "events.out.tfevents.1700000000.host.1.0").write_bytes(b"\x18\x00\x00")
    (path / "logs" / "text2image" / "hparams.yml").write_text("a: 1")
    verdict = check(w, path)
    fine(verdict)
    assert set(left) == {Path(name).name for name in verdict.leftovers} - {"events.out.tfevents.1700000000.host.1.0"}
    text = verdict.text()
    assert "6 files of a trainer, not opened" in text and "delete them, or publish without them" in text
    assert verdict.to_dict()["leftovers"]
    fine(check(w, step))  # a checkpoint alone
    # The same names elsewhere are not leftovers, and the advice fits.
    (path / "unet" / "optimizer.bin").write_bytes(b"\x80")
    verdict = check(w, path)
    assert verdict.outcome == "undecidable" and "Delete it" in verdict.findings[0].detail
    (path / "unet" / "optimizer.bin").unlink()
    # Weights in a checkpoint are looked at like all others; a pickle of weights is no leftover.
    (step / "pytorch_model.bin").write_bytes(b"\x80")
    assert found(check(w, path)) == {("unsafe", "undecidable")}
    (step / "pytorch_model.bin").unlink()
    tensors = load_file(step / "unet_ema" / "diffusion_pytorch_model.safetensors")
    tensors[HELD[0]] += 1
    save_file(tensors, step / "unet_ema" / "diffusion_pytorch_model.safetensors")
    assert found(check(w, path)) == {("changed", "violates")}


def test_a_lora_trainers_folder(w: World) -> None:
    """accelerate saves the whole network with the adapters in it as ``model.safetensors``."""
    for targets, good in (([FREE], True), ([TO_K], False)):
        path = w.folder / f"lora-{good}"
        step = path / "checkpoint-10"
        step.mkdir(parents=True)
        tensors = lora_state(w, targets)
        save_file(tensors, step / "model.safetensors")
        lora = {
            f"unet.{targets[0]}.lora_A.weight": torch.ones(2, 16),
            f"unet.{targets[0]}.lora_B.weight": torch.ones(16, 2),
        }
        for folder in (path, step):
            save_file(lora, folder / "pytorch_lora_weights.safetensors")
        (step / "optimizer.bin").write_bytes(b"\x80")
        verdict = check(w, path)
        assert (verdict.outcome == "conform") == good, verdict.text()
        tensors[HELD[0]] = tensors[HELD[0]] + 1
        save_file(tensors, step / "model.safetensors")
        assert ("changed", "violates") in found(check(w, path))


# ------------------------------------------------------------------------------------------- names and places


@pytest.mark.parametrize("name", ["Unet", "UNET", "\uff55net"])
def test_folders_that_differ_in_writing_alone(w: World, name: str) -> None:
    path = w.copy()
    shutil.copytree(path / "unet", path / name)
    assert check(w, path).outcome == "undecidable"
    shutil.rmtree(path / "unet")
    forged(check(w, path))


def test_a_configuration_in_other_letters(w: World) -> None:
    path = w.copy()
    (path / "text_encoder" / "Adapter_Config.json").write_text("{}")
    assert check(w, path).outcome == "undecidable"
