"""``unteach erase``: plan, say what will be done, do it, write the delta and its card."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from unteach.commands.estimate import estimate
from unteach.commands.options import Erase
from unteach.commands.plan import Plan, dtype_of, is_canvas, resolve
from unteach.commands.terminal import interactive, say, steps_teller, use_threads, wrote
from unteach.core import masks, places, reading, state, text
from unteach.data.concepts import ConceptSet
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model, load
from unteach.erase import Job, erase
from unteach.erase.pairs import readable
from unteach.errors import CheckpointError, ConfigError, UnteachError
from unteach.report import model_card

__all__ = ["NOT_AS_ASKED", "execute", "run", "seconds_spent"]

NOT_AS_ASKED = 4
"""Exit code when the delta was written, and the check found something else than "erased, the rest kept"."""

STAGES = ("anchors.safetensors", "state.safetensors", "delta.safetensors")


def run(options: Erase) -> int:
    """Erase, or with ``--dry-run`` say what would be done."""
    plan = resolve(options)
    known = plan.check_folder()
    use_threads(plan.threads, small=is_canvas(plan.model))
    model = load(plan.folder(), dtype=dtype_of(plan.dtype), device=plan.device)
    if options.dry_run:
        _dry(plan, model, known)
        return 0
    if plan.out is None:
        raise ConfigError("no folder for the result was given", fix="add --out DIR")
    read = readable(model, plan.concepts)
    targets = ", ".join(f"{c.target} → {c.anchor} ({c.kind})" for c in plan.concepts)
    say(f"erasing {targets} from {plan.model} with {plan.method.name}")
    for line in (*plan.pairs_dropped(), *read.left_out):
        say(line)
    say(f"{len(read.concepts.pairs())} prompt pairs, {_beside(plan, model, read.concepts)}")
    if (plan.out / "delta.safetensors").exists():
        say(f"{plan.out} holds the finished result")
    elif known:
        say(f"{plan.out} holds this run, begun: going on")
    delta = execute(plan, model, progress=interactive(), tell=None if interactive() else say)
    say(
        f"{len(delta.tensors)} tensors changed, {text.size(delta.size, '')} parameters in them, norm {delta.norm():.4g}"
    )
    spent = seconds_spent(plan.out)
    if spent is not None:
        say(f"it took {text.duration(spent)}")
    found = delta.check
    if found is not None:
        say(f"did it work? {found.verdict}")
        for line in found.lines():
            say(f"  {line}")
    wrote([plan.out / name for name in ("delta.safetensors", "README.md", "config.json")])
    return 0 if found is not None and found.good else NOT_AS_ASKED


def execute(
    plan: Plan, model: Model, *, progress: bool = False, tell: Callable[[str], None] | None = None
) -> WeightDelta:
    """Erase into ``plan.out`` and write config.json, delta.safetensors, cost.json and README.md there.

    Raises:
        CheckpointError: the folder holds another run, another process works in it, or it cannot be written; what is
            there stays as it is.
    """
    if plan.out is None:
        raise ConfigError("no folder for the result was given", fix="add --out DIR")
    with places.alone(plan.out):
        return _execute(plan, plan.out, model, progress, tell)


def _execute(plan: Plan, out: Path, model: Model, progress: bool, tell: Callable[[str], None] | None) -> WeightDelta:
    config = plan.to_dict()
    known, finished = plan.check_folder(), (out / "delta.safetensors").exists()
    # Stages without a configuration are somebody else's until erase() has compared them.
    unclear = not known and any((out / name).exists() for name in STAGES)
    if not known and not unclear:
        state.write_json(out / "config.json", config)
    total = config["settings"].get("steps")
    begin = time.monotonic()
    refused = finished
    try:
        delta = erase(
            model,
            plan.concepts,
            plan.method,
            seed=plan.seed,
            out=out,
            progress=progress,
            save_every=plan.save_every,
            on_step=None if tell is None else steps_teller(tell, total),
        )
    except UnteachError as error:
        # Refused before anything was made: a corrected command must find the folder as this one did.
        begun = any((out / name).exists() for name in (*STAGES, "anchors.part"))
        refused = refused or isinstance(error, CheckpointError) or not begun
        if not begun and not known:
            (out / "config.json").unlink(missing_ok=True)
        raise
    finally:
        if not refused:
            _spend(out, time.monotonic() - begin)
    if unclear:
        state.write_json(out / "config.json", config)
    if not (out / "README.md").exists():
        state.write_bytes(out / "README.md", model_card(delta.meta).encode())
    return delta


def seconds_spent(out: Path) -> float | None:
    """Seconds that erasing into this folder took, over all sittings; None when it is not known.

    A damaged cost.json is as good as none: nothing depends on it.
    """
    path = out / "cost.json"
    try:
        seconds = state.read_table(path).get("seconds") if path.exists() else None
    except CheckpointError:
        return None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        return None
    return float(seconds)


def _spend(out: Path, seconds: float) -> None:
    try:
        state.write_json(out / "cost.json", {"seconds": round((seconds_spent(out) or 0.0) + seconds, 3)})
    except CheckpointError:
        return  # a full disk: the error that is on its way says more


def _beside(plan: Plan, model: Model, concepts: ConceptSet) -> str:
    """What the method adds to the pairs that are given, and how many prompts it really keeps."""
    job = Job(model=model, concepts=concepts, seed=plan.seed)
    more = len(job.pairs(plan.method.contexts)) - len(concepts.pairs())
    around = f"{more} more with random words around the name, " if more else ""
    return f"{around}{len(plan.method.retained(job))} prompts to keep"


class _Compact(reading.Dumper):
    """YAML with lists of texts in running lines, broken between texts: hundreds of prompts stay readable."""

    def write_single_quoted(self, text: str, split: bool = True) -> None:
        super().write_single_quoted(text, split=False)

    def write_plain(self, text: str, split: bool = True) -> None:
        super().write_plain(text, split=False)


def _running(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.SequenceNode:
    texts = all(isinstance(item, str) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=texts)


_Compact.add_representer(list, _running)


def _dry(plan: Plan, model: Model, known: bool) -> None:
    shown: dict[str, Any] = plan.to_dict()
    if plan.out is not None:
        shown["out"] = str(plan.out)
    say(yaml.dump(shown, Dumper=_Compact, sort_keys=False, allow_unicode=True, width=100).rstrip())
    say()
    say(masks.table(model.denoiser, dict.fromkeys(plan.method.selected(model), "would move")))
    say()
    offered = sum(len(c.captions) for c in plan.concepts)
    read = readable(model, plan.concepts)
    noops = sum(sum(c.dropped().values()) for c in plan.concepts) + read.captions
    pairs = f"{len(read.concepts.pairs())} prompt pairs"
    say(f"{pairs}; {noops} of {offered} captions are no-ops and left out" if offered else f"{pairs}; 0 no-ops")
    for line in (*plan.pairs_dropped(), *read.left_out):
        say(f"  {line}")
    say(_beside(plan, model, read.concepts))
    cost = estimate(model, plan.method, read.concepts)
    parts = (("drawing", cost.drawing), ("training", cost.training), ("checking the result", cost.checking))
    listed = ", ".join(f"{text.duration(seconds)} {name}" for name, seconds in parts)
    say(f"estimate: {text.duration(cost.seconds)} ({listed}), {text.size(cost.memory)} of memory")
    say(f"  only an estimate: {cost.how}")
    if known:
        say(f"{plan.out} holds this run already: it would go on")
    say("dry run: nothing was written")
