"""Intervals and paired tests, as pure functions (erasure §4.14).

Everything here takes plain sequences or arrays and returns plain numbers. Random resampling is a function of
``seed``. Units are taken to be independent: images of one prompt with several seeds are counted as such.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from unteach.errors import DataError


@dataclass(frozen=True)
class Interval:
    """A value with a two-sided confidence interval and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class McNemar:
    """Outcome of the exact McNemar test on paired yes/no answers.

    Attributes:
        lost: pairs that were true before and false after.
        gained: pairs that were false before and true after.
        p: two-sided exact p-value (1 when no pair changed).
    """

    lost: int
    gained: int
    p: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a share (Wilson 1927), without continuity correction.

    Raises:
        DataError: when ``n`` is not positive or ``successes`` is outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise DataError("a share needs at least one observation and 0 <= successes <= n", found=f"{successes} of {n}")
    # Not scipy's, which differs in the last bits: the committed claims are held to the bit.
    z = NormalDist().inv_cdf((1 + _level(confidence)) / 2)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return Interval(share, 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half, n)


def share(hits: ArrayLike, confidence: float = 0.95) -> Interval:
    """Wilson interval of the share of true values in ``hits`` (any shape, bool)."""
    flat = np.asarray(hits, dtype=bool).ravel()
    return wilson(int(flat.sum()), flat.size, confidence)


def bootstrap_mean(values: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean.

    Args:
        values: (N,) finite numbers, one an independent unit (an image or a prompt).
        confidence: two-sided level.
        resamples: number of bootstrap means.
        seed: the interval is a function of the values and this seed.

    Raises:
        DataError: when there is no value, or one is not finite.
    """
    flat = _numbers(values)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, 4_000_000 // flat.size)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        means[start : start + rows] = flat[rng.integers(0, flat.size, (rows, flat.size))].mean(axis=1)
    tail = (1 - _level(confidence)) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    mean = float(flat.mean())
    # a constant sample can differ from its own bootstrap means in the last bit
    return Interval(mean, min(float(low), mean), max(float(high), mean), flat.size)


def paired_difference(
    before: ArrayLike, after: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Bootstrap interval of mean(after - before) over pairs: pair i is the same prompt and seed.

    Raises:
        DataError: when the two differ in length, are empty, or hold a number that is not finite.
    """
    first, second = _numbers(before), _numbers(after)
    if first.size != second.size:
        raise DataError("paired values must come in equal numbers", found=f"{first.size} before, {second.size} after")
    return bootstrap_mean(second - first, confidence, resamples, seed)


def mcnemar(before: ArrayLike, after: ArrayLike) -> McNemar:
    """Exact McNemar test: are as many pairs lost as gained? (binomial(lost + gained, 1/2), two-sided).

    Raises:
        DataError: when the two differ in length.
    """
    first = np.asarray(before, dtype=bool).ravel()
    second = np.asarray(after, dtype=bool).ravel()
    if first.size != second.size:
        raise DataError("paired answers must come in equal numbers", found=f"{first.size} before, {second.size} after")
    lost = int((first & ~second).sum())
    gained = int((~first & second).sum())
    return McNemar(lost, gained, sign_test(lost, gained))


def sign_test(lost: int, gained: int) -> float:
    """Two-sided exact p-value that ``lost`` and ``gained`` are equally likely: min(1, 2 P[X <= min])."""
    from scipy.stats import binomtest  # a second to import, which nobody pays who reads

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


@dataclass(frozen=True)
class Mean:
    """Mean over seeds; with one seed there is no deviation and no interval.

    Attributes:
        mean: over seeds.
        sd: sample standard deviation (n - 1).
        low: lower end of the 95 % t-interval of the mean.
        high: upper end.
        n: seeds.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Paired(Mean):
    """Mean of arm - control over the seeds that both have.

    Attributes:
        better: seeds in which the arm is better, in the metric's direction.
        equal: seeds in which both are exactly equal.
        p: two-sided, of the paired t-test; None with one seed. 1 when all differences are 0.
        lower_is_better: direction of the metric.
    """

    better: int
    equal: int
    p: float | None
    lower_is_better: bool

    @property
    def outcome(self) -> str:
        """When the interval excludes 0 "better" or "worse"; else "unclear", "identical" or "one seed"."""
        if self.equal == self.n:
            return "identical"
        if self.low is None or self.high is None:
            return "one seed"
        if self.low <= 0 <= self.high:
            return "unclear"
        return "better" if (self.mean < 0) == self.lower_is_better else "worse"


def t_mean(values: Sequence[float]) -> Mean:
    """Mean with its 95 % t-interval, n - 1 degrees of freedom; the values are taken as independent and near normal."""
    n, mean = len(values), fmean(values)
    if n == 1:
        return Mean(mean, None, None, None, 1)
    sd = stdev(values)
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Mean(mean, sd, mean - half, mean + half, n)


def paired_t(pairs: Sequence[tuple[float, float]], lower: bool = False) -> Paired | None:
    """Differences a - b of pairs (a, b) with their t-interval and paired t-test; ``lower``: less is better."""
    if not pairs:
        return None
    gaps = [a - b for a, b in pairs]
    of = t_mean(gaps)
    p: float | None = None
    if of.sd is not None:
        p = 1.0 if not any(gaps) else 0.0
        if of.sd > 0:
            p = float(2 * stdtr(of.n - 1, -abs(of.mean) / (of.sd / math.sqrt(of.n))))
    better = sum(gap < 0 if lower else gap > 0 for gap in gaps)
    return Paired(of.mean, of.sd, of.low, of.high, of.n, better, sum(gap == 0 for gap in gaps), p, lower)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): below α with probability α at most, all nulls being true."""
    adjusted, largest, m = [1.0] * len(p_values), 0.0, len(p_values)
    for rank, place in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _level(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise DataError("a confidence level lies strictly between 0 and 1", found=confidence)
    return confidence


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size == 0:
        raise DataError("a mean needs at least one value")
    if not np.isfinite(flat).all():
        raise DataError("a mean needs finite values", found=f"{int((~np.isfinite(flat)).sum())} not finite")
    return flat
