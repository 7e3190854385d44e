"""The attack of docs/adding-an-attack.md works, from Python and from the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests import toys
from tests.guard import sets
from tests.test_docs_learning import guide
from tests.test_guard_cli import pictures

from unteach.attack import Probes, attacks
from unteach.attack.sweep import sweep
from unteach.cli import main
from unteach.records.attack import Relearning


@pytest.fixture
def own(tmp_path: Path) -> Iterator[str]:
    with guide("adding-an-attack.md", "mezo", attacks, tmp_path) as name:
        yield name


def test_it_is_an_attack(own: str, tmp_path: Path) -> None:
    model = sets.tiny(tmp_path / "tiny")
    before, names = toys.weights(model), [name for name, _ in model.denoiser.named_parameters()]
    data = sets.examples(model, "attack", sets.ILLEGAL, 4)
    probes = Probes({"illegal": sets.examples(model, "illegal", sets.ILLEGAL, 2, " probe")}, draws=1)
    grid = [attacks.make(own, steps=3, batch_size=4, learning_rate=3e-3, seed=seed) for seed in (0, 1)]
    plain, half, *_ = sweep(model, data, probes, grid, masks={"half": names[::2]}, out=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in toys.weights(model).items())
    assert plain.at == half.at == (0, 3) and plain.losses["illegal"][0] == half.losses["illegal"][0]
    assert len({plain.losses["illegal"][0], plain.losses["illegal"][1], half.losses["illegal"][1]}) == 3
    assert grid[0].run(model, data, probes, frozen=names[::2]).losses == half.losses
    held = grid[0].run(model, data, probes, frozen=names)
    assert held.losses["illegal"][0] == held.losses["illegal"][1] and held.trained_tensors == 0


def test_the_command_line_knows_it(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attacks", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "mezo" in said and "radius = 0.001" in said and "relearn" in said
    model = ["--model", str(toys.build("sd", tmp_path / "toy")), "--illegal", str(pictures(tmp_path / "a", range(4)))]
    more = ["--steps", "1", "2", "--rates", "1e-3", "1e-2", "--batch-size", "2", "--draws", "1"]
    assert main(["attack", own, *model, *more, "--out", str(tmp_path / "out")]) == 0
    found = Relearning.load(tmp_path / "out")
    assert [(r.learning_rate, r.at) for r in found.records] == [(1e-3, (0, 1, 2)), (1e-2, (0, 1, 2))]
    assert main(["attack", "relearn", *model, *more, "--out", str(tmp_path / "out")]) == 2
    assert "attack was 'mezo', is now None" in capsys.readouterr().err
    assert main(["attack", "mezzo", *model, *more, "--out", str(tmp_path / "out")]) == 2
    assert "no attack is called 'mezzo'; to do: did you mean 'mezo'?" in capsys.readouterr().err
