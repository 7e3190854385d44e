"""``unteach demo``: erase a style and an object from the bundled model, judge both, write one page.

Every concept is done by a process of its own (this very command with ``--only``), as many at a time as there are
processors; the parent shows what they are at, and makes the page from their results.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import unteach
from unteach.canvas import concepts as canvas
from unteach.commands.options import Demo, Evaluate
from unteach.commands.plan import CANVAS, Plan, folder_of
from unteach.commands.terminal import STAGE, cores, say, stage, tail, verdicts, wrote
from unteach.core import places
from unteach.core.registry import near
from unteach.core.stopping import child_environment
from unteach.data.concepts import ConceptSet
from unteach.diffusion.model import load
from unteach.erase import make
from unteach.errors import ConfigError
from unteach.evaluate.prompts import PROTOCOLS, Protocol
from unteach.records.erasure import Results
from unteach.report.html import render
from unteach.report.view import duration

__all__ = ["ERASURES", "Erasure", "run"]


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

SEED = 0
PRESET = "demo"
STEPS = 20
PATIENCE = 3.0
"""Seconds that a child gets to end by itself."""

QUICK_SETTINGS: Mapping[str, Any] = {
    "steps": 8,
    "warm_up": 4,
    "images": 16,
    "retain_images": 16,
    "num_inference_steps": 4,
}
QUICK_PROTOCOL = Protocol(name="quick", target=8, retained=8)
QUICK_STEPS = 6
"""With --quick: settings over the erasure's own, fewer prompts, fewer sampling steps of the evaluation."""

TITLE = "A style and an object, taken out of the bundled model"

# One thread each, no spinning while they wait for each other, and memory that is kept rather than given back:
# measured 8 % faster on two cores.
CHILD_ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "100000000",
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


def run(options: Demo, command: str) -> int:
    """The whole demo, or with ``--only`` one concept of it in this process."""
    if options.only is None:
        return _all(options)
    known = {erasure.target: erasure for erasure in ERASURES}
    if options.only not in known:
        raise ConfigError(f"'{options.only}' is not a concept of the demo", fix=near(options.only, known))
    _one(known[options.only], options, command)
    return 0


def _one(erasure: Erasure, options: Demo, command: str) -> None:
    """Erase and evaluate one concept in this process, telling its stages."""
    from unteach.commands import erase, evaluate

    out = options.out / erasure.target
    stage("loading the model")
    model = load(folder_of(CANVAS))
    settings = {**erasure.settings, **(QUICK_SETTINGS if options.quick else {})}
    concept = canvas.concept(erasure.target, erasure.anchor, erasure.kind)
    plan = Plan(
        model=CANVAS,
        concepts=ConceptSet.of(concept),
        method=make(erasure.method, **settings),
        seed=SEED,
        device="cpu",
        dtype="float32",
        threads=None,
        save_every=25,
        out=out,
    )
    total = plan.method.to_dict().get("steps")
    if (out / "delta.safetensors").exists():
        stage("erased already")
    elif total is not None and (out / "anchors.safetensors").exists():
        stage(f"going on to train {total} steps")
    elif total is not None:
        stage(f"drawing training pictures, then training {total} steps")
    delta = erase.execute(plan, model, tell=stage)
    if delta.check is not None:
        stage(f"checked without a judge: {delta.check.verdict}")
    stage("drawing and judging pictures, before and after")
    asked = Evaluate(num_inference_steps=QUICK_STEPS if options.quick else STEPS)
    subject = evaluate.Subject(
        model=CANVAS,
        delta=delta,
        concepts=plan.concepts,
        out=out / "evaluation",
        device=plan.device,
        dtype=model.dtype,
        erased=out,
    )
    choice = QUICK_PROTOCOL if options.quick else PROTOCOLS[PRESET]
    results = evaluate.on_canvas(subject, model, asked, _whole(command), choice=choice)
    evaluate.refresh_card(out, delta, results)
    stage("done")


def _whole(command: str) -> str:
    """The demo's command without what makes it do one concept only."""
    return command.split(" --only ")[0]


class Child:
    """One concept's process: started, followed by its log, and asked how it ended.

    Args:
        name: the concept's target.
        out: the demo's folder; the log is ``out/name/log.txt``, appended to.
        arguments: further arguments.
    """

    def __init__(self, name: str, out: Path, arguments: Sequence[str]) -> None:
        self.name, self.log = name, out / name / "log.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._sink: BinaryIO = self.log.open("ab")
        self._read_to = self.log.stat().st_size
        self._rest = b""
        command = [sys.executable, "-m", "unteach.cli", "demo", "--out", str(out), *arguments, "--only", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._sink, stderr=subprocess.STDOUT, env=_environment()
        )

    def news(self) -> list[str]:
        """The stages told since the last call."""
        with self.log.open("rb") as file:
            file.seek(self._read_to)
            data = file.read()
        self._read_to += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        texts = [line.decode("utf-8", "replace") for line in lines]
        return [text.removeprefix(STAGE) for text in texts if text.startswith(STAGE)]

    def ended(self) -> bool:
        """Whether it has come to its end, well or not."""
        return self.process.poll() is not None

    def stop(self) -> None:
        """End it if it runs, wait for it, close its log."""
        if not self.ended():
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._sink.close()


def _environment() -> dict[str, str]:
    source = str(Path(unteach.__file__).resolve().parent.parent)
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**child_environment(), **CHILD_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}


def _all(options: Demo) -> int:
    begin = time.monotonic()
    names = [erasure.target for erasure in ERASURES]
    at_once = max(1, min(cores(), len(names)))
    say(f"erasing {' and '.join(names)} from the bundled model, {at_once} at a time; logs in {options.out}")
    with places.alone(options.out):
        failed = _follow(names, options, at_once, begin)
    pages = [options.out / name / "evaluation" for name in names if name not in failed]
    written: list[Path] = []
    if pages:
        results = [Results.load(page / "results.json") for page in pages]
        report = render(results, options.out / "report.html", title=TITLE)
        for one in results:
            say("\n" + verdicts(one))
        written = [*(options.out / name / "delta.safetensors" for name in names if name not in failed), report]
    say(f"\n{duration(time.monotonic() - begin)}")
    if written:
        wrote(written)
    for name, (code, log) in failed.items():
        print(f"\nunteach: {name} was not finished (exit code {code}); the end of {log}:", file=sys.stderr)
        print(tail(log), file=sys.stderr)
    if failed:
        print("\nunteach: the same command goes on where it stopped", file=sys.stderr)
    return 1 if failed else 0


def _follow(names: Sequence[str], options: Demo, at_once: int, begin: float) -> dict[str, tuple[int, Path]]:
    """Run the concepts, at most ``at_once`` together, telling their stages; those that failed, with code and log."""
    arguments = ["--quick"] if options.quick else []
    waiting, running, failed = list(names), list[Child](), dict[str, tuple[int, Path]]()
    width = max(map(len, names))

    def told(child: Child) -> None:
        for text in child.news():
            say(f"{time.monotonic() - begin:5.0f} s  {child.name:<{width}}  {text}")

    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(Child(waiting.pop(0), options.out, arguments))
            time.sleep(0.2)
            for child in list(running):
                over = child.ended()
                told(child)
                if over:
                    running.remove(child)
                    child.stop()
                    if child.process.returncode != 0:
                        failed[child.name] = (child.process.returncode, child.log)
                        say(f"{time.monotonic() - begin:5.0f} s  {child.name:<{width}}  FAILED")
    finally:
        for child in running:
            child.stop()
    return failed
