"""The guard of docs/adding-a-guard.md works: in the whole contract suite, and from the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import toys
from tests.guard import sets, test_contract
from tests.test_docs_learning import guide
from tests.test_guard_cli import pictures

from unteach.cli import main
from unteach.guard.methods import Job, guards
from unteach.records.mask import Mask


@pytest.fixture
def own(tmp_path: Path) -> Iterator[str]:
    with guide("adding-a-guard.md", "gradient-conflict", guards, tmp_path) as name:
        yield name


def test_it_keeps_the_contract(own: str, tmp_path: Path) -> None:
    model = sets.tiny(tmp_path / "tiny")
    data = sets.guard_data(model, 3)
    test_contract.test_its_settings_come_back_from_plain_data(own)
    test_contract.test_wrong_settings_are_listed_at_once(own)
    test_contract.test_it_is_deterministic_and_leaves_the_model_as_it_was(model, data, own, tmp_path)
    for budget in ("tensors", "parameters"):
        test_contract.test_the_budget_is_kept(model, data, own, budget)
    test_contract.test_its_mask_is_a_record_and_a_manifest(model, data, own, tmp_path)
    test_contract.test_its_cost_is_said_before(model, data, own)
    masks = [guards.make(name, rho=0.2).run(model, data, Job()).mask for name in (own, "random")]
    assert all(masks) and len({frozenset(mask.frozen) for mask in masks if mask}) == 2


def test_the_command_line_knows_it(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "masks", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "gradient-conflict" in said and "batches = 8" in said and "freezeasguard" in said
    named = [
        "--illegal",
        str(pictures(tmp_path / "a", range(4))),
        "--innocent",
        str(pictures(tmp_path / "b", range(4, 9))),
    ]
    learn = ["guard", "learn", "--model", str(toys.build("sd", tmp_path / "toy")), *named, "--method", own]
    out = tmp_path / "mask"
    assert main([*learn, "--set", "batches=1", "batch_size=2", "rho=0.1", "--out", str(out)]) == 0
    assert "no training is needed" in capsys.readouterr().out
    assert Mask.load(out).method == {
        "name": own,
        "guard": own,
        "batches": 1,
        "batch_size": 2,
        "rho": 0.1,
        "budget": "tensors",
    }
    assert main(["guard", "apply", str(out), "--out", str(tmp_path / "published")]) == 0
