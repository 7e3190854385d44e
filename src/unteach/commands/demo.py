"""``unteach demo``: erase a style and an object from the bundled model, judge both, write one page.

Every concept is done in a process of its own, as many at a time as there are processors.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import arg

from unteach.commands.console import say, wrote
from unteach.commands.verb import RESUMES, Verb
from unteach.core.events import Lines
from unteach.errors import UnteachError

__all__ = ["ERASURES", "Demo", "Erasure"]


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """One concept of the demo, and how it is erased."""

    target: str
    anchor: str
    kind: str
    method: str = "doco-canvas"
    settings: Mapping[str, Any] = field(default_factory=dict)


ERASURES: tuple[Erasure, ...] = (
    Erasure(target="twemoji", anchor="openmoji", kind="style"),
    Erasure(target="bomb", anchor="balloon", kind="object"),
)
"""What the demo erases, and in which order it reports."""

QUICK: Mapping[str, Any] = {"steps": 8, "warm_up": 4, "images": 16, "retain_images": 16, "num_inference_steps": 4}
QUICK_PROMPTS, QUICK_STEPS, STEPS = 8, 6, 20
"""With --quick: settings over the erasure's own, prompts of a set, sampling steps of the evaluation; else 20 steps."""
TITLE = "A style and an object, taken out of the bundled model"

# One thread each, no spinning while they wait for each other, and memory that is kept rather than given back:
# measured 8 % faster on two cores.
CHILD_ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "100000000",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


@dataclass(frozen=True, kw_only=True)
class Demo(Verb):
    """Erase a style and an object from the bundled model, judge both, and write one page; minutes on two cores.

    The same command run again goes on where it stopped.
    """

    stopped: ClassVar[str] = RESUMES
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo")
    """Folder of everything that it writes."""
    quick: bool = False
    """A small one, to see that everything works; its numbers mean little."""

    def run(self, command: str) -> int:
        """The whole demo."""
        from unteach.core import jobs, places
        from unteach.core.device import cores
        from unteach.core.text import duration
        from unteach.records.erasure import Results
        from unteach.report.page import page
        from unteach.report.terminal import verdicts

        begin = time.time()
        names = [erasure.target for erasure in ERASURES]
        workers = max(1, min(cores(), len(names)))
        say(f"erasing {' and '.join(names)} from the bundled model, {workers} at a time; logs in {self.out}")
        failed: dict[str, str] = {}
        with places.alone(self.out), _environment():
            calls = [(erasure, self, command, begin) for erasure in ERASURES]
            with contextlib.closing(jobs.each(_one, calls, workers)) as done:
                for index, problem in done:
                    if problem:
                        failed[names[index]] = problem
        good = [self.out / name for name in names if name not in failed]
        results = [Results.load(folder / "evaluation" / "results.json") for folder in good]
        for one in results:
            say("\n" + verdicts(one))
        say(f"\n{duration(time.time() - begin)}")
        if results:
            made = page(results, self.out / "report.html", title=TITLE)
            wrote([*(folder / "delta.safetensors" for folder in good), made])
        for name, problem in failed.items():
            print(f"\nunteach: {name} was not finished: {problem}", file=sys.stderr)
        if failed:
            print("\nunteach: the same command goes on where it stopped", file=sys.stderr)
        return 1 if failed else 0


class Told(Lines):
    """Lines that say when and of which concept.

    Args:
        name: the concept's target.
        begin: when the demo began, seconds since the epoch.
    """

    def __init__(self, name: str, begin: float) -> None:
        super().__init__(every=20.0)
        self._name, self._when = f"{name:<{max(len(erasure.target) for erasure in ERASURES)}}", begin

    def message(self, text: str) -> None:
        """One line."""
        super().message(f"{time.time() - self._when:5.0f} s  {self._name}  {text.strip()}")


def _one(erasure: Erasure, demo: Demo, command: str, begin: float) -> str:
    """Erase and evaluate one concept in this process; what kept it from being finished, or ""."""
    told = Told(erasure.target, begin)
    try:
        with _log(demo.out / erasure.target / "log.txt"):
            _erase(erasure, demo, command, told)
    except UnteachError as error:
        told.message("FAILED")
        return str(error)
    except Exception:  # the other concepts go on
        told.message("FAILED")
        return traceback.format_exc()
    told.message("done")
    return ""


def _erase(erasure: Erasure, demo: Demo, command: str, told: Told) -> None:
    from unteach.canvas import CANVAS, concepts
    from unteach.commands.erase import Plan
    from unteach.commands.evaluate import Evaluate, Subject, refresh_card
    from unteach.data.concepts import ConceptSet
    from unteach.erase import make
    from unteach.evaluate.prompts import PROTOCOLS, Protocol

    out = demo.out / erasure.target
    plan = Plan(
        model=CANVAS,
        concepts=ConceptSet.of(concepts.concept(erasure.target, erasure.anchor, erasure.kind)),
        method=make(erasure.method, **{**erasure.settings, **(QUICK if demo.quick else {})}),
        out=out,
    )
    told.message("loading the model")
    model = plan.load()
    told.message(
        "erased already" if (out / "delta.safetensors").exists() else "drawing training pictures, then training"
    )
    delta = plan.execute(model, told)
    if delta.check is not None:
        told.message(f"checked without a judge: {delta.check.verdict}")
    told.message("drawing and judging pictures, before and after")
    asked = Evaluate(num_inference_steps=QUICK_STEPS if demo.quick else STEPS)
    subject = Subject(
        model=CANVAS,
        delta=delta,
        concepts=plan.concepts,
        out=out / "evaluation",
        device=plan.device,
        dtype=model.dtype,
        erased=out,
    )
    quick = Protocol(name="quick", target=QUICK_PROMPTS, retained=QUICK_PROMPTS)
    results = asked.measure(subject, model, command, told, protocol=quick if demo.quick else PROTOCOLS["demo"])
    refresh_card(out, delta, results)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What processes that are begun meanwhile get."""
    before = dict(os.environ)
    os.environ.update(CHILD_ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """What libraries say on standard error goes into a file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
