"""DoCo beside its controls on the bundled model: a style and an object, equal training data and updates.

    python benchmarks/first_erasures.py --work FOLDER [--seeds 0 1 2] [--processes 2]

Arms: ``doco-canvas``; ``ablate-canvas`` (same anchors, same number of updates, no adversary, no surgery); ``uce`` (the
closed form as written, today's preset ``uce-plain``); ``none`` (the unchanged model). Each arm and seed is evaluated on
the demo protocol by both judges.
Resumable: what is in FOLDER is kept. Writes ``benchmarks/results/first_erasures.json``.
About 100 CPU-seconds an arm, concept and seed.
"""

import argparse
import itertools
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unteach.canvas import concepts, model_path
from unteach.canvas.judges import judges
from unteach.core import state
from unteach.diffusion.model import load
from unteach.erase import erase
from unteach.evaluate.suite import evaluate_canvas
from unteach.records import environment
from unteach.records.erasure import Results

CONCEPTS = ("twemoji", "bomb")
ARMS = ("doco-canvas", "ablate-canvas", "uce", "none")
METHODS = {"uce": "uce-plain"}
RESULT = Path(__file__).parent / "results" / "first_erasures.json"
NAMES = ("UA", "IRA", "CRA")


def run(job: tuple[str, str, int, Path]) -> tuple[str, str, int]:
    """One arm on one concept with one seed: erase, evaluate."""
    target, arm, seed, work = job
    torch.set_num_threads(1)
    model, concept = load(model_path()), concepts.concept(target)
    folder = work / target / arm / str(seed)
    begin = time.process_time()
    delta = None if arm == "none" else erase(model, concept, METHODS.get(arm, arm), seed=seed, out=folder)
    seconds = time.process_time() - begin
    evaluate_canvas(
        model, delta, concept, judges(), out=folder / "evaluation", method_seconds=seconds, num_inference_steps=12
    )
    return target, arm, seed


def summary(work: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """One row a concept, arm, measure, judge and prompt set: value of every seed with its interval."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for target, arm, seed in itertools.product(CONCEPTS, ARMS, seeds):
        file = work / target / arm / str(seed) / "evaluation" / "results.json"
        if not file.exists():
            continue
        results = Results.load(file)
        for metric in results.metrics:
            if metric.name in NAMES and metric.when == "after":
                key = (target, arm, metric.name, str(metric.judge), metric.prompts)
                row = rows.setdefault(
                    key, dict(zip(("concept", "arm", "measure", "judge", "prompts"), key, strict=True))
                )
                row.setdefault("seeds", {})[str(seed)] = [metric.value, metric.low, metric.high, metric.n]
                row.setdefault("seconds", {})[str(seed)] = results.cost.method_seconds
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    # The closed form and the unchanged model have no randomness of their own: one seed is all.
    jobs = [
        (target, arm, seed, args.work)
        for seed, arm, target in itertools.product(args.seeds, ARMS, CONCEPTS)
        if seed == args.seeds[0] or arm not in ("uce", "none")
    ]
    for _, done in jobs.each(run, [(job,) for job in jobs], args.processes):
        print(*done, flush=True)
        state.write_json(
            RESULT,
            {
                "command": "python benchmarks/first_erasures.py --work FOLDER --seeds "
                + " ".join(map(str, args.seeds)),
                "config": {"num_inference_steps": 12, "protocol": "demo", "seeds": args.seeds, "arms": ARMS},
                "environment": asdict(environment.collect()),
                "rows": summary(args.work, args.seeds),
            },
        )


if __name__ == "__main__":
    main()
