"""One process a folder, and nothing left behind by those that were killed (L2, L3, L7 and L10 of the trials)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unteach.core import places, state
from unteach.errors import CheckpointError

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
HOLD = """
import sys, time
from pathlib import Path
from unteach.core import places
with places.alone(Path(sys.argv[1])):
    made, _ = places.aside(Path(sys.argv[1]) / "deep" / "x.json")
    print(made.name, flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that works in the folder, and the part of a file that it is writing."""
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=ENV)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_l3_a_second_process_is_told_whose_folder_it_is_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    process, part = hold(tmp_path)
    with process:
        told = rf"another process \(pid {process.pid}\) works in this folder"
        with pytest.raises(CheckpointError, match=told), places.alone(tmp_path):
            raise AssertionError("two processes in one folder")
        places.sweep(tmp_path)
        assert names(tmp_path) == [places.LOCK, f"deep/{part}"]  # nobody touches what is being written
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path) == [places.LOCK, f"deep/{part}"]
    with places.alone(tmp_path):  # L2: the next one removes what the killed one left
        assert names(tmp_path) == [places.LOCK]
        assert (tmp_path / places.LOCK).read_text() == f"{os.getpid()}\n"
    assert names(tmp_path) == []


def test_the_lock_goes_away_with_an_error_and_is_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="stop"), places.alone(tmp_path / "new"):
            with pytest.raises(CheckpointError, match=rf"pid {os.getpid()}\)"), places.alone(tmp_path / "new"):
                pass
            raise ValueError("stop")
        assert names(tmp_path) == []


def test_of_several_processes_of_one_run_the_first_stands_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with places.alone(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with places.alone(tmp_path):
            assert names(tmp_path) == [places.LOCK]
        monkeypatch.setenv("RANK", "0")
    assert names(tmp_path) == []


def test_l2_writing_a_file_again_removes_what_killed_writers_left_of_it(tmp_path: Path) -> None:
    (tmp_path / ".r[1].json.0123abcd.part").write_text("half")
    (tmp_path / ".other.json.0123abcd.part").write_text("half")
    state.write_json(tmp_path / "r[1].json", {})
    assert names(tmp_path) == [".other.json.0123abcd.part", "r[1].json"]


def test_sweeping_follows_no_link_and_leaves_folders(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / ".a.1.part").write_text("kept")
    run = tmp_path / "run"
    (run / ".model.1.part").mkdir(parents=True)
    (run / "out").symlink_to(kept)
    (run / ".b.2.part").symlink_to(kept / ".a.1.part")
    places.sweep(run)
    assert (kept / ".a.1.part").read_text() == "kept" and (run / ".model.1.part").is_dir()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640), (0o002, 0o664)])
def test_l10_files_get_the_mode_that_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        state.write_json(tmp_path / "r.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == mode


def test_l7_disk_space_is_the_cure_of_a_full_disk_only(tmp_path: Path) -> None:
    assert "disk space" in places.cure(OSError(28, "No space left on device"))
    assert "disk space" not in places.cure(OSError(30, "Read-only file system"))
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match="choose a folder that can be written to"),
        places.alone(tmp_path / "file"),
    ):
        pass
