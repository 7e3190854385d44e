import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.errors import DataError
from unteach.records.stats import (
    Interval,
    bootstrap_mean,
    mcnemar,
    paired_difference,
    share,
    sign_test,
    wilson,
)


# Reference: scipy 1.17 binomtest(k, n).proportion_ci(confidence, method="wilson").
@pytest.mark.parametrize(
    ("k", "n", "confidence", "low", "high"),
    [
        (8, 10, 0.95, 0.4901624715366418, 0.9433178485456248),
        (8, 10, 0.90, 0.5407928056874879, 0.9314420122624679),
        (0, 12, 0.95, 0.0, 0.24249400665524085),
        (12, 12, 0.95, 0.7575059933447592, 1.0),
        (59, 60, 0.95, 0.9114487027240994, 0.9970518402052138),
        (1, 3, 0.90, 0.07826572633372841, 0.7464661317187758),
    ],
)
def test_wilson_is_the_one_of_scipy(k: int, n: int, confidence: float, low: float, high: float) -> None:
    found = wilson(k, n, confidence)
    assert found.value == k / n and found.n == n
    assert found.low == pytest.approx(low, abs=1e-12)
    assert found.high == pytest.approx(high, abs=1e-12)


@given(st.integers(1, 400), st.data())
def test_wilson_holds_its_share_and_is_symmetric(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    found, mirrored = wilson(k, n), wilson(n - k, n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    assert wilson(k, n, 0.8).high - wilson(k, n, 0.8).low < found.high - found.low


def test_wilson_solves_its_equation() -> None:
    # The ends are where |share - p| = z sqrt(p (1 - p) / n).
    found, z = wilson(13, 40), 1.959963984540054
    for end in (found.low, found.high):
        assert abs(13 / 40 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 40), rel=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_an_impossible_share_is_refused(k: int, n: int) -> None:
    with pytest.raises(DataError, match=f"{k} of {n}"):
        wilson(k, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_an_impossible_level_is_refused(confidence: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        wilson(1, 2, confidence)
    with pytest.raises(DataError, match="between 0 and 1"):
        bootstrap_mean([1.0, 2.0], confidence)


def test_share_counts_true() -> None:
    assert share([[True, False], [True, True]]) == wilson(3, 4)


def test_bootstrap_is_near_the_one_of_scipy() -> None:
    # scipy.stats.bootstrap, percentile, 200,000 resamples: 0.25 to 0.60.
    values = [0.1, 0.4, 0.2, 0.9, 0.5, 0.3, 0.7, 0.2]
    found = bootstrap_mean(values, resamples=20_000)
    assert found.value == pytest.approx(0.4125)
    assert found.low == pytest.approx(0.25, abs=0.013) and found.high == pytest.approx(0.60, abs=0.013)
    assert bootstrap_mean(values, resamples=99) == bootstrap_mean(values, resamples=99)
    assert len({bootstrap_mean(values, resamples=99, seed=seed) for seed in range(9)}) > 1


def test_bootstrap_of_every_resample() -> None:
    # Two values: the mean of a resample is 0, 1/2 or 1 with 1/4, 1/2 and 1/4.
    assert bootstrap_mean([0.0, 1.0], 0.9) == Interval(0.5, 0.0, 1.0, 2)
    assert bootstrap_mean([0.0, 1.0], 0.4) == Interval(0.5, 0.5, 0.5, 2)


@given(st.floats(-1e3, 1e3), st.integers(1, 20))
def test_bootstrap_of_a_constant_has_no_width(value: float, n: int) -> None:
    found = bootstrap_mean([value] * n, resamples=50)
    assert found.low <= found.value <= found.high
    assert found.high - found.low <= 1e-9 * max(1.0, abs(value))


def test_bootstrap_in_chunks_is_bootstrap() -> None:
    # 5,000 values: the resamples are drawn in several chunks; the normal interval is 1.96 s / sqrt(n).
    values = np.random.default_rng(0).normal(size=5000)
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / math.sqrt(5000)
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="a mean needs"):
        bootstrap_mean(values)


def test_pairs_are_differences() -> None:
    before, after = [True, True, False, True], [False, True, True, False]
    assert paired_difference(before, after) == bootstrap_mean([-1.0, 0.0, 1.0, -1.0])
    with pytest.raises(DataError, match="4 before, 3 after"):
        paired_difference(before, after[:3])
    with pytest.raises(DataError, match="4 before, 3 after"):
        mcnemar(before, after[:3])


# Reference: scipy 1.17 binomtest(lost, lost + gained).pvalue.
@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (9, 1, 0.021484375),
        (3, 3, 1.0),
        (0, 5, 0.0625),
        (40, 22, 0.030015864349067285),
        (600, 500, 0.0028195449914364284),
        (0, 0, 1.0),
    ],
)
def test_the_sign_test_is_the_one_of_scipy(lost: int, gained: int, p: float) -> None:
    assert sign_test(lost, gained) == pytest.approx(p, rel=1e-9)
    assert sign_test(gained, lost) == sign_test(lost, gained)


@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (2, 4), (7, 1), (5, 5)])
def test_the_sign_test_counts_coin_flips(lost: int, gained: int) -> None:
    n, gap = lost + gained, abs(lost - gained)
    flips = [abs(2 * sum(flip) - n) for flip in itertools.product((0, 1), repeat=n)]
    assert sign_test(lost, gained) == pytest.approx(sum(f >= gap for f in flips) / 2**n)


def test_mcnemar_counts_changes() -> None:
    found = mcnemar([1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0, 0])
    assert (found.lost, found.gained, found.p) == (4, 1, pytest.approx(0.375))
