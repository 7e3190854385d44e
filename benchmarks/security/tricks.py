"""Uploads that leave the weights as they are, or nearly: honest ones, and tricks with all that lies beside them."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unteach.core import state
from unteach.core.seeds import generator
from unteach.guard.manifest import FreezeManifest
from unteach.guard.verify.names import compvis

UNET = "unet/diffusion_pytorch_model.safetensors"
LORA = "pytorch_lora_weights.safetensors"


class Base(Protocol):
    """What is known of a published pipeline."""

    @property
    def folder(self) -> Path: ...

    @property
    def manifest(self) -> FreezeManifest: ...

    @property
    def held(self) -> list[str]: ...


Make = Callable[[Base, Path], Path]


def honest_weights(tensors: Mapping[str, Tensor], held: list[str], seed: int = 0) -> dict[str, Tensor]:
    """What a fine-tune that keeps to the mask makes: everything else moves."""
    return {
        name: value
        if name in held
        else value + 0.01 * torch.randn(value.shape, generator=generator(seed, "tune", name))
        for name, value in tensors.items()
    }


def replace_weights(
    unet: Path, tensors: Mapping[str, Tensor], *, shards: int, metadata: dict[str, str]
) -> dict[str, str]:
    """Write weights in shards with an index; returns the index's table."""
    names, table = sorted(tensors), {}
    for i in range(shards):
        file = f"diffusion_pytorch_model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::shards]}, unet / file, metadata or None)
        table |= dict.fromkeys(names[i::shards], file)
    _index(unet, table)
    return table


def _index(unet: Path, table: dict[str, str]) -> None:
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def _copy(base: Base, out: Path) -> Path:
    return Path(shutil.copytree(base.folder, out))


def _tuned(base: Base) -> dict[str, Tensor]:
    return honest_weights(load_file(base.folder / UNET), base.held)


def _free(base: Base) -> str:
    """A module without a frozen tensor."""
    held = {name.rpartition(".")[0] for name in base.held}
    return next(t.name.removesuffix(".weight") for t in base.manifest.tensors
                if t.name.endswith("attn1.to_q.weight") and t.name.rpartition(".")[0] not in held)  # fmt: skip


def _held(base: Base) -> str:
    return next(name.removesuffix(".weight") for name in base.held if name.endswith("attn2.to_k.weight"))


def _lora(base: Base, module: str, head: str = "unet.") -> dict[str, Tensor]:
    rows, columns = next(t.shape for t in base.manifest.tensors if t.name == f"{module}.weight")
    down, up = torch.full((2, columns), 0.1), torch.full((rows, 2), 0.1)
    return {f"{head}{module}.lora_A.weight": down, f"{head}{module}.lora_B.weight": up}


def _edit(path: Path, change: Mapping[str, Any]) -> None:
    content = {**state.read_json(path), **change}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


# ------------------------------------------------------------------------------------------------ honest uploads


def _same(base: Base, out: Path) -> Path:
    return _copy(base, out)


def _cast(dtype: torch.dtype, back: bool = False) -> Make:
    def make(base: Base, out: Path) -> Path:
        for file in _copy(base, out).rglob("*.safetensors"):
            tensors = _tuned(base) if file.parent.name == "unet" else load_file(file)
            cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
            save_file({k: v.float() if back and v.is_floating_point() else v for k, v in cast.items()}, file)
        return out

    return make


def _variants(base: Base, out: Path) -> Path:
    for file in list(_cast(torch.float16)(base, out).rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
        shutil.copy(base.folder / file.relative_to(out), file)
    return out


def _fp16_variant_alone(base: Base, out: Path) -> Path:
    for file in list(_cast(torch.float16)(base, out).rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    return out


def _sharded(base: Base, out: Path) -> Path:
    _copy(base, out)
    (out / UNET).unlink()
    replace_weights(out / "unet", _tuned(base), shards=3, metadata={"format": "pt"})
    return out


def _resaved(base: Base, out: Path) -> Path:
    """As diffusers writes the component and transformers the text encoder today."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    _copy(base, out)
    for part, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        cls.from_pretrained(base.folder / part).save_pretrained(out / part)
    return out


def _file(base: Base, out: Path) -> Path:
    out.mkdir(parents=True)
    save_file(_tuned(base), out / "weights.safetensors")
    return out / "weights.safetensors"


def _compvis(base: Base, out: Path) -> Path:
    names = compvis([t.name for t in base.manifest.tensors])
    out.mkdir(parents=True)
    save_file({f"model.diffusion_model.{names[k]}": v for k, v in _tuned(base).items()}, out / "weights.safetensors")
    return out / "weights.safetensors"


def _adapter(base: Base, out: Path) -> Path:
    out.mkdir(parents=True)
    save_file(_lora(base, _free(base)), out / LORA)
    (out / "README.md").write_text("# a LoRA")
    return out


def _peft(base: Base, out: Path, **settings: Any) -> Path:
    out.mkdir(parents=True)
    save_file(_lora(base, _free(base), "base_model.model."), out / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [_free(base)], "init_lora_weights": True}
    (out / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    return out


def _delta(base: Base, out: Path) -> Path:
    out.mkdir(parents=True)
    save_file({f"{_free(base)}.weight": torch.ones(next(t.shape for t in base.manifest.tensors
               if t.name == f"{_free(base)}.weight"))}, out / "delta.safetensors",
              {"unteach": state.canonical({"format": "unteach-delta"})})  # fmt: skip
    return out / "delta.safetensors"


def _trainer(base: Base, out: Path) -> Path:
    _copy(base, out)
    save_file(_tuned(base), out / UNET)
    step = out / "checkpoint-500"
    shutil.copytree(out / "unet", step / "unet")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "scaler.pt"):
        (step / name).write_bytes(b"\x80\x04.")
    return out


def _smaller(base: Base, out: Path) -> Path:
    shutil.rmtree(_copy(base, out) / "vae")
    return out


def _with_files(base: Base, out: Path) -> Path:
    _copy(base, out)
    (out / "README.md").write_text("# about\n")
    (out / "LICENSE").write_text("terms")
    (out / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return out


HONEST: Mapping[str, Make] = {
    "as published": _same, "tuned, fp16": _cast(torch.float16), "tuned, bf16": _cast(torch.bfloat16),
    "tuned, fp64": _cast(torch.float64), "fp16 widened": _cast(torch.float16, back=True),
    "fp32 with fp16 variants": _variants, "fp16 variant alone": _fp16_variant_alone, "shards": _sharded,
    "saved again": _resaved, "one file": _file, "one file, CompVis": _compvis, "LoRA": _adapter, "PEFT": _peft,
    "delta": _delta, "trainer's folder": _trainer, "without a part": _smaller, "card and pictures": _with_files,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ tricks


def _config(file: str, change: Mapping[str, Any]) -> Make:
    def make(base: Base, out: Path) -> Path:
        _edit(_copy(base, out) / file, change)
        return out

    return make


def _add(file: str, content: "bytes | Callable[[Base], dict[str, Tensor]]") -> Make:
    def make(base: Base, out: Path) -> Path:
        path = _copy(base, out) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else save_file(content(base), path)
        return out

    return make


def _moved(part: str, file: str) -> Make:
    """Another part's weights, moved a little."""

    def make(base: Base, out: Path) -> Path:
        path = _copy(base, out) / part / file
        save_file({k: v + 0.01 if v.is_floating_point() else v for k, v in load_file(path).items()}, path)
        return out

    return make


def _gone(file: str) -> Make:
    def make(base: Base, out: Path) -> Path:
        path = _copy(base, out) / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return out

    return make


def _instead(content: Callable[[Base], dict[str, Tensor]], **metadata: str) -> Make:
    """Something else in the U-Net's place."""

    def make(base: Base, out: Path) -> Path:
        save_file(content(base), _copy(base, out) / UNET, metadata or None)
        return out

    return make


def _redirected(base: Base, out: Path) -> Path:
    """The pipeline takes its U-Net from another folder."""
    _copy(base, out)
    shutil.copytree(out / "unet", out / "unet_2")
    save_file({k: v + 0.1 for k, v in load_file(out / UNET).items()}, out / "unet_2" / UNET.split("/")[1])
    _edit(out / "model_index.json", {"unet_2": ["diffusers", "UNet2DConditionModel"], "unet": [None, None]})
    return out


def _half_indexed(base: Base, out: Path) -> Path:
    _copy(base, out)
    (out / UNET).unlink()
    table = replace_weights(out / "unet", load_file(base.folder / UNET), shards=2, metadata={})
    first = min(table.values())
    _index(out / "unet", {name: file for name, file in table.items() if file == first})
    return out


def _index_elsewhere(base: Base, out: Path) -> Path:
    """The index names other shards than those that are whole."""
    _copy(base, out)
    tensors = load_file(out / UNET)
    table = {name: "other-00001-of-00001.safetensors" for name in tensors if name not in base.held}
    save_file({name: tensors[name] for name in table}, out / "unet" / "other-00001-of-00001.safetensors")
    _index(out / "unet", table)
    return out


def _linked(base: Base, out: Path) -> Path:
    _copy(base, out)
    (out / "blob").write_bytes((out / UNET).read_bytes())
    (out / UNET).unlink()
    (out / UNET).symlink_to("../blob")
    return out


def _outside(base: Base, out: Path) -> Path:
    _copy(base, out)
    (out / UNET).unlink()
    (out / UNET).symlink_to(base.folder / UNET)
    return out


def _text_encoder_elsewhere(base: Base, out: Path) -> Path:
    _copy(base, out)
    (out / "text_encoder" / "config.json").unlink()
    shutil.copy(out / "text_encoder" / "model.safetensors", out / "text_encoder" / "adapter_model.safetensors")
    _add_adapter_config(out / "text_encoder")
    return out


def _add_adapter_config(folder: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "elsewhere/other", "target_modules": ["q_proj"], "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _adapter_config(place: str) -> Make:
    def make(base: Base, out: Path) -> Path:
        _add_adapter_config(_copy(base, out) / place)
        return out

    return make


def _settings(**settings: Any) -> Make:
    return lambda base, out: _peft(base, out, **settings)


def _metadata_settings(base: Base, out: Path) -> Path:
    out.mkdir(parents=True)
    text = json.dumps({"unet.r": 2, "unet.target_modules": ["to_k"], "unet.init_lora_weights": False})
    save_file(_lora(base, _free(base)), out / LORA, {"lora_adapter_metadata": text})
    return out


def _held_lora(base: Base, out: Path) -> Path:
    out.mkdir(parents=True)
    save_file({**_lora(base, _free(base)), **_lora(base, _held(base))}, out / LORA)
    return out


def _swapped_words(base: Base, out: Path) -> Path:
    """The tokenizer reads "dog" where "cat" is written."""
    _copy(base, out)
    for name, table in (("tokenizer.json", "model"), ("vocab.json", None)):
        path = out / "tokenizer" / name
        if not path.exists():
            continue
        content = state.read_json(path)
        words = content[table]["vocab"] if table else content
        words["dog</w>"], words["cat</w>"] = words["cat</w>"], words["dog</w>"]
        path.write_text(json.dumps(content))
    return out


def _renamed_folder(name: str) -> Make:
    def make(base: Base, out: Path) -> Path:
        (_copy(base, out) / "unet").rename(out / name)
        return out

    return make


def _fused(base: Base) -> dict[str, Tensor]:
    tensors, module = _tuned(base), _held(base).removesuffix(".to_k")
    key, value = (tensors.pop(f"{module}.to_{x}.weight") for x in "kv")
    return {**tensors, f"{module}.to_kv.weight": torch.cat([key, value])}


def _renamed_weights(base: Base, out: Path) -> Path:
    """Whole and honest, under a name that no loader reads; what it reads instead is not safetensors."""
    _copy(base, out)
    (out / UNET).rename(out / "unet" / "weights.safetensors")
    return out


def _scaled(name: str) -> Callable[[Base], dict[str, Tensor]]:
    return lambda base: {**_tuned(base), f"{_free(base)}.{name}": torch.full((1,), 3.0)}


DELTA = state.canonical({"format": "unteach-delta"})
TRICKS: Mapping[str, Make] = {
    "middle block off": _config("unet/config.json", {"mid_block_type": None}),
    "blocks without attention": _config("unet/config.json", {"down_block_types": ["DownBlock2D", "DownBlock2D"]}),
    "other epsilon": _config("unet/config.json", {"norm_eps": 0.5}),
    "other heads": _config("unet/config.json", {"attention_head_dim": 4}),
    "other activation": _config("unet/config.json", {"act_fn": "relu"}),
    "quantised on loading": _config("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    "another class": _config("unet/config.json", {"_class_name": "UNet2DModel"}),
    "no configuration": _gone("unet/config.json"),
    "VAE: other scale": _config("vae/config.json", {"scaling_factor": 1.0}),
    "VAE: no configuration": _gone("vae/config.json"),
    "VAE: other weights": _moved("vae", "diffusion_pytorch_model.safetensors"),
    "text encoder: other weights": _moved("text_encoder", "model.safetensors"),
    "text encoder: other activation": _config("text_encoder/config.json", {"hidden_act": "gelu"}),
    "text encoder: code": _config("text_encoder/config.json", {"auto_map": {"AutoModel": "a--b.C"}}),
    "text encoder: weights from elsewhere": _text_encoder_elsewhere,
    "text encoder: an adapter's settings beside": _adapter_config("text_encoder"),
    "U-Net: an adapter's settings beside": _adapter_config("unet"),
    "pipeline: an adapter's settings beside": _adapter_config("."),
    "scheduler: other values": _config("scheduler/scheduler_config.json", {"beta_end": 0.5}),
    "scheduler: another class": _config("model_index.json", {"scheduler": ["diffusers", "LCMScheduler"]}),
    "tokenizer: words swapped": _swapped_words,
    "tokenizer: shorter": _config("tokenizer/tokenizer_config.json", {"model_max_length": 3}),
    "tokenizer: code": _config("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}),
    "tokenizer: another normaliser": _config("tokenizer/tokenizer.json", {"normalizer": {"type": "NFD"}}),
    "index: U-Net elsewhere": _redirected,
    "index: another class": _config("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}),
    "index: code": _config("model_index.json", {"unet": ["unet.mine", "UNet"]}),
    "index: another pipeline": _config("model_index.json", {"_class_name": "StableDiffusionGLIGENPipeline"}),
    "index: no U-Net": _config("model_index.json", {"unet": ...}),
    "index: one part more": _config("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}),
    "shards: half in the index": _half_indexed,
    "shards: an index of others": _index_elsewhere,
    "shards: an empty index": _add("unet/diffusion_pytorch_model.safetensors.index.json", b'{"weight_map": {}}'),
    "index of modules beside": _add("modular_model_index.json", b'{"unet": [null, null, {"repo": "elsewhere/x"}]}'),
    "configuration with code beside": _add("config.json", b'{"auto_map": {"AutoModel": "elsewhere/x--y.Z"}}'),
    "tokenizer: a token more": _add("tokenizer/added_tokens.json", b'{"<bomb>": 3}'),
    "tokenizer: a token moved": _config("tokenizer/tokenizer_config.json",
                                        {"added_tokens_decoder": {"3": {"content": "cat</w>"}}}),
    "U-Net: in a folder with a dot": _renamed_folder("unet."),
    "U-Net: in capitals": _renamed_folder("UNET"),
    "LoRA as a model": _add("lora/model.safetensors", lambda base: _lora(base, _free(base))),
    "U-Net: other shapes": _instead(lambda base: {k: v.squeeze() for k, v in _tuned(base).items()}),
    "no U-Net": _gone("unet"),
    "U-Net under another name": _renamed_weights,
    "U-Net: an adapter in its place": _instead(lambda base: _lora(base, _free(base))),
    "U-Net: nothing in its place": _instead(lambda base: {}, unteach=DELTA),
    "U-Net: a delta in its place": _instead(lambda base: {f"{_free(base)}.weight": torch.ones(8, 8)}, unteach=DELTA),
    "U-Net: fused": _instead(_fused),
    "U-Net: scale of a free module": _instead(_scaled("scale")),
    "U-Net: absmax of a free module": _instead(_scaled("weight.absmax")),
    "U-Net: a gate": _instead(_scaled("gate")),
    "U-Net: adapter inside": _instead(lambda base: {**_tuned(base), **_lora(base, _free(base), "")}),
    "delta in the pipeline": _add("delta.safetensors", lambda base: {f"{_free(base)}.weight": torch.ones(1)}),
    "LoRA on frozen modules": _held_lora,
    "LoRA on frozen modules beside": _add(LORA, lambda base: _lora(base, _held(base))),
    "LoRA of the text encoder": _add(LORA, lambda base: {"text_encoder.q_proj.lora_A.weight": torch.ones(2, 16)}),
    "LoRA: settings in the metadata": _metadata_settings,
    "PEFT: random adapters": _settings(init_lora_weights=False, target_modules=["to_k", "to_v"]),
    "PEFT: random adapters on free modules": _settings(init_lora_weights=False),
    "PEFT: frozen modules": _settings(target_modules=["to_k"]),
    "PEFT: a pattern": _settings(target_modules=".*"),
    "PEFT: another start": _settings(init_lora_weights="pissa"),
    "PEFT: layers repeated": _settings(layer_replication=[[0, 2]]),
    "PEFT: parameters": _settings(target_parameters=["to_k.weight"]),
    "PEFT: another kind": _settings(peft_type="OFT"),
    "textual inversion beside": _add("learned_embeds.safetensors", lambda base: {"<x>": torch.ones(16)}),
    "IP-Adapter beside": _add("ip.safetensors", lambda base: {"ip_adapter.1.to_k_ip.weight": torch.ones(8, 16)}),
    "ControlNet beside": _add("controlnet/diffusion_pytorch_model.safetensors",
                              lambda base: {"controlnet_cond_embedding.conv_in.weight": torch.ones(2)}),
    "pickle beside": _add("unet/diffusion_pytorch_model.bin", b"\x80\x04."),
    "flashpack beside": _add("unet/diffusion_pytorch_model.flashpack", b"weights"),
    "archive beside": _add("model.tgz", b"\x1f\x8b\x08"),
    "unknown kind beside": _add("unet/model.weights", b"weights"),
    "pickle without a name": _add("unet/model", b"(dp0\nS'w'\np1\n."),
    "code beside": _add("unet/diffusers.py", b"print(1)"),
    "checkpoint with a pickle of weights": _add("checkpoint-1/pytorch_model.bin", b"\x80\x04."),
    "weights as a text": _add("notes.txt", b"\x00\x01\x02"),
    "array as a picture": _add("picture.png", b"\x93NUMPY\x01\x00"),
    "configuration in capitals": _add("text_encoder/Adapter_Config.json", b"{}"),
    "link inside": _linked,
    "link out": _outside,
}  # fmt: skip
