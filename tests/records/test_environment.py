import os
import platform
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from unteach.records import environment


def test_it_says_where_but_not_on_whose_machine() -> None:
    found = environment.collect()
    assert found.python == platform.python_version() and found.torch == torch.__version__
    assert found.cores == os.cpu_count() and found.threads == torch.get_num_threads()
    assert found.diffusers
    text = str(asdict(found))
    assert socket.gethostname() not in text and str(Path.home()) not in text and os.getcwd() not in text


def test_the_revision_is_that_of_the_source() -> None:
    revision, dirty = environment._revision()
    here = Path(environment.__file__).parent
    tracked = subprocess.run(
        ["git", "-C", str(here), "ls-files", "environment.py"], capture_output=True, text=True
    ).stdout.strip()
    if tracked:
        head = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
        assert (revision, type(dirty)) == (head.stdout.strip(), bool)
    else:
        assert (revision, dirty) == ("", None)


def test_a_foreign_checkout_is_not_ours(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "environment.py").write_text("")
    assert environment._git(tmp_path, "ls-files", "environment.py") == ""
    assert environment._git(tmp_path / "nowhere", "rev-parse", "HEAD") == ""


def test_peak_memory_is_of_this_process() -> None:
    assert environment.peak_rss() > 50_000_000 or platform.system() == "Windows"


def test_names_come_lazily() -> None:
    from unteach import evaluate
    from unteach.records import erasure

    assert evaluate.Results is erasure.Results
    assert not hasattr(evaluate, "nothing_of_that_name")
