"""Which tensors to freeze: the learned mask beside its controls on the bundled model, in one resumable command.

    python benchmarks/guard_masks.py --work FOLDER [--workers 2] [--seeds 0 1 2]

Illegal: the icon set "fxemoji". Innocent: "emojione-v1" (used to learn the mask) and "instruments" (not used). Each
domain's icons are split by icon: some to learn masks from, others to attack with; the attack's icons are measured on
views that it was not trained on. A fixed attack (full fine-tuning, AdamW) is run under every mask; what is measured is
how far the denoising loss on held-out views falls, as a share of how far it falls without a mask (``recovery``: 1 = as
without a mask, 0 = nothing learned). Noise and timesteps are the same for all masks of a seed.

Writes FOLDER/cells/*.json and benchmarks/results/guard_masks.json.
"""

import argparse
import functools
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from unteach.attack.relearn import relearn
from unteach.canvas import model_path
from unteach.core import seeds, state
from unteach.data.emoji import adaptation
from unteach.diffusion.examples import Examples, encoded
from unteach.diffusion.finetune import Finetune, finetune
from unteach.diffusion.model import Model, load
from unteach.evaluate import environment
from unteach.evaluate.stats import t_mean
from unteach.guard.baselines import Case, baselines
from unteach.guard.config import make
from unteach.guard.data import GuardData
from unteach.guard.learn import jaccard, learn

OUT = Path(__file__).parent / "results" / "guard_masks.json"
ILLEGAL, INNOCENT, UNSEEN = "fxemoji", "emojione-v1", "instruments"
RHO = 0.3
VIEWS = 6
ATTACK = {"steps": 40, "batch_size": 16, "learning_rate": 1e-3, "draws": 1}
RANDOM = 20
LEARN = {"steps": 160, "relearn_steps": 100, "relearn_rate": 1e-3, "batch_size": 16, "user_rates": (3e-4, 1e-3)}
OFFICIAL = {"steps": 500, "relearn_steps": 100, "relearn_rate": 1e-3, "rho": RHO}
CONTROLS = ("cross-attention-kv", "mid-up", "magnitude", "gradient-saliency", "fisher-saliency", "inverted")


@functools.cache
def model() -> Model:
    torch.set_num_threads(1)
    return load(model_path())


@functools.cache
def parts(name: str, seed: int) -> dict[str, Examples]:
    """One domain as four disjoint sets: mask learning (user, publisher), attack, probe."""
    domain = adaptation()[name]
    count = len(domain.icons)
    rows = torch.arange(count).repeat(VIEWS)
    pictures = domain.views(rows, seeds.generator(0, "guard views", name))
    ids = [f"{name}/{icon}/view {k}" for k in range(VIEWS) for icon in range(count)]
    whole = encoded(model(), name, pictures, domain.captions() * VIEWS, ids)
    order = seeds.permutation(count, seed, f"icons of {name}").tolist()
    mask, attack = set(order[: count // 2]), set(order[count // 2 :])

    def rows_of(icons: set[int], views: range) -> list[int]:
        return [k * count + icon for k in views for icon in range(count) if icon in icons]

    return {
        "user": whole.rows(rows_of(mask, range(0, 3)), f"{name}/user"),
        "publisher": whole.rows(rows_of(mask, range(3, 6)), f"{name}/publisher"),
        "attack": whole.rows(rows_of(attack, range(0, 4)), f"{name}/attack"),
        "probe": whole.rows(rows_of(attack, range(4, 6)), f"{name}/probe"),
    }


def data(seed: int, swapped: bool = False) -> GuardData:
    bad, good = parts(ILLEGAL, seed), parts(INNOCENT, seed)
    bad, good = (good, bad) if swapped else (bad, good)
    return GuardData([bad["user"]], [bad["publisher"]], [good["user"]], [good["publisher"]])


def relearned(seed: int) -> dict[str, torch.Tensor]:
    """θ_ft of the mask's data, for the baselines that look at it; the model is restored."""
    m, sets = model(), data(seed)
    before = {name: value.detach().clone() for name, value in m.denoiser.named_parameters()}
    both = [*sets.illegal_user, *sets.innocent_user]
    steps, rate = LEARN["relearn_steps"], LEARN["relearn_rate"]
    for k, part in enumerate(both):
        config = Finetune(steps=steps // len(both), batch_size=16, learning_rate=rate)
        finetune(m, part.batches, config, seed=seed + k)
    found = {name: value.detach().clone() for name, value in m.denoiser.named_parameters()}
    with torch.no_grad():
        for name, value in m.denoiser.named_parameters():
            value.copy_(before[name])
    m.weights_changed()
    return found


def masks_of(seed: int, work: Path) -> dict[str, list[str]]:
    """Every mask of a seed by name; learned once, kept in a file."""
    path = work / f"masks-{seed}.json"
    if path.exists():
        known: dict[str, list[str]] = state.read_json(path)["masks"]
        return known
    made = {
        "learned": learn(model(), data(seed), make("freezeasguard", rho=RHO, **LEARN), seed=seed),
        "official": learn(model(), data(seed), make("official", **OFFICIAL), seed=seed),
        "labels swapped": learn(model(), data(seed, True), make("freezeasguard", rho=RHO, **LEARN), seed=seed),
    }
    found = {"none": [], **{name: list(mask.frozen) for name, mask in made.items()}}
    after, ours = relearned(seed), made["learned"]
    for name in CONTROLS:
        case = Case(model(), RHO, seed=seed, relearned=after, data=data(seed), learned=ours)
        found[name] = sorted(baselines[name](case))
    for k in range(RANDOM):
        for name in ("random-tensors", "random-matched"):
            case = Case(model(), RHO, seed=1000 * seed + k, learned=ours)
            found[f"{name} {k}"] = sorted(baselines[name](case))
    state.write_json(path, {"masks": found, "scores": {name: mask.scores for name, mask in made.items()}})
    return found


def cells(seed: int, names: list[str]) -> Iterator[tuple[str, str]]:
    """(mask, domain) to attack; random masks only on the two domains that the mask was made for."""
    for name in names:
        for domain in (ILLEGAL, INNOCENT, UNSEEN):
            if domain != UNSEEN or not name.startswith("random"):
                yield name, domain


def work_on(seed: int, folder: str) -> int:
    """All cells of a seed that are not there yet."""
    work, done = Path(folder), 0
    masks = masks_of(seed, work)
    jobs = [(name, domain, True) for name, domain in cells(seed, list(masks))] + [("learned", ILLEGAL, False)]
    for name, domain, honoured in jobs:
        path = work / "cells" / str(seed) / f"{domain} {name}{'' if honoured else ' ignored'}.json".replace("/", "-")
        if path.exists():
            continue
        sets = parts(domain, seed)
        others = {d: parts(d, seed)["probe"] for d in (ILLEGAL, INNOCENT, UNSEEN)}
        curve = relearn(
            model(),
            sets["attack"],
            frozen=masks[name],
            honoured=honoured,
            seed=seed,
            probes=others,
            mask_data=[parts(d, seed)[level] for d in (ILLEGAL, INNOCENT) for level in ("user", "publisher")],
            **ATTACK,
        )
        record = {"seed": seed, "mask": name, "domain": domain, "honoured": honoured, "curve": curve.to_dict()}
        state.write_json(path, record)
        done += 1
    return done


def table(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Recovery by mask and domain: the fall of the loss as a share of the fall without a mask, over seeds."""

    def fall(record: dict[str, Any]) -> float:
        losses = record["curve"]["losses"][record["domain"]]
        return float(losses[0] - losses[-1])

    free = {(r["seed"], r["domain"]): fall(r) for r in records if r["mask"] == "none"}
    rows: dict[str, dict[str, dict[int, list[float]]]] = {}
    for r in records:
        group = r["mask"].rsplit(" ", 1)[0] if r["mask"].startswith("random") else r["mask"]
        group += "" if r["honoured"] else ", ignored"
        share = fall(r) / free[r["seed"], r["domain"]]
        rows.setdefault(group, {}).setdefault(r["domain"], {}).setdefault(r["seed"], []).append(share)
    found: dict[str, dict[str, Any]] = {}
    for group, by_domain in rows.items():
        found[group] = {}
        for domain, by_seed in by_domain.items():
            means = [statistics.mean(values) for values in by_seed.values()]
            everything = [value for values in by_seed.values() for value in values]
            found[group][domain] = {
                **vars(t_mean(means)),
                "masks": len(everything),
                "least": min(everything),
                "most": max(everything),
                "seeds": {str(seed): values for seed, values in by_seed.items()},
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="learned masks beside their controls")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for seed, count in zip(
            given.seeds, pool.map(work_on, given.seeds, [str(given.work)] * len(given.seeds)), strict=True
        ):
            print(f"seed {seed}: {count} cells measured in this sitting", flush=True)
    records = [state.read_json(path) for path in sorted((given.work / "cells").rglob("*.json"))]
    masks = {seed: state.read_json(given.work / f"masks-{seed}.json")["masks"] for seed in given.seeds}
    pairs = [(a, b) for i, a in enumerate(given.seeds) for b in given.seeds[i + 1 :]]
    overlap = {name: [jaccard(masks[a][name], masks[b][name]) for a, b in pairs] for name in ("learned", "official")}
    shown = table(records)
    for name, row in shown.items():
        parts_ = ", ".join(f"{domain} {cell['mean']:.2f}" for domain, cell in row.items())
        print(f"{name:<24} {parts_}")
    print("Jaccard between seeds:", {k: [round(x, 2) for x in v] for k, v in overlap.items()})
    config = {"rho": RHO, "attack": ATTACK, "learn": LEARN, "official": OFFICIAL, "random": RANDOM}
    record = {"config": config, "seeds": given.seeds, "recovery": shown, "jaccard between seeds": overlap}
    command = "python benchmarks/guard_masks.py --work FOLDER"
    state.write_json(OUT, {**record, "environment": vars(environment.collect()), "command": command})


if __name__ == "__main__":
    main()
