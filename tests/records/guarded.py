"""Made-up masks and attacks with real tensor names, as plain JSON data. None of their numbers was measured."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from unteach.core import state

DIGEST = "d" * 64
SMALL = {
    "conv_in.weight": (4, 4, 3, 3),
    "conv_in.bias": (4,),
    "down_blocks.0.resnets.0.norm1.weight": (4,),
    "down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (4, 6),
    "mid_block.resnets.0.conv1.bias": (4,),
    "up_blocks.0.resnets.0.conv1.weight": (4, 8, 3, 3),
    "conv_out.weight": (4, 4, 3, 3),
}


def mask(
    shapes: Mapping[str, Sequence[int]] = SMALL, *, rho: float | None = 0.3, scored: bool = True, **more: Any
) -> dict[str, Any]:
    """``rho`` of the tensors frozen: those of the highest of made-up scores that favour cross-attention."""
    luck = random.Random(0)
    score = {n: min(1.0, max(0.0, luck.gauss(0.55 if "attn2" in n else 0.3, 0.15))) for n in shapes}
    kept = set(sorted(shapes, key=lambda n: -score[n])[: round((rho if rho is not None else 0.3) * len(shapes))])
    return {
        "format": "unteach-mask",
        "version": 1,
        "method": {"guard": "freezeasguard", "rho": rho, "steps": 60},
        "seed": 0,
        "model": {"name": "canvas", "digest": DIGEST},
        "component": "unet",
        "tensors": [
            {"name": n, "shape": list(shape), "frozen": n in kept, "score": score[n] if scored else None}
            for n, shape in shapes.items()
        ],
        "budget": {"measure": "tensors", "rho": rho},
        "log": [
            {"step": k, "mean": 0.3, "largest": 1e-3, "jaccard": 1 - 0.4 * 0.93**k * luck.random()}
            for k in range(1, 61, 2)
        ],
        "steps": 60,
        "data": {
            "illegal": ["fxemoji"],
            "innocent": ["emojione-v1"],
            "digests": {"illegal user": "a" * 64},
            "seed": 0,
        },
        "seconds": 12.3,
        "environment": {"python": "3.11", "torch": "2.10"},
        "command": "unteach guard learn --illegal fxemoji --innocent emojione-v1 --out guard",
        **more,
    }


def frozen(of: Mapping[str, Any]) -> list[str]:
    return [t["name"] for t in of["tensors"] if t["frozen"]]


DOMAINS = (("fxemoji", "illegal"), ("emojione-v1", "innocent"), ("instruments", "unseen"))
KEPT = {"fxemoji": 0.6, "emojione-v1": 0.95, "instruments": 0.9}


def attacks(
    of: Mapping[str, Any] | None,
    *,
    kept: Mapping[str, float] = KEPT,
    domains: Sequence[tuple[str, str]] = DOMAINS,
    modes: Sequence[str] = ("full", "lora"),
    rates: Sequence[float] = (3e-4, 1e-3),
    seeds: Sequence[int] = (0, 1, 2),
    at: Sequence[int] = (0, 10, 20, 40),
    ignore: bool = True,
    noise: float = 0.01,
    learned: bool = True,
    diverged: Sequence[tuple[str, str, float, int, str]] = (),
    **more: Any,
) -> dict[str, Any]:
    """Attacks on a mask (or on none): ``kept`` is the share of the unprotected fall with the mask kept.

    ``diverged``: (domain, mode, rate, seed, arm) that end after the second point.
    """
    names = [name for name, _ in domains]
    digest = state.fingerprint(sorted(frozen(of))) if of else ""
    arms = ["unprotected", *(["kept", *(["ignored"] if ignore else [])] if of else [])]
    records = []
    for domain, mode, rate, seed in ((d, m, r, s) for d in names for m in modes for r in rates for s in seeds):
        luck = random.Random(f"{domain} {mode} {rate} {seed}")
        depth = 0.05 * (0.6 if mode == "lora" else 1.0) * (rate / 1e-3) ** 0.4 * (1 + luck.gauss(0, noise))
        plain: dict[str, list[float]] = {}
        for arm in arms:
            part = (kept[domain] + luck.gauss(0, noise)) if arm == "kept" else 1.0
            points = list(at[:2] if (domain, mode, rate, seed, arm) in diverged else at)
            losses = {}
            for probe in names:
                fall = depth * part if probe == domain else -0.1 * depth
                fall = fall if learned else -abs(fall)
                losses[probe] = [0.2 - fall * (1 - 0.5 ** (step / 10)) for step in points]
            plain = plain or losses
            recovery = {p: [_share(losses[p], plain[p], i) for i in range(len(points))] for p in names}
            records.append(
                {
                    "domain": domain,
                    "mask": "unprotected" if arm == "unprotected" else "freezeasguard",
                    "recovery": recovery,
                    "mode": mode,
                    "honoured": arm != "ignored",
                    "frozen": digest if arm != "unprotected" else state.fingerprint([]),
                    "frozen_tensors": len(frozen(of)) if of and arm != "unprotected" else 0,
                    "trained_tensors": 200,
                    "trained_parameters": 3_000_000,
                    "steps": max(at),
                    "learning_rate": rate,
                    "batch_size": 16,
                    "rank": 4 if mode == "lora" else 0,
                    "seed": seed,
                    "data": [domain, "e" * 64],
                    "probes": dict.fromkeys(names, "f" * 64),
                    "at": points,
                    "losses": losses,
                    "diverged": len(points) < len(at),
                    "seconds": 3.0,
                }
            )
    count = {"tensors": len(frozen(of)), "of": len(of["tensors"])} if of else {}
    return {
        "format": "unteach-relearning",
        "version": 1,
        "model": {"name": "canvas", "digest": DIGEST},
        "mask": {"name": "freezeasguard", "digest": digest, **count} if of else None,
        "domains": [{"name": name, "role": role, "images": 100} for name, role in domains],
        "probes": names,
        "records": records,
        "environment": {"python": "3.11"},
        "command": "unteach attack relearn --guard guard --out guard/attack",
        **more,
    }


def _share(losses: Sequence[float], plain: Sequence[float], index: int) -> float | None:
    if index >= len(plain):
        return None
    possible = plain[0] - plain[index]
    return (losses[0] - losses[index]) / possible if possible > 0 else None
