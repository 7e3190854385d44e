import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracle import memory as oracle

from unteach.continual.memory.selection import herding
from unteach.core import seeds
from unteach.errors import ConfigError, DataError


@settings(max_examples=25)
@given(st.integers(1, 25), st.integers(1, 6), st.integers(0, 30), st.integers(0, 9))
def test_herding_is_the_literal_loop(n: int, d: int, count: int, seed: int) -> None:
    features = torch.randn(n, d, generator=seeds.generator(seed, "features")) * 5
    picks = herding(features, count).tolist()
    assert len(picks) == len(set(picks)) == min(count, n)
    for k, pick in enumerate(picks):
        # the nearest one; two rows and opposite rows are at exactly the same distance, and rounding may take either
        distances = oracle.herding_distances(features, picks[:k])
        assert distances[pick] <= min(distances) + 1e-12


def test_herding_comes_nearer_to_the_mean_than_chance_and_its_first_part_is_a_herding() -> None:
    features = torch.randn(200, 8, generator=seeds.generator(0, "features"))
    phi = torch.nn.functional.normalize(features, dim=1)
    picks = herding(features, 20)
    assert torch.equal(herding(features, 7), picks[:7])
    assert len(picks.unique()) == 20
    error = (phi[picks].mean(0) - phi.mean(0)).norm()
    chance = [(phi[seeds.permutation(200, 0, "p", i)[:20]].mean(0) - phi.mean(0)).norm() for i in range(50)]
    assert error < 0.5 * min(chance)


def test_herding_refuses() -> None:
    with pytest.raises(DataError, match="finite"):
        herding(torch.tensor([[1.0, float("nan")]]), 1)
    with pytest.raises(DataError, match="matrix"):
        herding(torch.zeros(3), 1)
    with pytest.raises(ConfigError, match="fewer"):
        herding(torch.zeros(3, 2), -1)
    assert herding(torch.zeros(0, 2), 3).shape == (0,)
