"""Forge guarded pipelines in many ways, and hand honest ones in too: no forgery may conform, every honest one must.

    python benchmarks/security/forgeries.py --work FOLDER

A forgery of weights is a lie about the frozen tensors (what they hold) in a container (where the file lies, in which
layout) under a disguise (what the file says it is); all pairs of lies and containers are made, disguises are dealt out
by the seed. The others leave the weights as they are and change what a loader makes of them: configurations, indexes,
adapters and their settings, other parts, names. Bases: toy pipelines of the real classes (Stable Diffusion 1 with a
safety checker, and SDXL) with a random mask on 30 % of the tensors, stamped as ``guard apply`` does.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.security.tricks import HONEST, TRICKS, honest_weights, replace_weights  # noqa: E402
from tests import toys  # noqa: E402

from unteach.core import seeds, state  # noqa: E402
from unteach.errors import UnteachError  # noqa: E402
from unteach.guard.manifest import FreezeManifest, stamp  # noqa: E402
from unteach.guard.verify import verify  # noqa: E402
from unteach.guard.verify.names import compvis  # noqa: E402
from unteach.guard.verify.reader import Safetensors  # noqa: E402
from unteach.records import environment  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "security_forgeries.json"
UNET = "unet/diffusion_pytorch_model.safetensors"
SEED = 0
RHO = 0.3
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Base:
    """A published pipeline and its manifest."""

    name: str
    folder: Path
    manifest: FreezeManifest

    @property
    def held(self) -> list[str]:
        return [t.name for t in self.manifest.tensors if t.frozen]


def publish(kind: str, folder: Path, seed: int = SEED) -> Base:
    """A toy pipeline with a mask on a share of its tensors, as it would be published."""
    toys.build(kind, folder, seed=seed)
    if kind == "sd":
        _safety_checker(folder)
    with Safetensors(folder / UNET) as file:
        names = sorted(file.entries)
        order = seeds.permutation(len(names), seed, "forgeries", kind).tolist()
        held = {names[i] for i in order[: int(RHO * len(names))]}
        held |= {name for name in names if name.endswith("attentions.0.transformer_blocks.0.attn2.to_k.weight")}
        manifest = FreezeManifest.from_readable(file.entries, held, created="2026-01-01T00:00:00+00:00")
    stamp(folder / UNET, manifest)
    return Base(kind, folder, manifest)


def _safety_checker(folder: Path) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {**tiny, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=words, vision_config={**tiny, "image_size": 16, "patch_size": 8})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionSafetyChecker(config).save_pretrained(folder / "safety_checker")
    state.write_json(folder / "feature_extractor" / "preprocessor_config.json", {"crop_size": 16, "size": 16})
    index = state.read_json(folder / "model_index.json")
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    state.write_json(folder / "model_index.json", index | {"feature_extractor": ["transformers", "CLIPImageProcessor"]})


# ------------------------------------------------------------------------------------------------ lies


def _each(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors, list[str]], Tensors]:
    return lambda tensors, held: {k: change(v) if k in held else v for k, v in tensors.items()}


def _one_bit(tensors: Tensors, held: list[str]) -> Tensors:
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed[held[-1]].view(torch.uint8).view(-1)[0] ^= 1
    return changed


def _swapped(tensors: Tensors, held: list[str]) -> Tensors:
    shapes: dict[tuple[int, ...], str] = {}
    for name in held:
        other = shapes.setdefault(tuple(tensors[name].shape), name)
        if other != name and not torch.equal(tensors[name], tensors[other]):
            return {**tensors, name: tensors[other].clone(), other: tensors[name].clone()}
    raise AssertionError("no two frozen tensors of one shape")


LIES: Mapping[str, Callable[[Tensors, list[str]], Tensors]] = {
    "zero": _each(torch.zeros_like),
    "trained": _each(lambda t: t + 0.01 * t.std(unbiased=False).clamp(min=1e-3)),
    "scaled": _each(lambda t: t * (1 + 1e-6) + 1e-7),
    "not a number": _each(lambda t: torch.full_like(t, float("nan"))),
    "negated zero and sign": _each(lambda t: -t),
    "one bit": _one_bit,
    "swapped": _swapped,
    "left out": lambda tensors, held: {k: v for k, v in tensors.items() if k not in held},
    "one left out": lambda tensors, held: {k: v for k, v in tensors.items() if k != held[0]},
    "renamed": lambda tensors, held: {f"{k}_" if k in held else k: v for k, v in tensors.items()},
    "8 bits": _each(lambda t: (t * 64).clamp(-127, 127).to(torch.int8)),
    "a finer cast": _each(lambda t: t.half().float() + 2.0**-30),
    "another shape": _each(lambda t: t.reshape(-1)[:-1].clone() if t.numel() > 1 else t.repeat(2)),
    "only half": lambda tensors, held: dict(list(sorted(tensors.items()))[: len(tensors) // 2]),
}
DISGUISES: Mapping[str, dict[str, str]] = {
    "none": {},
    "delta": {"unteach": state.canonical({"format": "unteach-delta"})},
    "merge": {"sd_merge_recipe": "{}", "format": "pt"},
    "peft": {"lora_adapter_metadata": "{}", "format": "pt"},
}


# ------------------------------------------------------------------------------------------------ containers


def _pipeline(base: Base, tensors: Tensors, out: Path, disguise: dict[str, str]) -> Path:
    shutil.copytree(base.folder, out)
    save_file(tensors, out / UNET, disguise or None)
    return out


def _component(base: Base, tensors: Tensors, out: Path, disguise: dict[str, str]) -> Path:
    return _pipeline(base, tensors, out, disguise) / "unet"


def _sharded(base: Base, tensors: Tensors, out: Path, disguise: dict[str, str]) -> Path:
    shutil.copytree(base.folder, out)
    (out / UNET).unlink()
    replace_weights(out / "unet", tensors, shards=2, metadata=disguise)
    return out


def _beside(place: str) -> Callable[[Base, Tensors, Path, dict[str, str]], Path]:
    """A second set of weights beside the honest one."""

    def make(base: Base, tensors: Tensors, out: Path, disguise: dict[str, str]) -> Path:
        shutil.copytree(base.folder, out)
        folder = out / Path(place).parent
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(base.folder / "unet" / "config.json", folder) if folder.name.startswith("unet_") else None
        save_file(tensors, out / place, disguise or None)
        return out

    return make


def _nested(base: Base, tensors: Tensors, out: Path, disguise: dict[str, str]) -> Path:
    shutil.copytree(base.folder, out)
    _pipeline(base, tensors, out / "more" / "model", disguise)
    return out


def _single(base: Base, tensors: Tensors, out: Path, disguise: dict[str, str]) -> Path:
    out.mkdir(parents=True)
    save_file(tensors, out / "weights.safetensors", disguise or None)
    return out / "weights.safetensors"


def _compvis(base: Base, tensors: Tensors, out: Path, disguise: dict[str, str]) -> Path:
    names = compvis([t.name for t in base.manifest.tensors])
    made = {f"model.diffusion_model.{names.get(k, k)}": v for k, v in tensors.items()}
    return _single(base, made, out, disguise)


CONTAINERS: Mapping[str, Callable[[Base, Tensors, Path, dict[str, str]], Path]] = {
    "pipeline": _pipeline,
    "component": _component,
    "shards": _sharded,
    "variant": _beside("unet/diffusion_pytorch_model.fp16.safetensors"),
    "other name": _beside("unet/model.safetensors"),
    "top of the pipeline": _beside("diffusion_pytorch_model.safetensors"),
    "an average": _beside("unet_ema/diffusion_pytorch_model.safetensors"),
    "checkpoint": _beside("checkpoint-5/unet/diffusion_pytorch_model.safetensors"),
    "folder in folder": _beside("unet/unet/diffusion_pytorch_model.safetensors"),
    "capital letters": _beside("UNet/diffusion_pytorch_model.safetensors"),
    "nested pipeline": _nested,
    "file": _single,
    "CompVis": _compvis,
}
ALONE = ("file", "CompVis")
"""There a change of weights is one by right when it says so, and leaves the frozen tensors out."""


# ------------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class Case:
    """One upload: its name, whether it is honest, and what makes it."""

    name: str
    honest: bool
    make: Callable[[Base, Path], Path]


def cases(base: Base, seed: int = SEED) -> list[Case]:
    """All uploads of one base."""
    found = [Case(f"honest: {name}", True, make) for name, make in HONEST.items()]
    found += [Case(name, False, make) for name, make in TRICKS.items()]
    pairs = [(lie, container) for lie in LIES for container in CONTAINERS]
    for i, (lie, container) in enumerate(pairs):
        kinds = [d for d in DISGUISES if d != "delta" or container not in ALONE]
        disguise = kinds[seeds.permutation(len(kinds), seed, "disguise", i)[0]]
        found.append(Case(f"{lie}, {container}, {disguise}", False, _weights(lie, container, disguise, seed)))
    return found


def _weights(lie: str, container: str, disguise: str, seed: int) -> Callable[[Base, Path], Path]:
    def make(base: Base, out: Path) -> Path:
        tensors = honest_weights(load_file(base.folder / UNET), base.held, seed)
        return CONTAINERS[container](base, LIES[lie](tensors, base.held), out, DISGUISES[disguise])

    return make


def fingerprint(path: Path) -> str:
    """Of an upload's files and names, to know that no two are the same."""
    sha = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        sha.update(f"{file.relative_to(path.parent if path.is_file() else path)}|".encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()


def run(base: Base, chosen: list[Case], work: Path) -> Iterator[dict[str, Any]]:
    """Make each upload, verify it, and say what the verdict was ("error" for none)."""
    for case in chosen:
        out = Path(tempfile.mkdtemp(dir=work)) / "upload"
        try:
            path = case.make(base, out)
            print_ = fingerprint(path)
            begin = time.monotonic()
            try:
                verdict = verify(base.folder, path, base.manifest)
                outcome, kinds = verdict.outcome, sorted({finding.kind for finding in verdict.findings})
            except UnteachError as error:
                outcome, kinds = "error", [type(error).__name__]
            seconds = round(time.monotonic() - begin, 3)
            row = {"name": case.name, "base": base.name, "honest": case.honest, "outcome": outcome, "kinds": kinds}
            yield {**row, "upload": print_, "seconds": seconds}
        finally:
            shutil.rmtree(out.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for kind in ("sd", "sdxl"):
        base = publish(kind, arguments.work / kind, arguments.seed)
        for row in run(base, cases(base, arguments.seed), arguments.work):
            rows.append(row)
            wrong = (row["outcome"] == "conform") != row["honest"]
            if wrong:
                print("WRONG", row)
    forged, honest = ([r for r in rows if r["honest"] is honest] for honest in (False, True))
    counts = {
        "forgeries": len({row["upload"] for row in forged}),
        "forgeries by outcome": dict(Counter(row["outcome"] for row in forged)),
        "honest uploads": len({row["upload"] for row in honest}),
        "honest uploads by outcome": dict(Counter(row["outcome"] for row in honest)),
        "slowest, seconds": max(row["seconds"] for row in rows),
    }
    print(json.dumps(counts, indent=2))
    config = {
        "seed": arguments.seed, "frozen share of tensors": RHO, "lies": list(LIES), "containers": list(CONTAINERS),
        "disguises": list(DISGUISES), "tricks": list(TRICKS), "honest": list(HONEST), "bases": ["sd", "sdxl"],
    }  # fmt: skip
    record = {
        "config": config,
        "counts": counts,
        "uploads": [{k: v for k, v in r.items() if k != "seconds"} for r in rows],
    }
    record |= {
        "environment": vars(environment.collect()),
        "command": "python benchmarks/security/forgeries.py --work FOLDER",
    }
    state.write_json(OUT, json.loads(state.canonical(record)))


if __name__ == "__main__":
    main()
