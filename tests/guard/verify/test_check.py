"""Verify passes who kept to the manifest and catches who did not; what it cannot know it says."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests import toys
from tests.guard.checkpoints import FREE, HELD, TO_K, WEIGHTS, World, base, flip, world

from unteach.core import state
from unteach.core.seeds import generator
from unteach.diffusion.model import load as load_model
from unteach.errors import CheckpointError, ConfigError
from unteach.guard.enforce import adapter_targets, enforce
from unteach.guard.manifest import FreezeManifest, stamp
from unteach.guard.signing import keygen, sign
from unteach.guard.verify import verify
from unteach.guard.verify.hashes import model_digest
from unteach.guard.verify.names import compvis, vae_compvis
from unteach.guard.verify.reader import Safetensors
from unteach.guard.verify.verdict import Verdict


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("toy") / "sd")


@pytest.fixture
def w(toy: Path, tmp_path: Path) -> World:
    return world(toy, tmp_path)


def check(w: World, candidate: Path, **more: Any) -> Verdict:
    return verify(w.base, candidate, w.manifest, **more)


def kinds(verdict: Verdict) -> set[tuple[str, str]]:
    return {(finding.kind, finding.outcome) for finding in verdict.findings}


def only(verdict: Verdict, kind: str, outcome: str, tensor: str | None = None) -> None:
    assert kinds(verdict) == {(kind, outcome)} and verdict.outcome == outcome, verdict.text()
    assert verdict.exit_code == {"conform": 0, "violates": 1, "undecidable": 3}[outcome]
    if tensor is not None:
        assert [finding.tensor for finding in verdict.findings] == [tensor]


def conforms(verdict: Verdict, cast: str | None = "fp32", count: int = len(HELD)) -> None:
    assert verdict.outcome == "conform" and verdict.exit_code == 0 and verdict.findings == (), verdict.text()
    if cast is not None:
        assert verdict.compared == {cast: count}


def moved(w: World) -> dict[str, torch.Tensor]:
    """Everything that may move, moved."""
    return {
        name: tensor if name in HELD else tensor + 0.1 * torch.randn(tensor.shape, generator=generator(0, name))
        for name, tensor in w.tensors.items()
    }


# ------------------------------------------------------------------------------------------- honest candidates


def test_an_honest_guarded_fine_tune_conforms_and_an_open_one_does_not(w: World) -> None:
    for guarded in (True, False):
        model = load_model(w.base)
        unet = model.pipe.unet
        unet.requires_grad_(True)
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-3)
        held = enforce(unet, optimizer, frozen=w.manifest) if guarded else None
        g = generator(0, "train")
        for _ in range(2):
            x, text = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 5, 16, generator=g)
            loss = (unet(x, torch.tensor([3, 500]), text).sample - torch.randn(2, 4, 8, 8, generator=g)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if held is not None:
            held.verify()
        out = w.folder / f"trained-{guarded}"
        model.pipe.save_pretrained(out, safe_serialization=True)
        verdict = check(w, out)
        if guarded:
            conforms(verdict)
            assert not torch.equal(load_file(out / WEIGHTS)["conv_in.weight"], w.tensors["conv_in.weight"])
        else:
            assert {finding.tensor for finding in verdict.findings} == set(HELD) and verdict.outcome == "violates"


def test_every_layout_of_an_honest_fine_tune_conforms(w: World) -> None:
    tensors = moved(w)
    conforms(check(w, w.base))
    conforms(check(w, w.file(tensors)))
    conforms(check(w, w.file(tensors, "only/diffusion_pytorch_model.safetensors").parent))
    path = w.copy()
    save_file(tensors, path / WEIGHTS)
    conforms(check(w, path))
    for given in (w.base / "unet", w.base / WEIGHTS):  # the base may be given in parts, too
        conforms(verify(given, w.file(tensors), w.manifest))
    manifest = w.manifest.save(w.folder / "manifest.json")
    conforms(verify(str(w.base), str(path), str(manifest)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_conform(w: World, dtype: torch.dtype) -> None:
    cast = {"torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float64": "fp32 in wider numbers"}[str(dtype)]
    conforms(check(w, w.file({name: tensor.to(dtype) for name, tensor in moved(w).items()})), cast)
    if dtype is torch.float64:
        return
    conforms(check(w, toys.build("sd", w.folder / "half", dtype=dtype)), cast)  # the whole pipeline
    wide = {name: tensor.to(dtype).float() for name, tensor in moved(w).items()}
    widened = check(w, w.file(wide))
    conforms(widened, None)
    assert widened.compared == {f"{cast} in wider numbers": len(HELD) - 1, "fp32": 1}  # a norm's weights are all one
    flip(wide[HELD[0]], 1, 0)
    only(check(w, w.file(wide)), "changed", "violates", HELD[0])


def test_a_base_in_half_precision(w: World) -> None:
    half = {name: tensor.half() for name, tensor in w.tensors.items()}
    file = w.file(half, "base.safetensors")
    manifest = FreezeManifest.from_model(half, HELD)
    trained = {name: tensor.float() if name in HELD else tensor.float() + 1 for name, tensor in half.items()}
    conforms(verify(file, w.file(trained), manifest))
    trained[HELD[0]] = trained[HELD[0]] * (1 + 1e-6)
    only(verify(file, w.file(trained), manifest), "changed", "violates", HELD[0])


def shards(w: World, tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    names = sorted(tensors)
    table = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        table |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return table


def test_sharded(w: World) -> None:
    tensors = moved(w)
    folder = w.folder / "pipe" / "unet"
    table = shards(w, tensors, folder)
    conforms(check(w, folder.parent))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    other = sorted(set(table.values()) - {table[HELD[0]]})[0]
    index.write_text(json.dumps({"weight_map": {**table, HELD[0]: other}}))
    only(check(w, folder.parent), "index", "violates")
    index.write_text(json.dumps({"weight_map": table}))
    path = folder / table[HELD[0]]
    part = load_file(path)
    flip(part[HELD[0]], 0, 0)
    save_file(part, path)
    only(check(w, folder), "changed", "violates", HELD[0])


def test_a_second_copy_in_the_folder_is_checked_too(w: World) -> None:
    path = w.copy()
    tensors = moved(w)
    flip(tensors[HELD[0]], 0, 0)
    save_file(tensors, path / WEIGHTS.replace(".safetensors", ".fp16.safetensors"))
    only(check(w, path), "changed", "violates", HELD[0])


def single(w: World, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pipeline as one CompVis checkpoint."""
    names = compvis(tensors)
    found = {f"model.diffusion_model.{names[name]}": tensor for name, tensor in tensors.items()}
    text = load_file(w.base / "text_encoder" / "model.safetensors")
    head = "cond_stage_model.transformer.text_model."  # whichever release of transformers wrote the toy
    found |= {head + name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    vae = load_file(w.base / "vae" / "diffusion_pytorch_model.safetensors")
    names = vae_compvis(vae)
    for name, tensor in vae.items():
        conv = ".attn_1." in names[name] and tensor.ndim == 2
        found[f"first_stage_model.{names[name]}"] = tensor[..., None, None] if conv else tensor
    return found | {"betas": torch.ones(3), "model_ema.decay": torch.tensor(0.9)}


def test_a_single_file_in_compvis_names(w: World) -> None:
    tensors = moved(w)
    conforms(check(w, w.file(single(w, tensors))))
    key = f"model.diffusion_model.{compvis(tensors)[HELD[1]]}"
    changed = single(w, tensors)
    changed[key] = changed[key].clone()
    flip(changed[key], 3, 7)
    only(check(w, w.file(changed)), "changed", "violates", HELD[1])
    average = single(w, tensors) | {key.replace(".", "").replace("modeldiffusion", "model_ema.diffusion"): changed[key]}
    only(check(w, w.file(average)), "changed", "violates", HELD[1])
    extra = single(w, tensors) | {"control_model.input.weight": torch.ones(2)}
    only(check(w, w.file(extra)), "extra", "violates", "control_model.input.weight")
    for part in ("first_stage_model.decoder.conv_in.weight", "cond_stage_model.transformer.text_model.embeddings."):
        other = single(w, tensors)
        name = next(name for name in other if name.startswith(part) and not name.endswith("position_ids"))
        other[name] = other[name] + 0.01
        only(check(w, w.file(other)), "component", "violates")
    clip = single(w, tensors) | {"cond_stage_model.model.ln_final.weight": torch.ones(2)}
    only(check(w, w.file(clip)), "uncompared", "undecidable")


def test_a_part_in_a_single_file_that_the_base_has_not(w: World) -> None:
    file = w.file(single(w, moved(w)))
    bare = w.copy("bare")
    shutil.rmtree(bare / "vae")
    only(verify(bare, file, w.manifest), "component", "violates")
    only(verify(bare / "unet", file, w.manifest), "uncompared", "undecidable")


def fuse(tensors: dict[str, torch.Tensor], attention: str, parts: str) -> None:
    weights = [tensors.pop(f"{attention}.to_{part}.weight") for part in parts]
    tensors[f"{attention}.to_{parts}.weight"] = torch.cat(weights)


def test_fused_projections(w: World) -> None:
    tensors = moved(w)
    fuse(tensors, TO_K.removesuffix(".to_k"), "kv")
    fuse(tensors, "up_blocks.0.attentions.1.transformer_blocks.0.attn1", "qkv")
    conforms(check(w, w.file(tensors)))
    fused = tensors[TO_K.replace("to_k", "to_kv.weight")]
    flip(fused, fused.numel() - 1, 0)  # in to_v
    only(check(w, w.file(tensors)), "changed", "violates", TO_K.replace("to_k", "to_v.weight"))
    tensors[TO_K.replace("to_k", "to_kv.weight")] = fused[1:]
    assert ("shape", "violates") in kinds(check(w, w.file(tensors)))


# ------------------------------------------------------------------------------------------- violations


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("bit", [0, 31])
def test_one_flipped_bit(w: World, name: str, bit: int) -> None:
    last = w.tensors[name].numel() - 1
    path = w.changed(lambda tensors: flip(tensors[name], last, bit))
    verdict = check(w, path)
    only(verdict, "changed", "violates", name)
    (finding,) = verdict.findings
    assert finding.changed == 1 / w.tensors[name].numel() and finding.largest is not None
    old = w.tensors[name].view(-1)[last].double()
    new = load_file(path / WEIGHTS)[name].view(-1)[last].double()
    assert finding.largest == abs(float(new - old))


def test_one_flipped_bit_of_a_cast(w: World) -> None:
    half = {name: tensor.half() for name, tensor in w.tensors.items()}
    flip(half[HELD[2]], 0, 0)
    only(check(w, w.file(half)), "changed", "violates", HELD[2])


def test_a_value_that_is_no_number(w: World) -> None:
    verdict = check(w, w.changed(lambda tensors: tensors[HELD[0]].fill_(float("nan"))))
    only(verdict, "changed", "violates", HELD[0])
    assert verdict.findings[0].largest == float("inf") and json.dumps(verdict.to_dict(), allow_nan=False)


def test_renamed_removed_and_added_tensors(w: World) -> None:
    for name in (HELD[0], "conv_out.bias"):
        renamed = check(w, w.changed(lambda t, n=name: t.update({n + "_": t.pop(n)})))  # type: ignore[misc]
        assert kinds(renamed) == {("missing", "violates"), ("extra", "violates")}
        assert {finding.tensor for finding in renamed.findings} == {name, name + "_"}
        shutil.rmtree(w.folder / "candidate")
    only(check(w, w.changed(lambda t: t.pop(HELD[0]))), "missing", "violates", HELD[0])
    shutil.rmtree(w.folder / "candidate")
    added = w.changed(lambda t: t.update({"conv_in.gate": torch.ones(1)}))
    only(check(w, added), "extra", "violates", "conv_in.gate")
    only(check(w, w.file({**w.tensors, "betas": torch.ones(3)})), "extra", "violates", "betas")  # CompVis has that
    adapter = {f"{FREE}.lora_A.weight": torch.ones(1, 16)}
    only(check(w, w.file({**w.tensors, **adapter})), "adapter", "violates")


def test_swapped_tensors_of_one_shape(w: World) -> None:
    k, v = HELD[1], HELD[2]
    verdict = check(w, w.changed(lambda t: t.update({k: t[v], v: t[k]})))
    assert {finding.tensor for finding in verdict.findings} == {k, v} and verdict.outcome == "violates"


def test_other_components(w: World) -> None:
    for part, file in (("text_encoder", "model.safetensors"), ("vae", "diffusion_pytorch_model.safetensors")):
        path = w.copy(part)
        tensors = load_file(path / part / file)
        tensors[max(tensors, key=lambda name: tensors[name].numel())].view(-1)[0] += 1
        save_file(tensors, path / part / file)
        verdict = check(w, path)
        only(verdict, "component", "violates")
        assert verdict.findings[0].largest == pytest.approx(1, rel=1e-3)
    # A part that the base has not, an average of the weights beside them, an adapter and an embedding on top.
    for extra, tensors in {
        "controlnet/diffusion_pytorch_model.safetensors": {"controlnet_cond_embedding.conv_in.weight": torch.ones(2)},
        "learned_embeds.safetensors": {"<bomb>": torch.ones(16)},
        "pytorch_lora_weights.safetensors": {f"unet.{TO_K}.lora_A.weight": torch.ones(1, 16)},
    }.items():
        path = w.copy(extra.replace("/", "-"))
        (path / extra).parent.mkdir(exist_ok=True)
        save_file(tensors, path / extra)
        assert check(w, path).outcome == "violates"
    path = w.copy("missing")
    shutil.rmtree(path / "vae")
    conforms(check(w, path))


def test_other_components_rounded_or_in_part(w: World) -> None:
    for part, file in (("text_encoder", "model.safetensors"), ("vae", "diffusion_pytorch_model.safetensors")):
        tensors = load_file(w.base / part / file)
        for dtype in (torch.float16, torch.bfloat16):
            path = w.copy(f"{part}-{dtype}")
            save_file({name: tensor.to(dtype).to(tensor.dtype) for name, tensor in tensors.items()}, path / part / file)
            conforms(check(w, path))
        tensors.pop(next(name for name in tensors if name.endswith("weight")))
        save_file(tensors, path / part / file)
        only(check(w, path), "component", "violates")


def test_components_without_a_base_to_compare_with(w: World) -> None:
    unet = w.base / "unet"
    verdict = verify(unet, w.base, w.manifest)
    only(verdict, "uncompared", "undecidable")
    digests = {}
    for part, file in (("text_encoder", "model.safetensors"), ("vae", "diffusion_pytorch_model.safetensors")):
        with Safetensors(w.base / part / file) as opened:
            digests[part] = model_digest(opened.entries)
    manifest = replace(w.manifest, components=digests)
    conforms(verify(unet, w.base, manifest))
    conforms(verify(w.base, w.base, manifest))
    with pytest.raises(CheckpointError, match=r"its 'vae' is another"):
        verify(w.base, w.base, replace(w.manifest, components={"vae": "0" * 64}))


def test_a_checkpoint_of_another_base(w: World, tmp_path: Path) -> None:
    other = toys.build("sd", tmp_path / "other", seed=1)
    verdict = check(w, other)
    assert {f.tensor for f in verdict.findings if f.kind == "changed"} >= {HELD[1], HELD[3]}
    assert verdict.outcome == "violates"
    wide = toys.build("sdxl", tmp_path / "sdxl")
    assert ("shape", "violates") in kinds(check(w, wide / WEIGHTS))
    with pytest.raises(CheckpointError, match=r"manifest is not of this base.*other weights"):
        verify(other, other, w.manifest)
    with pytest.raises(CheckpointError, match=r"manifest is not of this base.*other tensors"):
        verify(wide, wide, w.manifest)
    with pytest.raises(CheckpointError, match=r"manifest is not of this base.*no weights"):
        verify(w.base / "vae" / "config.json", w.base, w.manifest)


# ------------------------------------------------------------------------------------------- manifests


def test_forged_edited_and_swapped_manifests(w: World, tmp_path: Path) -> None:
    keygen(tmp_path / "key.pem", tmp_path / "key.pub")
    public = tmp_path / "key.pub"
    signature = sign(w.manifest, tmp_path / "key.pem").save(tmp_path / "sig.json")
    verdict = check(w, w.base, signature=signature, public_key=public)
    conforms(verdict)
    assert verdict.signed_by is not None and verdict.signed_by[:12] in verdict.text()
    assert "NOT CHECKED" in check(w, w.base).text()
    lax = FreezeManifest.from_model(w.tensors, ())
    with pytest.raises(CheckpointError, match="edited or swapped"):
        verify(w.base, w.base, lax, signature=signature, public_key=public)
    keygen(tmp_path / "evil.pem", tmp_path / "evil.pub")
    forged = sign(lax, tmp_path / "evil.pem")
    with pytest.raises(CheckpointError, match="not made with this key"):
        verify(w.base, w.base, lax, signature=forged, public_key=public)
    with pytest.raises(ConfigError, match="both"):
        check(w, w.base, signature=signature)
    with pytest.raises(ConfigError, match="both"):
        check(w, w.base, public_key=public)


def test_a_stamped_base_takes_its_own_manifest_alone(w: World) -> None:
    path = w.copy("stamped")
    stamp(path / WEIGHTS, w.manifest)
    conforms(verify(path, w.base, w.manifest))
    conforms(check(w, path))
    lax = FreezeManifest.from_model(w.tensors, ())
    with pytest.raises(CheckpointError, match="swapped or edited"):
        verify(path, w.base, lax)


def test_a_manifest_of_nothing_and_of_all(w: World) -> None:
    conforms(verify(w.base, w.file(moved(w)), FreezeManifest.from_model(w.tensors, ())), None)
    everything = FreezeManifest.from_model(w.tensors, w.tensors)
    conforms(verify(w.base, w.base, everything), count=len(w.tensors))
    assert len(verify(w.base, w.file(moved(w)), everything).findings) == len(w.tensors) - len(HELD)


# ------------------------------------------------------------------------------------------- adapters


def lora(stem: str, a: str = "lora_A.weight", b: str = "lora_B.weight", more: str = "") -> dict[str, torch.Tensor]:
    found = {f"{stem}.{a}": torch.ones(2, 16), f"{stem}.{b}": torch.ones(16, 2)}
    return found | ({f"{stem}.{more}": torch.tensor(1.0)} if more else {})


def _flat(name: str) -> str:
    return name.replace(".", "_")


def forms(module: str) -> dict[str, dict[str, torch.Tensor]]:
    theirs = compvis([f"{name}.weight" for name in (FREE, TO_K)] + ["up_blocks.0.resnets.0.conv1.weight"])
    other = theirs[f"{module}.weight"].removesuffix(".weight")
    attention, _, to = module.rpartition(".")
    return {
        "diffusers": lora(f"unet.{module}"),
        "diffusers without prefix": lora(module),
        "diffusers before peft": lora(f"unet.{module}", "lora.down.weight", "lora.up.weight"),
        "processor": lora(f"unet.{attention}.processor.{to}_lora", "down.weight", "up.weight"),
        "peft": lora(f"base_model.model.{module}"),
        "peft, adapter's name": lora(f"base_model.model.{module}", "lora_A.default.weight", "lora_B.default.weight"),
        "kohya": lora(f"lora_unet_{_flat(module)}", "lora_down.weight", "lora_up.weight", "alpha"),
        "kohya, CompVis": lora(f"lora_unet_{_flat(other)}", "lora_down.weight", "lora_up.weight", "alpha"),
        "CompVis": lora(f"model.diffusion_model.{other}", "lora_down.weight", "lora_up.weight"),
        "lokr": {f"lycoris_{_flat(module)}.lokr_w1": torch.ones(2, 2), f"lycoris_{_flat(module)}.alpha": torch.ones(1)},
        "dora": lora(f"unet.{module}", more="lora_magnitude_vector"),
        "full": {f"lora_unet_{_flat(module)}.diff": torch.ones(16, 16)},
    }


@pytest.mark.parametrize("form", sorted(forms(FREE)))
def test_adapters(w: World, form: str) -> None:
    fine = check(w, w.file(forms(FREE)[form], "lora.safetensors"))
    conforms(fine, None)
    assert fine.adapters == 1
    both = forms(FREE)[form] | forms(TO_K)[form]
    only(check(w, w.file(both, "lora.safetensors")), "adapter", "violates", TO_K)


def test_a_peft_folder_as_peft_writes_it(w: World) -> None:
    unet = load_model(w.base).pipe.unet
    for name, targets in {
        "free": adapter_targets(unet, w.manifest, ["to_k", "to_q", "conv1"]), "all": ["to_k", "to_q", "conv1"],
    }.items():  # fmt: skip
        unet = load_model(w.base).pipe.unet
        config = LoraConfig(r=2, target_modules=targets, modules_to_save=["conv_out"])
        get_peft_model(unet, config).save_pretrained(w.folder / name)
        verdict = check(w, w.folder / name)
        if name == "free":
            conforms(verdict, None)
            assert verdict.adapters == len(targets)
        else:
            assert {f.tensor for f in verdict.findings} == {
                TO_K, "mid_block.resnets.0.conv1", "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
            }  # fmt: skip
            assert kinds(verdict) == {("adapter", "violates")}


def test_tensors_that_an_adapter_file_replaces(w: World) -> None:
    head = "base_model.model."
    kept = {head + "conv_in.bias": w.tensors["conv_in.bias"], head + "conv_out.bias": torch.zeros(4)}
    conforms(check(w, w.file(kept)), count=1)
    kept[head + "conv_in.bias"] = kept[head + "conv_in.bias"] + 1
    only(check(w, w.file(kept)), "changed", "violates", "conv_in.bias")
    saved = {head + "mid_block.resnets.0.conv1.modules_to_save.default.weight": torch.zeros(16, 16, 3, 3)}
    only(check(w, w.file(saved)), "changed", "violates", "mid_block.resnets.0.conv1.weight")


def test_adapters_that_do_not_fit(w: World) -> None:
    text = lora("text_encoder.text_model.encoder.layers.0.self_attn.q_proj")
    only(check(w, w.file(text | lora(f"unet.{FREE}"))), "component", "violates")
    kohya = lora("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_down.weight", "lora_up.weight")
    only(check(w, w.file(kohya | lora(f"unet.{FREE}"))), "component", "violates")
    owner = lora("unet.conv_in")  # its weight is free, its bias is not: enforce refuses that too
    only(check(w, w.file(owner)), "adapter", "violates", "conv_in")
    wrong = {f"unet.{FREE}.lora_A.weight": torch.ones(2, 7)}
    only(check(w, w.file(wrong)), "shape", "violates")
    container = {"unet.mid_block.lora_A.weight": torch.ones(2, 7)}
    only(check(w, w.file(container)), "adapter", "violates", "mid_block")
    unknown = lora(f"unet.{FREE}") | {"unet.down_blocks.9.attn2.to_k.lora_A.weight": torch.ones(2, 2)}
    only(check(w, w.file(unknown)), "unknown", "undecidable")
    secret = lora(f"unet.{FREE}") | {"unet.secret": torch.ones(2, 2)}
    only(check(w, w.file(secret)), "unknown", "undecidable", "unet.secret")
    embedding = {"emb_params": torch.ones(2, 16)}
    only(check(w, w.file(embedding)), "component", "violates")


def test_deltas_of_this_library(w: World) -> None:
    model = load_model(w.base)
    fine = toys.change(model, [f"{FREE}.weight"]).save(w.folder / "d.safetensors")
    conforms(check(w, fine), None)
    bad = toys.change(model, [f"{TO_K}.weight", f"{FREE}.weight"]).save(w.folder / "d.safetensors")
    only(check(w, bad), "changed", "violates", f"{TO_K}.weight")
    # A checkpoint that only calls itself a delta is still checked as what a loader would make of it.
    zeros = {**w.tensors, HELD[0]: torch.zeros_like(w.tensors[HELD[0]])}
    path = w.file(zeros, unteach=state.canonical({"format": "unteach-delta"}))
    only(check(w, path), "changed", "violates", HELD[0])


# ------------------------------------------------------------------------------------------- undecidable


def test_quantised(w: World) -> None:
    for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn):
        tensors = {**moved(w), HELD[1]: w.tensors[HELD[1]].to(dtype)}
        only(check(w, w.file(tensors)), "quantised", "undecidable", HELD[1])
        free = {**moved(w), f"{FREE}.weight": w.tensors[f"{FREE}.weight"].to(dtype)}
        conforms(check(w, w.file(free)))
    packed = moved(w)
    packed[HELD[1]] = torch.zeros(128, 1, dtype=torch.uint8)  # bitsandbytes, four bits
    packed |= {f"{HELD[1]}.absmax": torch.ones(4), f"{HELD[1]}.quant_map": torch.ones(16)}
    packed |= {f"{HELD[1]}.quant_state.bitsandbytes__nf4": torch.ones(8, dtype=torch.uint8)}
    only(check(w, w.file(packed)), "quantised", "undecidable", HELD[1])
    gone = moved(w)
    del gone[HELD[1]]
    gone[HELD[1].replace(".weight", ".qweight")] = torch.zeros(2, dtype=torch.int32)
    only(check(w, w.file(gone)), "quantised", "undecidable", HELD[1])
    # Scales beside numbers that were changed do not make the change undecidable.
    changed = {**moved(w), HELD[1]: w.tensors[HELD[1]] + 1, f"{HELD[1]}.absmax": torch.ones(4)}
    assert check(w, w.file(changed)).outcome == "violates"


def test_merged(w: World) -> None:
    def merge(other: float) -> dict[str, torch.Tensor]:
        return {name: 0.3 * tensor + 0.7 * (tensor + other) for name, tensor in w.tensors.items()}

    assert not torch.equal(merge(0)[HELD[1]], w.tensors[HELD[1]])
    assert kinds(check(w, w.file(merge(0), sd_merge_recipe="{}"))) == {("merged", "undecidable")}
    assert kinds(check(w, w.file(merge(0)))) == {("changed", "violates")}
    assert check(w, w.file(merge(0.01), sd_merge_recipe="{}")).outcome == "violates"
    conforms(check(w, w.file(moved(w), sd_merge_recipe="{}")))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl", ".PT", ".dat"])
def test_pickles_are_never_opened(w: World, suffix: str) -> None:
    hit = w.folder / "hit"
    file = w.folder / f"model{suffix}"
    torch.save({"w": Bomb(hit)}, file)
    verdict = check(w, file)
    assert verdict.outcome == "undecidable" and not hit.exists()
    path = w.copy()
    shutil.copy(file, path / "unet" / f"extra{suffix}")
    assert check(w, path).outcome == "undecidable" and not hit.exists()
    with pytest.raises(CheckpointError, match="well-formed"):
        check(w, file.rename(w.folder / "disguised.safetensors"))
    assert not hit.exists()


def test_code_and_hidden_weights(w: World) -> None:
    for name, content in {
        "unet/evil.py": b"raise SystemExit", "weights.gguf": b"GGUF", "notes.txt": (w.base / WEIGHTS).read_bytes(),
    }.items():  # fmt: skip
        path = w.copy(name.replace("/", "-"))
        (path / name).write_bytes(content)
        verdict = check(w, path)
        assert verdict.outcome == "undecidable" and verdict.findings[0].where == name


def test_nothing_to_check(w: World) -> None:
    (w.folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no weights"):
        check(w, w.folder / "empty")
    with pytest.raises(CheckpointError, match="there is no"):
        check(w, w.folder / "nowhere")
    shutil.copytree(w.base / "vae", w.folder / "part" / "vae")
    only(check(w, w.folder / "part"), "unknown", "undecidable")


def test_what_a_verdict_says(w: World) -> None:
    verdict = check(w, w.file({**moved(w), **{name: w.tensors[name] + 1 for name in HELD[:3]}}))
    content = json.loads(json.dumps(verdict.to_dict()))
    assert content["outcome"] == "violates" and content["exit_code"] == 1 and len(content["findings"]) == 3
    assert content["policy"] == w.manifest.policy and content["manifest"] == w.manifest.digest()
    lines = verdict.text(most=2).splitlines()
    assert lines[0] == "VIOLATES" and "100.00%" in lines[1] and "and 1 more" in lines[3]


def test_the_commands_of_the_page(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[3] / "docs" / "guard-verify.md"
    publish, judge = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(w.folder)
    shutil.copytree(w.base, "model")
    exec(publish, {"frozen": list(HELD), "scores": dict.fromkeys(HELD, 0.5)})
    for name in ("freeze-manifest.json", "freeze-manifest.sig.json"):
        shutil.copy(f"model/{name}", name)
    shutil.copytree("model", "base")
    shutil.copytree("model", "upload")
    names: dict[str, Any] = {}
    exec(judge, names)
    conforms(names["verdict"])
    assert names["verdict"].policy == "no-twemoji-1" and names["verdict"].signed_by


# ------------------------------------------------------------------------------------------- memory

BIG = """
import json, resource, sys
from unteach.guard.verify.reader import Safetensors
from unteach.guard.manifest import FreezeManifest
from unteach.guard.verify import verify
base, candidate = sys.argv[1:3]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Safetensors(base) as file:
    manifest = FreezeManifest.from_readable(file.entries, ["a.weight"])
verdict = verify(base, candidate, manifest)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([verdict.outcome, verdict.findings[0].largest, (after - before) // 1024]))
"""


def sparse(path: Path, megabytes: dict[str, int]) -> dict[str, int]:
    """A safetensors file of zeros that takes no room; returns where each tensor begins."""
    header, here = {}, 0
    for name, size in megabytes.items():
        stop = here + (size << 20)
        header[name] = {"dtype": "F32", "shape": [size << 9, 512], "data_offsets": [here, stop]}
        here = stop
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + here)
    return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}  # type: ignore[index]


def test_files_larger_than_the_memory_it_takes(tmp_path: Path) -> None:
    base, candidate = tmp_path / "base.safetensors", tmp_path / "candidate.safetensors"
    for path in (base, candidate):
        starts = sparse(path, {"a.weight": 200, "b.weight": 100})
    with candidate.open("r+b") as file:  # one number in the last piece
        file.seek(starts["b.weight"] - 4)
        file.write(b"\x00\x00\x80\x3f")
    run = subprocess.run(
        [sys.executable, "-c", BIG, str(base), str(candidate)], capture_output=True, text=True, check=True
    )
    outcome, largest, growth = json.loads(run.stdout)
    assert outcome == "violates" and largest == 1.0
    assert growth < 130  # MiB, of files of 300 and tensors of 200
