"""Which tensors to freeze: the learned mask beside its controls on the bundled model, in one resumable command.

    python benchmarks/guard_masks.py --work FOLDER [--workers 2] [--seeds 0 1 2]

Pairs of domains that the model has never seen. "digits": handwritten digits are illegal, the icons of emojione-v1
innocent (the mask is learned with them), musical instruments innocent and not used for the mask. "icons" (``--pairs``):
the icon set fxemoji is illegal instead, which is drawn much like the innocent one. Pictures are split, masks made and
attacks run by the library functions of `unteach guard learn` and `unteach attack relearn`: half of a domain's icons to
learn masks from, half to attack with; the attack is measured on views that it was not trained on.

A fixed attack (full fine-tuning, AdamW) is run under every mask. ``recovery`` is how far the denoising loss on the
attacked domain's held-out views falls, as a share of how far it falls without a mask (1 = as without, 0 = nothing was
learned); ``selectivity`` is the recovery of an innocent domain less that of the illegal one. Noise, timesteps and data
order are the same for all masks of a seed. Splits, mask learning and attacks differ from seed to seed.

Then the attacker who ignores the mask, and curves over rates, lengths, full and LoRA.

Writes FOLDER/PAIR/masks-SEED.json, FOLDER/PAIR/SEED/*.json (one a cell) and benchmarks/results/guard_masks.json.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unteach.attack import Probes, Relearn
from unteach.canvas import model_path
from unteach.commands.guard import CANVAS_SETTINGS
from unteach.core import jobs, state
from unteach.core.loop import Step
from unteach.diffusion.domains import ROLES, Domain, Domains
from unteach.diffusion.examples import Examples
from unteach.diffusion.model import Model, load
from unteach.guard.budget import highest
from unteach.guard.data import GuardData, losses, relabelled
from unteach.guard.methods import Job, Selection, guards
from unteach.guard.methods.controls import matched, random_tensors
from unteach.guard.methods.learner import jaccard
from unteach.records import environment
from unteach.records.stats import paired_t, t_mean

OUT = Path(__file__).parent / "results" / "guard_masks.json"


@dataclass(frozen=True)
class Pair:
    """Domains of one table, and how many random masks of each kind stand beside the learned one."""

    illegal: str
    innocent: str
    unseen: str
    random: int
    whole: bool  # with the variants of mask learning, swapped labels and curves

    @property
    def domains(self) -> tuple[str, str, str]:
        return self.illegal, self.innocent, self.unseen


PAIRS = {
    "digits": Pair("digits", "emojione-v1", "instruments", 20, True),
    "icons": Pair("fxemoji", "emojione-v1", "instruments", 3, False),
}
RHO = 0.3
ATTACK: dict[str, Any] = {"steps": 40, "batch_size": 16, "learning_rate": 3e-4}
DRAWS = 2
POINTS: tuple[int, ...] = (20,)
CURVE_POINTS: tuple[int, ...] = (10, 20, 40, 80)
CURVES: tuple[tuple[Any, float], ...] = (
    ("full", 1e-4), ("full", 3e-4), ("full", 1e-3), ("lora", 1e-3), ("lora", 3e-3)
)  # fmt: skip
LEARN: dict[str, Any] = {"rho": RHO, **CANVAS_SETTINGS}
"""As `unteach guard learn` on the bundled model."""
OFFICIAL: dict[str, Any] = {"rho": RHO, "steps": 500, "relearn_steps": 100, "relearn_rate": 3e-4, "relearn_batch": 16}
"""The preset itself has the released 2,000 steps at 1e-5."""
PUBLISHED: dict[str, Any] = {"user_start": "published", "reset_every": 20}
VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "learned, user from published": PUBLISHED,
    "learned, user from published, half weight on innocent": PUBLISHED | {"innocent_weight": 0.5},
    "learned, user from published, raw losses": PUBLISHED | {"scale": "raw"},
}
CONTROLS: dict[str, dict[str, Any]] = {
    "cross-attention-kv": {}, "mid-up": {}, "magnitude": {}, "gradient-saliency": {}, "fisher-saliency": {},
    "gradient-share": {},
}  # fmt: skip
RANDOM = ("random-tensors", "random-matched")
FEW, MATCHED = 5, "random-matched to user from published"


@functools.cache
def model() -> Model:
    torch.set_num_threads(1)
    return load(model_path())


@functools.cache
def parts(name: str, seed: int) -> dict[str, Examples]:
    """One domain in its roles, as the commands split it: mask learning (user, publisher), attack, probe."""
    domain = Domain.read(name, model(), seed)
    return {role: domain.examples(model(), role) for role in ROLES}


@functools.cache
def data(pair: Pair, seed: int) -> GuardData:
    return GuardData.of(Domains.read([pair.illegal], [pair.innocent], model(), seed), model())


def select(name: str, sets: GuardData, seed: int, **settings: Any) -> Selection:
    """What a guard freezes of the bundled model."""
    mask = guards.make(name, **settings).run(model(), sets, Job(seed)).mask
    assert mask is not None
    return mask


def gradient_shares(pair: Pair, seed: int) -> dict[str, dict[str, float]]:
    """Each tensor's share of the sum of |mean gradient| on each domain's attack data: where a first step would go."""
    found = {}
    params = dict(model().denoiser.named_parameters())
    for name in pair.domains:
        part, total = parts(name, seed)["attack"], {}
        for value in params.values():
            value.requires_grad_(True)
        for k in range(6):
            step = Step(k, 6, seed)
            rows = step.randint("share rows", len(part), range(32))
            (each,) = losses(model(), [(part.latents[rows], part.conditioning.index(rows))], step, "share")
            grads = torch.autograd.grad(each.mean(), list(params.values()))
            total = {n: total.get(n, 0) + g for n, g in zip(params, grads, strict=True)}
        for value in params.values():
            value.requires_grad_(False)
        sums = {n: float(v.abs().sum()) for n, v in total.items()}
        found[name] = {n: v / sum(sums.values()) for n, v in sums.items()}
    return found


def learn_masks(job: tuple[str, int, str]) -> None:
    """Every mask of a pair and seed by name; learned once each, kept in files."""
    key, seed, work = job
    pair, folder = PAIRS[key], Path(work) / key
    path = folder / f"masks-{seed}.json"
    if path.exists():
        return

    def stored(name: str, guard: str, sets: GuardData, **settings: Any) -> Selection:
        file = folder / f"learned-{seed}" / f"{name}.json"
        if file.exists():
            kept = state.read_json(file)
            return Selection(tuple(kept["frozen"]), kept["scores"], steps=kept["steps"])
        begin = time.process_time()
        mask = select(guard, sets, seed, **settings)
        record = {"frozen": list(mask.frozen), "scores": dict(mask.scores), "steps": mask.steps}
        state.write_json(file, record | {"seconds": time.process_time() - begin, "log": mask.log})
        return mask

    sets, params = data(pair, seed), dict(model().denoiser.named_parameters())
    made = {
        name: stored(name, "freezeasguard", sets, **{**LEARN, **extra})
        for name, extra in list(VARIANTS.items())[: None if pair.whole else 1]
    }
    made["official"] = stored("official", "official", sets, **OFFICIAL)
    if pair.whole:
        made["labels swapped"] = stored("labels swapped", "freezeasguard", relabelled(sets, seed, "swap"), **LEARN)
    ours = made["learned"]
    found = {"none": [], **{name: sorted(mask.frozen) for name, mask in made.items()}}
    found |= {name: sorted(select(name, sets, seed, rho=RHO, **more).frozen) for name, more in CONTROLS.items()}
    found["inverted"] = sorted(highest(model(), {name: -x for name, x in ours.scores.items()}, RHO, "tensors"))
    for k in range(pair.random):
        found[f"random-tensors {k}"] = sorted(random_tensors(list(params), ours.frozen, 1000 * seed + k))
        found[f"random-matched {k}"] = sorted(matched(params, ours.frozen, 1000 * seed + k))
    for k in range(FEW if pair.whole else 0):
        like = made["learned, user from published"].frozen
        found[f"{MATCHED} {k}"] = sorted(matched(params, like, 1000 * seed + k))
    sizes = {name: value.numel() for name, value in params.items()}
    state.write_json(path, {"masks": found, "sizes": sizes, "gradient shares": gradient_shares(pair, seed)})


@dataclass(frozen=True)
class Cell:
    """One attack."""

    pair: str
    seed: int
    mask: str
    domain: str
    honoured: bool = True
    mode: Any = "full"
    rate: float = ATTACK["learning_rate"]
    curve: bool = False

    def path(self, work: Path) -> Path:
        kept = "" if self.honoured else " ignored"
        kind = f" {self.mode} {self.rate:g}" if self.curve else ""
        return work / self.pair / str(self.seed) / f"{self.domain} {self.mask}{kept}{kind}.json"


def cells(key: str, given: list[int]) -> Iterator[Cell]:
    """All attacks of a pair; the curves, of the first seed, last."""
    pair = PAIRS[key]
    names = ["none", *(VARIANTS if pair.whole else ["learned"]), "official", *CONTROLS, "inverted"]
    names += ["labels swapped"] if pair.whole else []
    names += [f"{name} {k}" for k in range(pair.random) for name in RANDOM]
    names += [f"{MATCHED} {k}" for k in range(FEW if pair.whole else 0)]
    for seed in given:
        for name in names:
            few = name.startswith("random") or not (pair.whole or name in ("none", "learned"))
            yield from (Cell(key, seed, name, domain) for domain in (pair.domains[:2] if few else pair.domains))
        yield Cell(key, seed, "learned", pair.illegal, honoured=False)
    for mode, rate in CURVES if pair.whole else ():
        for name in ("none", "learned", "learned, user from published"):
            yield Cell(key, given[0], name, pair.illegal, mode=mode, rate=rate, curve=True)
            if (mode, rate) in (("full", 3e-4), ("lora", 1e-3)):
                yield Cell(key, given[0], name, pair.innocent, mode=mode, rate=rate, curve=True)


def attack(job: tuple[Cell, str]) -> None:
    cell, work = job
    path, pair = cell.path(Path(work)), PAIRS[cell.pair]
    if path.exists():
        return
    masks = state.read_json(Path(work) / cell.pair / f"masks-{cell.seed}.json")["masks"]
    others = pair.domains if cell.curve or cell.mask in ("none", "learned") else (cell.domain,)
    points = CURVE_POINTS if cell.curve else POINTS
    settings = ATTACK | {"learning_rate": cell.rate} | ({"steps": max(CURVE_POINTS)} if cell.curve else {})
    curve = Relearn(mode=cell.mode, seed=cell.seed, eval_steps=points, **settings).run(
        model(),
        parts(cell.domain, cell.seed)["attack"],
        Probes({d: parts(d, cell.seed)["probe"] for d in others}, DRAWS),
        frozen=masks[cell.mask],
        honoured=cell.honoured,
        mask_data=[parts(d, cell.seed)[level] for d in pair.domains[:2] for level in ("user", "publisher")],
    )
    state.write_json(path, {"cell": asdict(cell), "curve": curve})


def group_of(record: dict[str, Any]) -> str:
    """Row of the table: random masks of one kind together."""
    name = record["cell"]["mask"]
    name = name.rsplit(" ", 1)[0] if name.startswith("random") else name
    return str(name) + ("" if record["cell"]["honoured"] else ", ignored")


def fall(record: dict[str, Any], probe: str, at: int) -> float:
    curve = record["curve"]
    return float(curve["losses"][probe][0] - curve["losses"][probe][curve["at"].index(at)])


Values = dict[str, dict[str, dict[int, list[float]]]]


def recoveries(records: list[dict[str, Any]], pair: Pair, at: int) -> Values:
    """Row -> domain -> seed -> recovery of each of its masks, in the order of the masks."""
    free = {
        (r["cell"]["seed"], r["cell"]["domain"]): fall(r, r["cell"]["domain"], at)
        for r in records
        if r["cell"]["mask"] == "none" and r["cell"]["honoured"]
    }
    rows: Values = {}
    for r in sorted(records, key=lambda r: str(r["cell"]["mask"])):
        c = r["cell"]
        share = fall(r, c["domain"], at) / free[c["seed"], c["domain"]]
        rows.setdefault(group_of(r), {}).setdefault(c["domain"], {}).setdefault(c["seed"], []).append(share)
    for row in rows.values():
        for key, good in (("selectivity", pair.innocent), ("selectivity, unseen", pair.unseen)):
            if good in row:
                bad = row[pair.illegal]
                row[key] = {s: [g - b for g, b in zip(row[good][s], bad[s], strict=True)] for s in bad}
    return rows


def summary(by_seed: dict[int, list[float]]) -> dict[str, Any]:
    """Mean over seeds with a t-interval (of the seeds' means), and the masks' range."""
    every = [value for values in by_seed.values() for value in values]
    spread = {"masks": len(every), "least": min(every), "most": max(every)}
    return {**vars(t_mean([statistics.mean(v) for v in by_seed.values()])), **spread, "seeds": by_seed}


def against(rows: Values, name: str, control: str, what: str) -> dict[str, Any]:
    """A mask's value less the mean of the control's masks of the same seed; and how many of them it exceeds."""
    ours, theirs = rows[name][what], rows[control][what]
    pairs = [(ours[seed][0], statistics.mean(theirs[seed])) for seed in ours]
    beaten = sum(ours[seed][0] > value for seed in ours for value in theirs[seed])
    test = paired_t(pairs)
    return {"difference": None if test is None else vars(test), "above": beaten, "of": sum(map(len, theirs.values()))}


def report(work: Path, key: str, given: list[int]) -> dict[str, Any]:
    """Everything of one pair."""
    pair = PAIRS[key]
    everything = [state.read_json(path) for seed in given for path in sorted((work / key / str(seed)).glob("*.json"))]
    records = [r for r in everything if not r["cell"]["curve"]]
    kept = {seed: state.read_json(work / key / f"masks-{seed}.json") for seed in given}
    pairs = [(a, b) for i, a in enumerate(given) for b in given[i + 1 :]]

    def share(names: list[str], of: dict[str, float]) -> float:
        return sum(of[name] for name in names) / sum(of.values())

    found: dict[str, Any] = {"domains": asdict(pair), "recovery": {}, "earlier": {}, "against": {}, "frozen": {}}
    for at, where in ((ATTACK["steps"], "recovery"), (POINTS[0], "earlier")):
        rows = recoveries(records, pair, at)
        found[where] = {g: {k: summary(v) for k, v in row.items()} for g, row in rows.items()}
    rows = recoveries(records, pair, ATTACK["steps"])
    for name in [n for n in (*VARIANTS, "official", "gradient-share") if n in rows]:
        for control in [c for c in (*RANDOM, MATCHED) if c in rows]:
            compared = [what for what in rows[name] if what in rows[control]]
            found["against"][f"{name} - {control}"] = {what: against(rows, name, control, what) for what in compared}
    for name in kept[given[0]]["masks"]:
        rows_ = [kept[seed]["masks"][name] for seed in given]
        found["frozen"][name] = {
            "tensors": [len(names) for names in rows_],
            "parameters": [share(names, kept[seed]["sizes"]) for names, seed in zip(rows_, given, strict=True)],
            "gradient": {
                d: [share(n, kept[s]["gradient shares"][d]) for n, s in zip(rows_, given, strict=True)]
                for d in pair.domains
            },
        }
    apart = {}
    for other in pair.domains[1:]:
        both = [(kept[s]["gradient shares"][pair.illegal], kept[s]["gradient shares"][other]) for s in given]
        apart[other] = [sum(abs(a[n] - b[n]) for n in a) / 2 for a, b in both]
    found["total variation of gradient shares"] = apart
    found["jaccard between seeds"] = {
        name: [jaccard(kept[a]["masks"][name], kept[b]["masks"][name]) for a, b in pairs]
        for name in (*VARIANTS, "official", "gradient-share", "random-tensors 0")
        if name in kept[given[0]]["masks"]
    }
    found["unprotected"] = {
        f"{r['cell']['domain']} seed {r['cell']['seed']}": r["curve"]["losses"][r["cell"]["domain"]]
        for r in records
        if r["cell"]["mask"] == "none"
    }
    found["others under the illegal attack"] = {
        f"{group_of(r)} seed {r['cell']['seed']}": {k: v for k, v in r["curve"]["losses"].items() if k != pair.illegal}
        for r in records
        if r["cell"]["domain"] == pair.illegal and group_of(r) in ("none", "learned", "learned, ignored")
    }
    found["curves"] = [
        {**r["cell"], "at": r["curve"]["at"], "losses": r["curve"]["losses"], "diverged": r["curve"]["diverged"]}
        for r in everything
        if r["cell"]["curve"]
    ]
    learned = sorted((work / key).glob("learned-*/learned.json"))
    found["seconds to learn a mask"] = [state.read_json(path)["seconds"] for path in learned]
    return found


def smoke() -> None:
    """As little as can be of everything, in this process: its numbers say nothing."""
    global POINTS, CURVE_POINTS, CURVES, DRAWS
    POINTS, CURVE_POINTS, CURVES, DRAWS = (1,), (1, 2), CURVES[1:4:2], 1
    tiny: dict[str, Any] = {"relearn_steps": 2, "batch_size": 2, "relearned": "last"}
    LEARN.update(tiny, steps=2, scale="raw")
    OFFICIAL.update(tiny, steps=2)
    CONTROLS["magnitude"] = tiny
    CONTROLS.update({name: {"samples": 2} for name in CONTROLS if name.startswith(("gradient", "fisher"))})
    ATTACK.update(steps=2, batch_size=2)
    PAIRS.update({key: replace(pair, random=1) for key, pair in PAIRS.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description="learned masks beside their controls")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=["digits"])
    parser.add_argument("--smoke", action="store_true", help="two steps of everything, to see whether it runs")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    work = str(given.work)
    if given.smoke:
        smoke()
    how: dict[str, Any] = {"engine": "serial"} if given.smoke else {"workers": given.workers}
    for key in given.pairs:
        list(jobs.each(learn_masks, [((key, seed, work),) for seed in given.seeds], **how))
        left = [(c, work) for c in cells(key, given.seeds) if not c.path(given.work).exists()]
        for done, _ in enumerate(jobs.each(attack, [(job,) for job in left], **how), start=1):
            if done % 20 == 0:
                print(f"{key}: {done} of {len(left)} attacks", flush=True)
    results = {key: report(given.work, key, given.seeds) for key in given.pairs}
    for key, found in results.items():
        print(f"\n{key}: recovery after {ATTACK['steps']} steps")
        for name, row in found["recovery"].items():
            print(f"{name:<36} " + ", ".join(f"{k} {v['mean']:.3f}" for k, v in row.items()))
        print(
            "Jaccard between seeds:", {k: [round(x, 2) for x in v] for k, v in found["jaccard between seeds"].items()}
        )
    settings = {
        "rho": RHO,
        "attack": ATTACK | {"draws": DRAWS},
        "learn": LEARN,
        "official": OFFICIAL,
        "variants": VARIANTS,
    }
    record = {"config": settings, "seeds": given.seeds, "pairs": results, "environment": vars(environment.collect())}
    state.write_json(given.out, record | {"command": "python benchmarks/guard_masks.py --work FOLDER"})


if __name__ == "__main__":
    main()
