"""The check that ends every erasure beside the bundled model's judges: do their verdicts agree?

    python benchmarks/check_verdicts.py --work FOLDER [--concepts bomb skull noto] [--trained doco-canvas ...]

Arms for each concept: ``uce``; parts and twice of it (``uce x0.05``, ``uce x0.5``, ``uce x2``); the plain formula with
no prompts to keep (``uce-plain alone``); ``noise``, a random change of the same tensors; and the trained presets asked
for. The judges' side: the target is gone when at most 10 % of its held-out prompts still show it, the anchor is there
when at least 75 % show it, the rest is kept when at least 90 % of what was drawn as asked before still is (mean of both
judges). Resumable: what was trained and judged into FOLDER is kept, the check is made anew. Writes
``benchmarks/results/check_verdicts.json``, but not for the concepts that thresholds are chosen on (apple,
cigarette, mono). About 1 CPU-minute an arm that is not trained.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unteach.canvas import concepts, model_path
from unteach.canvas.judges import judges
from unteach.core import seeds, state
from unteach.data.concepts import Concept, ConceptSet
from unteach.diffusion import Model, WeightDelta, load, sample
from unteach.erase import Check, erase
from unteach.evaluate.prompts import HELD_OUT, Ask, Protocol, World, asks
from unteach.records import environment

RESULT = Path(__file__).parent / "results" / "check_verdicts.json"
PROTOCOL = Protocol(name="check", target=32, retained=64)
CHOSEN_ON = ("apple", "cigarette", "mono")
"""Concepts that thresholds are chosen on; they are never reported."""
STEPS, GUIDANCE = 10, 3.0
GONE, ANCHOR, KEPT = 0.9, 0.75, 0.9


def arms(model: Model, concept: Concept, trained: list[str], work: Path) -> Iterator[tuple[str, WeightDelta]]:
    """Deltas that do much, little, nothing and harm."""
    uce = erase(model, concept, "uce", check=False)
    yield "uce", uce
    for scale in (0.05, 0.5, 2.0):
        yield f"uce x{scale:g}", uce.scaled(scale)
    alone = dataclasses.replace(concept, retain=())
    yield "uce-plain alone", erase(model, alone, "uce-plain", check=False)
    for size in (0.5, 1.5):
        noise = {
            name: size * parameter.detach().std() * seeds.randn(parameter.shape, 0, name, 0, [0])[0]
            for name, parameter in model.denoiser.named_parameters()
            if name in uce.tensors
        }
        yield f"noise x{size:g}", WeightDelta(noise, {"base": model.digest(), "family": model.family})
    for name in trained:
        yield name, erase(model, concept, name, check=False, out=work / concept.target / name)


def kept(path: Path, model: Model, concept: Concept, delta: WeightDelta | None) -> dict[str, float]:
    """What the judges said, read where it was said before."""
    if not path.exists():
        state.write_json(path, judged(model, concept, delta))
    found: dict[str, float] = state.read_json(path)
    return found


def judged(model: Model, concept: Concept, delta: WeightDelta | None) -> dict[str, float]:
    """Shares by both judges: target seen, anchor seen, the rest as asked."""
    world = World.emoji()
    chosen: list[Ask] = [ask for ask in asks(world, [concept], PROTOCOL) if ask.set == HELD_OUT]
    domain, target = world.locate(concept)
    _, anchor = world.locate(
        dataclasses.replace(concept, target=concept.anchor, anchor=concept.target, names=(), retain=())
    )
    prompts = [ask.prompt for ask in chosen]
    numbers = [seeds.integer(0, "judged", prompt) for prompt in prompts]
    steps = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    if delta is None:
        pictures = sample(model, prompts, numbers, **steps)
    else:
        with delta.apply(model):
            pictures = sample(model, prompts, numbers, **steps)
    objects, styles = (torch.tensor([getattr(ask, name) for ask in chosen]) for name in ("object", "style"))
    mine = (objects if domain == "object" else styles) == target
    shares: dict[str, list[float]] = {"target": [], "anchor": [], "rest": []}
    for judge in judges().values():
        seen = judge(pictures)
        what = seen[0] if domain == "object" else seen[1]
        right = (seen[0] == objects) & (seen[1] == styles)
        for name, hits in (
            ("target", (what == target)[mine]),
            ("anchor", (what == anchor)[mine]),
            ("rest", right[~mine]),
        ):
            shares[name].append(float(hits.float().mean()))
    return {name: statistics.mean(values) for name, values in shares.items()}


def words(before: dict[str, float], after: dict[str, float]) -> tuple[str, str]:
    """The judges' verdict in the check's words: of the concept, of the rest."""
    gone = 1 - after["target"] / max(before["target"], 1e-9)
    kept = "kept" if after["rest"] >= KEPT * before["rest"] else "hurt"
    if gone < GONE:
        return ("nothing" if gone < 1 - GONE else "partly"), kept
    return ("erased" if after["anchor"] >= ANCHOR else "gone"), kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--concepts", nargs="+", default=["bomb", "skull", "noto"])
    parser.add_argument("--trained", nargs="*", default=["ablate-canvas", "doco-canvas"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(model_path())
    rows: list[dict[str, Any]] = []
    for target in args.concepts:
        concept = concepts.concept(target)
        check = Check.of(model, ConceptSet.of(concept), 1)
        told = args.work / "judged" / target
        told.mkdir(parents=True, exist_ok=True)
        before = kept(told / "before.json", model, concept, None)
        for arm, delta in arms(model, concept, args.trained, args.work):
            found, after = check.measure(delta), kept(told / f"{arm}.json", model, concept, delta)
            say = words(before, after)
            one, share = found.concepts[0], after["rest"] / before["rest"]
            mine = one.outcome, found.rest_word
            row = {"concept": target, "arm": arm, "check": found.to_dict(), "words": list(mine), "before": before}
            rows.append({**row, "after": after, "judges": list(say), "agree": mine == say})
            print(
                f"{target:8} {arm:16} {found.verdict:42} judges: {say[0]}, {say[1]:5}",
                f"(gone {1 - after['target']:.2f}, anchor {after['anchor']:.2f}, rest {share:.2f};",
                f"towards {one.towards:.2f}, left {one.left:.2f}, rest {found.rest:.2f})",
                "" if rows[-1]["agree"] else "<- differ",
                flush=True,
            )
    record = {
        "command": f"python benchmarks/check_verdicts.py --work FOLDER --concepts {' '.join(args.concepts)}"
        + f" --trained {' '.join(args.trained)}",
        "environment": asdict(environment.collect()),
        "agree": sum(row["agree"] for row in rows),
        "of": len(rows),
        "rows": rows,
    }
    if set(args.concepts).isdisjoint(CHOSEN_ON):
        state.write_json(RESULT, record)
    print(f"{record['agree']} of {record['of']} agree in every word")


if __name__ == "__main__":
    main()
