"""Processes end when they should (M1, M2 and L1 of the security trials)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unteach.core import jobs
from unteach.errors import ConfigError, UnteachError

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
SLEEPERS = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
from unteach.core import jobs
from unteach.core.stopping import Stopped, stoppable

def work(folder, index):
    (Path(folder) / f"{index} {os.getpid()}").touch()
    time.sleep(60)

if __name__ == "__main__":
    try:
        with stoppable():
            list(jobs.each(work, [(sys.argv[1], i) for i in range(6)], 2))
    except Stopped as error:
        sys.exit(error.code)
"""


def double(number: int) -> int:
    if number < 0:
        raise UnteachError(f"{number} is negative")
    return 2 * number


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pid() -> int:
    return os.getpid()


def slow_pid() -> int:
    time.sleep(1)
    return os.getpid()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def begun(folder: Path) -> dict[int, int]:
    """Index of the call → process."""
    return {int(path.name.split()[0]): int(path.name.split()[1]) for path in folder.iterdir()}


def until(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_results_come_with_their_index_and_errors_are_raised_here(engine: jobs.Engine) -> None:
    assert sorted(jobs.each(double, [(3,), (1,), (2,)], 2, engine)) == [(0, 6), (1, 2), (2, 4)]
    with pytest.raises(UnteachError, match="-1 is negative"):
        list(jobs.each(double, [(1,), (-1,), (2,)], 2, engine))


def test_ray_gives_the_same_with_two_workers_and_tells_a_lost_one() -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:  # one cluster for all: it takes seconds to start
        assert sorted(jobs.each(double, [(3,), (1,), (2,)], 2, "ray")) == [(0, 6), (1, 2), (2, 4)]
        assert len(set(dict(jobs.each(slow_pid, [(), ()], 2, "ray")).values())) == 2
        with pytest.raises(UnteachError, match="-1 is negative"):
            list(jobs.each(double, [(1,), (-1,), (2,)], 2, "ray"))
        with pytest.raises(UnteachError, match="a worker was lost"):
            list(jobs.each(die, [(1,)], 2, "ray"))
    finally:
        ray.shutdown()


def test_serial_calls_begin_when_they_are_asked_for() -> None:
    calls = jobs.each(double, [(1,), (-1,)], engine="serial")
    assert next(calls) == (0, 2)


@pytest.mark.parametrize(("engine", "workers"), [("threads", 1), ("serial", 0)])
def test_no_such_engine_and_no_workers(engine: jobs.Engine, workers: int) -> None:
    with pytest.raises(ConfigError, match="jobs need an engine"):
        jobs.each(double, [], workers, engine)


def test_an_error_is_raised_here_and_a_killed_worker_is_told() -> None:
    with pytest.raises(UnteachError, match="-1 is negative"):
        list(jobs.each(double, [(1,), (-1,), (2,)], 1))
    with pytest.raises(UnteachError, match="a worker process was killed"):
        list(jobs.each(die, [(1,)], 1))


def test_leaving_early_ends_the_workers() -> None:
    calls = jobs.each(pid, [(), (), ()], 1)
    _, worker = next(calls)
    calls.close()
    assert not alive(worker)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "Ctrl-C"])
def test_m1_m2_workers_end_with_their_parent_and_no_call_begins_any_more(tmp_path: Path, how: str) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "begun"
    script.write_text(SLEEPERS)
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)], stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True
    ) as parent:
        until(lambda: len(begun(folder)) == 2)
        workers = begun(folder)
        if how == "Ctrl-C":
            os.killpg(parent.pid, signal.SIGINT)  # what a terminal does: to every process in it
        else:
            parent.send_signal(getattr(signal, how))
        code = parent.wait(20)
        until(lambda: not any(map(alive, workers.values())), 20)
        said = parent.stderr.read() if parent.stderr else ""
    assert code == {"SIGTERM": 143, "SIGKILL": -9, "Ctrl-C": 130}[how]
    assert begun(folder) == workers and "Traceback" not in said


CLI = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
print("up", flush=True)
from unteach.cli import main
sys.exit(main(["learn", "--stream", "digits", "--methods", "er", "--epochs", "500", "--out", sys.argv[1]]))
"""


@pytest.mark.parametrize("after", [0.3, 1.0])
def test_l1_ctrl_c_in_the_first_second_shows_no_traceback(tmp_path: Path, after: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLI, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.strip().startswith("stopped") and "Traceback" not in said


TIDY = """
import sys, time
from unteach.core.stopping import stoppable
with stoppable():
    try:
        print("up", flush=True)
        time.sleep(60)
    finally:
        print("tidying", flush=True)
        time.sleep(60)
"""


def test_m2_a_second_ctrl_c_ends_at_once_without_a_word() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + TIDY
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    ) as process:
        assert process.stdout is not None
        for line in ("up\n", "tidying\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "" and process.returncode == 130


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = (
        "import os, signal\nfrom unteach.core.stopping import stoppable\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with stoppable(): os.kill(os.getpid(), signal.SIGINT)\nprint('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, timeout=60)
    assert done.stdout == "went on\n"


def test_m1_a_child_of_the_demo_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    child = (
        "import os, sys, time\nfrom unteach.core.stopping import end_with_parent\nend_with_parent()\n"
        "print(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\nfrom unteach.core.stopping import child_environment\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], env=child_environment())\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=ENV) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert alive(grandchild)
        process.kill()
        until(lambda: not alive(grandchild), 10)
