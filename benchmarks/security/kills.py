"""Kill commands at random moments, run them again, and compare with what an unbroken run gives.

    python benchmarks/security/kills.py --work FOLDER [--kills 120] [--seed 0] [--only learn erase ...]

Finished commands are kept in FOLDER: the same command goes on, a new FOLDER starts anew.

Every command runs in a process of its own, in its own session, on toy models (and `demo --quick` on the bundled one).
A kill is SIGKILL, SIGTERM or SIGINT to that process, or SIGINT to the whole session, as Ctrl-C in a terminal; its
moment is uniform over the time that the unbroken run takes. In some rounds the resumed command is killed again. After
each kill no process of the session may be left within ten seconds; at the end the command is run to its end, and then

- every file is there and holds what the unbroken run's holds: weights bit for bit, records but for times;
- no other file is: no part of a file, no lock, no folder aside.

The processes are forked from this one, which has loaded torch and diffusers already and computes nothing itself. Only
the standard library is imported at the top: workers that a command starts read this file too.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from unteach.cli import main as unteach

OUT = Path(__file__).resolve().parents[1] / "results" / "security_kills.json"
HOW = ("SIGKILL", "SIGTERM", "SIGINT", "Ctrl-C")
TIMES = {"seconds", "created", "environment", "cost", "command", "took"}
SHARES = {"learn": 32, "workers": 12, "erase": 32, "guard": 18, "apply": 12, "export": 12, "demo": 2}
"""Kills of each kind of command, of 120."""
GONE = 10.0
"""Seconds in which every process of a killed command must be gone."""
DONE = (0, 4)
"""Exit codes of a command that came to its end; 4: the check of an erasure is not content, as on random weights."""


@dataclass(frozen=True)
class Job:
    """A command on a folder ``out``, and whether it makes the folder appear whole or not at all."""

    name: str
    run: Callable[[Path], int]
    whole: bool = False


@dataclass(frozen=True)
class Round:
    """Kills of one run, one after another, and what became of it."""

    job: str
    kills: list[str]
    orphans: int
    litter: list[str]
    different: list[str]
    problem: str = ""

    @property
    def held(self) -> bool:
        return not (self.orphans or self.litter or self.different or self.problem)


def jobs(work: Path) -> dict[str, Job]:
    """The commands; what they need is made once under ``work``."""
    toy = str(work / "toy")
    concept = ["--target", "twemoji", "--anchor", "openmoji", "--kind", "style", "--prompts", "a {} dog", "{} cat"]
    small = ["steps=12", "warm_up=4", "batch_size=2", "learning_rate=0.01", "d_width=8", "images=4", "retain_images=4"]
    doco = ["erase", "--model", toy, *concept, "--method", "doco", "--save-every", "2"]
    grid = ["learn", "--config", str(work / "grid.yaml")]
    mask = ["guard", "learn", "--model", toy, "--illegal", str(work / "bad"), "--innocent", str(work / "good")]
    short = ["steps=4", "relearn_steps=6", "batch_size=2", "scale=raw", "rho=0.2"]

    def command(*arguments: str) -> Callable[[Path], int]:
        return lambda out: unteach([*arguments, "--out", str(out)])

    def export(out: Path) -> int:
        from unteach.diffusion.delta import WeightDelta
        from unteach.diffusion.model import load

        WeightDelta.load(work / "erased" / "delta.safetensors").export(load(work / "toy"), out)
        return 0

    made = [
        Job("learn", command(*grid)),
        Job("workers", command(*grid, "--workers", "2")),
        Job("erase", command(*doco, "--set", *small, "num_inference_steps=2")),
        Job("guard", command(*mask, "--set", *short)),
        Job("apply", command("guard", "apply", str(work / "mask")), whole=True),
        Job("export", export, whole=True),
        Job("demo", command("demo", "--quick")),
    ]
    return {job.name: job for job in made}


def prepare(work: Path, only: Sequence[str]) -> None:
    """A toy pipeline, pictures, a grid, an erasure and a mask; loads what the commands load."""
    import numpy as np
    import torch
    from PIL import Image
    from tests.toys import build

    from unteach.commands import demo, erase, evaluate, guard, learn  # noqa: F401

    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    build("sd", work / "toy")
    for name, seed in (("bad", 1), ("good", 2)):
        draw = np.random.default_rng(seed)
        folder = work / name
        folder.mkdir(exist_ok=True)
        lines = []
        for i in range(8):
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
            lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a {name} thing, number {i}"}))
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (work / "grid.yaml").write_text(
        "stream: digits\nnetwork: mlp\nnetwork_options: {hidden: [8]}\n"
        "training: {epochs: 2, batch_size: 32, lr: 0.05}\n"
        "methods: [fine-tune, {method: er, buffer: 20}]\nplugins: [none]\nseeds: [0, 1]\n",
        encoding="utf-8",
    )
    for needed, folder, name in (("export", "erased", "erase"), ("apply", "mask", "guard")):
        if needed in only and ended(start(jobs(work)[name], work / folder)) not in DONE:
            raise SystemExit(f"preparing {folder} failed: see {work / folder}.txt")


def start(job: Job, out: Path) -> int:
    """Fork a process, in a session of its own, that does the job and ends with its exit code; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        log = os.open(f"{out}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = job.run(out)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code, or 128 + the signal that ended it."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def living(session: int) -> list[int]:
    """Processes of a session that are not dead."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                after = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if after[0] != "Z" and int(after[3]) == session:
                    found.append(int(entry))
    return found


def kill(child: int, how: str) -> None:
    if how == "Ctrl-C":
        os.killpg(child, signal.SIGINT)
    else:
        os.kill(child, getattr(signal, how))


def result(folder: Path) -> dict[str, Any]:
    """What every file under a folder holds, without times; pages and logs in words count as there or not."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = content(path)
    return found


def content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text(encoding="utf-8"))) if path.name != "cost.json" else None
    return None if path.suffix in (".html", ".md", ".txt") else path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def unbroken(job: Job, work: Path) -> tuple[dict[str, Any], float]:
    """What the command gives when nothing happens, and the seconds that it takes."""
    out = work / "whole" / job.name
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    code = ended(start(job, out))
    if code not in DONE:
        raise SystemExit(f"{job.name} failed with {code}: see {out}.txt")
    return result(out), time.monotonic() - begin


def broken(job: Job, out: Path, hows: list[str], moments: list[float], whole: dict[str, Any]) -> Round:
    """Kill it at these moments (seconds after its start), once a time, then let it end, and compare."""
    log = Path(f"{out}.txt")
    shutil.rmtree(out, ignore_errors=True)
    log.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    orphans, done = 0, False
    for how, moment in zip(hows, moments, strict=True):
        child = start(job, out)
        time.sleep(moment)
        kill(child, how)
        until = time.monotonic() + GONE
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Round(job.name, hows, 1, [], [], f"still there {GONE:g} s after {how}")
            time.sleep(0.01)
        while (left := living(child)) and time.monotonic() < until:
            time.sleep(0.02)
        orphans += len(left)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        done = job.whole and out.exists()
        if done:
            break
    code = 0 if done else ended(start(job, out))
    text = log.read_text(encoding="utf-8", errors="replace")
    problem = f"ended with {code}" if code not in DONE else "a traceback" if "Traceback" in text else ""
    now = result(out) if out.is_dir() else {}
    different = sorted(name for name in whole if name not in now or now[name] != whole[name])
    litter = sorted({*now} - {*whole} | {path.name for path in out.parent.glob(f".{out.name}.*")})
    return Round(job.name, hows, orphans, litter, different, problem)


def rounds(job: Job, work: Path, kills: int, seed: int) -> list[Round]:
    """As many rounds as need ``kills`` kills; which signal and when is drawn from ``seed``. Finished ones are kept."""
    kept = work / f"rounds-{job.name}-{kills}-{seed}.json"
    if kept.exists():
        return [Round(**record) for record in json.loads(kept.read_text(encoding="utf-8"))]
    draw = random.Random(f"{job.name} {seed}")
    whole, seconds = unbroken(job, work)
    print(f"{job.name}: {seconds:.1f} s unbroken, {len(whole)} files", flush=True)
    found: list[Round] = []
    while kills > 0:
        count = min(kills, draw.choice((1, 1, 2, 3)))
        hows = [draw.choice(HOW) for _ in range(count)]
        moments = [draw.uniform(0.0, seconds) for _ in range(count)]
        found.append(broken(job, work / "broken" / f"{job.name}-{len(found)}", hows, moments, whole))
        kills -= count
        if not found[-1].held:
            print(f"  NOT HELD: {found[-1]}", flush=True)
        else:
            shutil.rmtree(work / "broken" / f"{job.name}-{len(found) - 1}", ignore_errors=True)
    kept.write_text(json.dumps([asdict(each) for each in found]), encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="kill commands at random moments and run them again")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(SHARES), default=list(SHARES))
    given = parser.parse_args()
    begin, found = time.monotonic(), list[Round]()
    prepare(given.work.resolve(), given.only)
    for name in given.only:
        kills = max(1, round(SHARES[name] * given.kills / sum(SHARES.values())))
        found += rounds(jobs(given.work.resolve())[name], given.work.resolve(), kills, given.seed)
    from unteach.core import state
    from unteach.records import environment

    table = {}
    for name in given.only:
        mine = [r for r in found if r.job == name]
        table[name] = {
            "kills": sum(len(r.kills) for r in mine),
            "rounds": len(mine),
            "by": {how: sum(r.kills.count(how) for r in mine) for how in HOW},
            "orphans": sum(r.orphans for r in mine),
            "rounds with litter": sum(bool(r.litter) for r in mine),
            "rounds with another result": sum(bool(r.different or r.problem) for r in mine),
        }
        print(name, table[name], flush=True)
    record = {
        "command": f"python benchmarks/security/kills.py --work FOLDER --kills {given.kills} --seed {given.seed}",
        "config": {"kills": given.kills, "seed": given.seed, "gone within, seconds": GONE},
        "kills": sum(len(r.kills) for r in found),
        "rounds": len(found),
        "rounds that held": sum(r.held for r in found),
        "commands": table,
        "not held": [asdict(r) for r in found if not r.held],
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "environment": vars(environment.collect()),
    }
    if given.only == list(SHARES):
        state.write_json(OUT, record)
    print(f"{record['kills']} kills in {record['rounds']} rounds, {record['rounds that held']} held", flush=True)
    return 0 if record["rounds that held"] == record["rounds"] else 1


if __name__ == "__main__":
    sys.exit(main())
