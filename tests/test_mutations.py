"""Damaged files are read or refused by one of our errors, soon, and none of their code is run; here a few hundred.

benchmarks/security/mutations.py does six thousand, and loads damaged pipelines too, which takes longer.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.security import mutators

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_no_traceback_no_hang_no_code_run(tmp_path: Path) -> None:
    call = [sys.executable, "benchmarks/security/mutations.py", "--work", str(tmp_path), "--files", "300"]
    done = subprocess.run(
        [*call, "--without", "loading"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts.pop("files") > 250 and set(counts.values()) == {0}


def test_the_canary_tells_when_code_is_run(tmp_path: Path) -> None:
    import pickle

    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(mutators.Canary(canary)))
    assert canary.exists()


@pytest.mark.parametrize("damage", [mutators.as_json, mutators.as_yaml, mutators.as_lines, mutators.as_table])
def test_damage_is_drawn_from_the_seed(damage: object) -> None:
    data = b'{"a": 1, "b": [1, 2, {"c": "text"}]}'
    made = [[damage(data, random.Random(seed)) for seed in range(20)] for _ in range(2)]  # type: ignore[operator]
    assert made[0] == made[1] and len(set(made[0])) > 10
