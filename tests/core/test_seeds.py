"""Draws depend on (seed, purpose, indices) alone: not on batch, world size, order or the global state."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unteach.core import seeds
from unteach.core.loop import Step

SEEDS = st.integers(-(2**40), 2**63)
ITEMS = st.lists(st.integers(0, 10**6), max_size=5)


def test_pinned_integers_and_permutation() -> None:
    assert seeds.integer(0, "noise") == 3036726077145644715
    assert seeds.integer(7, "noise", 3, "a") == 609126998640575669
    assert seeds.randint(1000, 0, "t", 5, range(5)).tolist() == [13, 462, 290, 919, 400]
    assert seeds.permutation(8, 0, "order", 2).tolist() == [5, 0, 6, 7, 2, 4, 1, 3]


def test_pinned_normal_and_uniform_draws() -> None:
    expected = torch.tensor([[-0.4902, 1.3309, -0.4480], [-1.7497, -0.9411, 0.3865]])
    torch.testing.assert_close(seeds.randn((3,), 0, "noise", 5, [0, 9]), expected, atol=5e-5, rtol=0)
    expected = torch.tensor([[0.9658, 0.8465]])
    torch.testing.assert_close(seeds.rand((2,), 0, "t", 5, [1]), expected, atol=5e-5, rtol=0)


@settings(max_examples=50)
@given(SEEDS, st.text(max_size=8), st.lists(st.one_of(st.integers(), st.text(max_size=4)), max_size=3))
def test_equal_arguments_give_equal_63_bit_integers(seed: int, purpose: str, index: list[int | str]) -> None:
    value = seeds.integer(seed, purpose, *index)
    assert value == seeds.integer(seed, purpose, *index)
    assert 0 <= value < 2**63


def test_no_two_keys_share_an_integer() -> None:
    keys: list[tuple[int, str, tuple[int | str, ...]]] = [
        (seed, purpose, index)
        for seed in (-1, 0, 1, 10, 2**32)
        for purpose in ("", "t", "noise", "noise 1", "t'")
        for index in ((), (0,), (1,), (0, 1), (1, 0), (1, 1), ("1",), ("0", 1), ("0, 1",), (10,), (-1,))
    ]
    assert len({seeds.integer(seed, purpose, *index) for seed, purpose, index in keys}) == len(set(keys))


def test_a_numpy_or_torch_integer_counts_as_the_plain_one() -> None:
    plain = seeds.integer(3, "noise", 4, 5)
    assert seeds.integer(int(np.int64(3)), "noise", np.int64(4), np.uint8(5)) == plain  # type: ignore[arg-type]
    assert seeds.integer(3, "noise", torch.tensor(4), 5) == plain  # type: ignore[arg-type]
    items = torch.tensor([2, 7])
    assert torch.equal(
        seeds.randn((4,), 0, "noise", 1, items),  # type: ignore[arg-type]
        seeds.randn((4,), 0, "noise", 1, [2, 7]),
    )


@settings(max_examples=50)
@given(SEEDS, ITEMS, st.integers(0, 10**6))
def test_a_row_depends_on_its_own_item_alone(seed: int, items: list[int], step: int) -> None:
    """The batch that an item shares, and its place in it, change nothing."""
    normal = seeds.randn((2, 3), seed, "noise", step, items)
    uniform = seeds.rand((3,), seed, "noise", step, items)
    whole = seeds.randint(17, seed, "noise", step, items)
    assert normal.shape == (len(items), 2, 3) and uniform.shape == (len(items), 3)
    assert whole.shape == (len(items),) and whole.dtype == torch.int64
    for row, item in enumerate(items):
        assert torch.equal(normal[row], seeds.randn((2, 3), seed, "noise", step, [item])[0])
        assert torch.equal(uniform[row], seeds.rand((3,), seed, "noise", step, [item])[0])
        assert whole[row] == seeds.randint(17, seed, "noise", step, [item])[0]
    assert bool(((uniform >= 0) & (uniform < 1)).all()) and bool(((whole >= 0) & (whole < 17)).all())


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_the_number_of_processes_changes_no_draw(world: int) -> None:
    def batch(rank: int) -> tuple[torch.Tensor, ...]:
        step = Step(index=9, total=20, seed=5, rank=rank, world=world)
        items = step.items(12)
        return (
            step.randn("noise", (3, 2), items),
            step.rand("t", (2,), items),
            step.randint("pick", 1000, items),
        )

    parts = [torch.cat(part) for part in zip(*(batch(rank) for rank in range(world)), strict=True)]
    assert torch.equal(parts[0], seeds.randn((3, 2), 5, "noise", 9, range(12)))
    assert torch.equal(parts[1], seeds.rand((2,), 5, "t", 9, range(12)))
    assert torch.equal(parts[2], seeds.randint(1000, 5, "pick", 9, range(12)))


def test_every_argument_changes_the_draws() -> None:
    base = seeds.randn((16,), 0, "noise", 0, [0])
    for other in (
        seeds.randn((16,), 1, "noise", 0, [0]),
        seeds.randn((16,), 0, "t", 0, [0]),
        seeds.randn((16,), 0, "noise", 1, [0]),
        seeds.randn((16,), 0, "noise", 0, [1]),
    ):
        # Another stream, not a shifted or partly equal one.
        assert not bool(torch.isin(other, base).any())


def test_the_global_random_state_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    first = seeds.randn((5,), 0, "noise", 0, range(3))
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(seeds.randn((5,), 0, "noise", 0, range(3)), first)


def test_draws_have_the_distribution_that_they_are_named_after() -> None:
    """Neighbouring items are independent: moments and correlation as of one long stream (5 sigma)."""
    count = 4000
    normal = seeds.randn((2,), 3, "noise", 0, range(count))
    assert abs(float(normal.mean())) < 5 / (2 * count) ** 0.5
    assert abs(float(normal.var()) - 1) < 5 * (2 / (2 * count)) ** 0.5
    assert abs(float((normal[:-1, 0] * normal[1:, 0]).mean())) < 5 / count**0.5
    uniform = seeds.rand((), 3, "t", 0, range(count))
    assert abs(float(uniform.mean()) - 0.5) < 5 * (1 / 12 / count) ** 0.5
    counts = torch.bincount(seeds.randint(10, 3, "pick", 0, range(count)), minlength=10).double()
    assert float(((counts - count / 10) ** 2 / (count / 10)).sum()) < 33.7  # chi-square, 9 degrees, p = 1e-4


def test_shapes_and_dtypes() -> None:
    assert seeds.randn((), 0, "noise", 0, range(3)).shape == (3,)
    assert seeds.rand((), 0, "noise", 0, []).shape == (0,)
    assert seeds.randn((2, 0), 0, "noise", 0, [1]).shape == (1, 2, 0)
    assert seeds.randn((4,), 0, "noise", 0, [], dtype=torch.float64).dtype == torch.float64
    assert seeds.randn((4,), 0, "noise", 0, [1], dtype=torch.bfloat16).dtype == torch.bfloat16
    assert seeds.randint(5, 0, "noise", 0, []).dtype == torch.int64


@settings(max_examples=50)
@given(st.integers(0, 40), SEEDS)
def test_a_permutation_holds_every_number_once(n: int, seed: int) -> None:
    order = seeds.permutation(n, seed, "order")
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, seeds.permutation(n, seed, "order"))


def test_permutations_differ_by_purpose_and_index() -> None:
    orders = {
        tuple(seeds.permutation(20, 0, *key).tolist()) for key in (("a",), ("b",), ("a", 1), ("a", 2), ("a", "x"))
    }
    assert len(orders) == 5


def test_generators_of_one_key_are_fresh_each_time() -> None:
    first = seeds.generator(0, "noise", 1)
    torch.rand(7, generator=first)
    assert torch.equal(
        torch.rand(4, generator=seeds.generator(0, "noise", 1)),
        torch.rand(4, generator=seeds.generator(0, "noise", 1)),
    )
    assert seeds.generator(0, "noise", 1).initial_seed() == seeds.integer(0, "noise", 1)
