"""The defaults on a model that the library has never seen: does the check say what a judge says?

    python benchmarks/strange_erasures.py --work FOLDER [--seeds 2] [--processes 2]

Trains the strange pipeline and its judge first (``strange_model.py``), then erases two styles and two objects that no
setting was chosen on, with as many prompts as docs/erase.md's example. Every run gets the built-in check's finding and
the judge's shares on templates that nothing else uses. Some runs must fail: too few steps, a tiny rate, an edit that is
far too strong. Resumable: what was trained and judged into FOLDER is kept, the check is made anew. Writes
``benchmarks/results/strange_erasures.json``. ``--choosing`` runs other concepts instead, to choose settings and
thresholds on, and writes nothing there.
"""

import argparse
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from strange_model import build, load_judge
from strange_world import HELD_OUT_TEMPLATES, OBJECTS, STYLES, caption

from unteach.core import seeds, state
from unteach.core.finding import Finding
from unteach.data.concepts import Concept
from unteach.diffusion import WeightDelta, load, sample
from unteach.diffusion.model import Model
from unteach.erase import erase
from unteach.records import environment
from unteach.records.stats import wilson

RESULT = Path(__file__).parent / "results" / "strange_erasures.json"
DRAWING = {"num_inference_steps": 12, "guidance_scale": 3.0}
# As many prompts as the example of docs/erase.md: two to erase, two to keep for a style, none for an object.
STYLE_PROMPTS = ("a {} ball", "a picture of a box in {} style")
OBJECT_PROMPTS = ("a neon {}", "a {} in the style of candy")
STYLE_RETAIN = ("a neon star", "a candy heart")


def concept(target: str, anchor: str) -> Concept:
    """The documented example, with this world's words."""
    if target in STYLES:
        return Concept(target=target, anchor=anchor, kind="style", prompts=STYLE_PROMPTS, retain=STYLE_RETAIN)
    return Concept(target=target, anchor=anchor, kind="object", prompts=OBJECT_PROMPTS)


@dataclass(frozen=True)
class Arm:
    """One run of the study."""

    name: str
    target: str
    anchor: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.target}-{self.name}-{self.seed}".replace(" ", "-")


TUNING = (("candy", "chalk"), ("heart", "star"))
"""Concepts that settings were chosen on."""
SEEN = (("brick", "sand"), ("ocean", "neon"), ("moon", "ring"), ("tent", "cross"))
"""Concepts of a first round, after which training no longer ended early by default."""
PAIRS = (("sand", "ocean"), ("chalk", "brick"), ("hourglass", "arrow"), ("cross", "star"))
"""Concepts that are reported."""


def arms(pairs: Sequence[tuple[str, str]] = PAIRS, numbers: Sequence[int] = (0,)) -> list[Arm]:
    """Every default on every concept, and runs that must fail or hurt."""
    style, other, thing, *_ = pairs
    found = []
    for seed in numbers:
        found += [Arm("uce", *pair, "uce", seed=seed) for pair in pairs]
        found += [Arm("uce plain", *pair, "uce-plain", seed=seed) for pair in (other, thing)]
        tiny = {"learning_rate": 1e-6, "steps": 150, "warm_up": 50}
        huge = {"pace": 2.0, "retain_weight": 0.0, "look_every": 0, "steps": 60}
        found += [
            Arm("ablate, five steps", *other, "ablate", {"steps": 5}, seed),
            Arm("doco, tiny rate", *thing, "doco", tiny, seed),
            Arm("ablate, huge rate", *style, "ablate", huge, seed),
        ]
        # In this order a study that was stopped has some of everything.
        for names in (("ablate", "doco"), ("doco", "ablate")):
            found += [Arm(name, *pair, name, seed=seed) for pair, name in zip(pairs, cycle(names), strict=False)]
    return found


def asked(one: Concept) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """(prompt, object, style) that name the target, and that do not; templates that nothing was trained on."""
    gone, rest = [], []
    for turn, template in enumerate(HELD_OUT_TEMPLATES):
        for o, name in enumerate(OBJECTS):
            for s, style in enumerate(STYLES):
                row = (caption(template, name, style), o, s)
                if one.target in (name, style):
                    gone.append(row)
                elif (o + s) % len(HELD_OUT_TEMPLATES) == turn:
                    rest.append(row)
    return gone, rest


def judged(model: Model, judge: Any, one: Concept) -> dict[str, list[int]]:
    """The judge's counts, ``[hits, n]`` each; pictures are the same noise for every run of a concept."""
    gone, rest = asked(one)
    rows = gone + rest
    numbers = [seeds.integer(7, "picture", i) for i in range(len(rows))]
    objects, styles = judge.judged(sample(model, [r[0] for r in rows], numbers, **DRAWING))
    told = torch.tensor([row[1:] for row in rows])
    right = torch.stack([objects == told[:, 0], styles == told[:, 1]], 1)
    place, n = (0, len(gone)) if one.kind == "object" else (1, len(gone))
    names, said = ((OBJECTS, objects), (STYLES, styles))[place]
    anchor = said[:n] == names.index(one.anchor)
    hits = {
        "UA": ~right[:n, place],
        "anchor": anchor,
        "anchor, the other domain right": anchor & right[:n, 1 - place],
        "kept objects": right[n:, 0],
        "kept styles": right[n:, 1],
        "kept both": right[n:].all(1),
    }
    return {name: [int(hit.sum()), len(hit)] for name, hit in hits.items()}


def run(job: tuple[Arm, Path]) -> dict[str, Any]:
    """Erase and judge (what is there is read), and let the built-in check look, always anew."""
    arm, work = job
    path, out = work / "runs" / f"{arm.key}.json", work / "runs" / arm.key
    torch.set_num_threads(1)
    model, one = load(work / "pipeline"), concept(arm.target, arm.anchor)
    if not path.exists():
        begin = time.process_time()
        delta = erase(model, one, arm.method, seed=arm.seed, out=out, check=False, **arm.settings)
        seconds = time.process_time() - begin
        with delta.apply(model):
            found = judged(model, load_judge(work), one)
        record = {"arm": {**asdict(arm), "settings": dict(arm.settings)}, "judge": found, "seconds": seconds}
        state.write_json(path, record | {"steps": delta.meta.get("steps_taken"), "kept": delta.meta.get("kept")})
    delta = WeightDelta.load(out / "delta.safetensors")
    bare = {key: value for key, value in delta.meta.items() if key != "check"}
    replace(delta, meta=bare).save(out / "delta.safetensors")
    begin = time.process_time()
    finding = erase(model, one, arm.method, seed=arm.seed, out=out, **arm.settings).check
    assert finding is not None
    told: dict[str, Any] = state.read_json(path)
    return {**told, "check": finding.to_dict(), "check seconds": time.process_time() - begin}


def unchanged(work: Path, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, list[int]]]:
    """The judge's counts without any erasure, by target."""
    path = work / f"unchanged-{'-'.join(target for target, _ in pairs)}.json"
    if not path.exists():
        model, judge = load(work / "pipeline"), load_judge(work)
        state.write_json(path, {target: judged(model, judge, concept(target, anchor)) for target, anchor in pairs})
    found: dict[str, dict[str, list[int]]] = state.read_json(path)
    return found


# The judge's own verdict; its shares are those of check_verdicts.py since a first round on other concepts (SEEN).
GONE, ANCHORED, KEPT = 0.9, 0.75, 0.9
"""Share of target pictures without the target; of those with the anchor; kept pictures against the unchanged model."""


def share(counts: list[int]) -> float:
    return counts[0] / counts[1]


def compared(record: dict[str, Any], before: dict[str, list[int]]) -> dict[str, Any]:
    """Judge and check as words, and whether they are the same words: of the concept, of the rest."""
    found, finding = record["judge"], Finding.from_dict(record["check"])
    if share(found["UA"]) >= GONE:
        word = "erased" if share(found["anchor"]) >= ANCHORED else "gone"
    else:
        word = "nothing" if share(found["UA"]) < 1 - GONE else "partly"
    rest = "kept" if share(found["kept both"]) >= KEPT * share(before["kept both"]) else "hurt"
    mine = finding.concepts[0].outcome, finding.rest_word
    words = {"judge": word, "judge rest": rest, "check": mine[0], "check rest": mine[1]}
    return words | {"same outcome": mine[0] == word, "agree": mine == (word, rest)}


def row(record: dict[str, Any], before: dict[str, list[int]]) -> dict[str, Any]:
    """A run as it is published: shares with Wilson intervals, the check's numbers, both verdicts."""
    shares = {name: asdict(wilson(*counts)) for name, counts in record["judge"].items()}
    effect = record["check"]["concepts"][0]
    numbers = {name: effect[name] for name in ("towards", "left", "moved", "apart")} | {"rest": record["check"]["rest"]}
    more = {name: record[name] for name in ("seconds", "check seconds", "steps", "kept")}
    return {"arm": record["arm"], "judge": shares, "check": numbers, "verdicts": compared(record, before), **more}


def write(rows: list[dict[str, Any]], missing: list[str], args: argparse.Namespace, pipeline: dict[str, float]) -> None:
    """The published file of the runs so far."""
    order = [arm.key for arm in arms(PAIRS, range(args.seeds))]
    config = {
        "drawing": DRAWING,
        "tuned on": TUNING,
        "seen in a first round": SEEN,
        "judge": {"gone": GONE, "anchor": ANCHORED, "kept": KEPT},
        "prompts": {"style": STYLE_PROMPTS, "object": OBJECT_PROMPTS, "retain": STYLE_RETAIN},
    }
    before = unchanged(args.work, PAIRS)
    state.write_json(
        RESULT,
        {
            "command": f"python benchmarks/strange_erasures.py --work FOLDER --seeds {args.seeds}",
            "config": config,
            "environment": asdict(environment.collect()),
            "pipeline": pipeline,
            "not run": missing,
            "unchanged": {
                target: {name: asdict(wilson(*counts)) for name, counts in found.items()}
                for target, found in before.items()
            },
            "rows": sorted(rows, key=lambda row: order.index(Arm(**row["arm"]).key)),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--choosing", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs = (*SEEN, *TUNING) if args.choosing else PAIRS
    chosen = arms(pairs, range(args.seeds))
    pipeline, rows, order = build(args.work), [], [arm.key for arm in chosen]
    before = unchanged(args.work, pairs)
    pool = multiprocessing.get_context("spawn").Pool(args.processes)
    for record in pool.imap_unordered(run, [(arm, args.work) for arm in chosen], chunksize=1):
        arm = Arm(**record["arm"])
        rows.append(row(record, before[arm.target]))
        told, shares, numbers = rows[-1]["verdicts"], rows[-1]["judge"], rows[-1]["check"]
        print(
            f"{arm.key:30}",
            " ".join(f"{name} {shares[name]['value']:.2f}" for name in ("UA", "anchor", "kept both")),
            " ".join(f"{name} {value:.2f}" for name, value in numbers.items()),
            f"judge {told['judge']}, {told['judge rest']}; check {told['check']}, {told['check rest']}",
            "" if told["agree"] else "<- differ",
            flush=True,
        )
        if not args.choosing:
            write(rows, [key for key in order if key not in {Arm(**row["arm"]).key for row in rows}], args, pipeline)
    print(f"{sum(row['verdicts']['agree'] for row in rows)} of {len(rows)} agree in every word")


if __name__ == "__main__":
    main()
