"""Killed at random moments and run again, a command gives what the unbroken one gives; here with six kills.

benchmarks/security/kills.py does a hundred and twenty, over all commands (M1, M2, L2 of the security trials).
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_end(tmp_path: Path) -> None:
    call = [sys.executable, "benchmarks/security/kills.py", "--work", str(tmp_path), "--kills", "12"]
    done = subprocess.run(
        [*call, "--only", "learn", "erase"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kills in" in done.stdout.splitlines()[-1]
