"""Numbers as a page writes them; durations and sizes are in :mod:`unteach.core.text`."""

import json
from typing import Any

from unteach.core import text
from unteach.records.erasure import Metric
from unteach.records.stats import Mean
from unteach.report import terms

MINUS = "−"


def percent(value: float) -> str:
    """A share in per cent; never rounded up to 100 % or down to 0 % when it is neither; it may lie outside."""
    rounded = round(100 * value)
    if not 0 <= value <= 1:
        return {0: "about 0 %", 100: "> 100 %"}.get(rounded, f"{rounded} %".replace("-", MINUS))
    if 0 < value < 0.01:
        return "< 1 %" if value < 0.005 else "1 %"
    if 0.99 < value < 1:
        return "> 99 %" if value > 0.995 else "99 %"
    return f"{rounded} %"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    rounded = round(100 * value)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else '±'}{abs(rounded)} pt"


def number(metric: Metric, value: float) -> str:
    """A value in the unit of a measure of an erasure."""
    if metric.unit == "share":
        return points(value) if metric.when == "change" and metric.p is not None else percent(value)
    if metric.unit == "dB":
        return f"{value:.1f} dB"
    return f"{value:.3f}" if metric.unit == "intensity" else f"{value:.4g}"


def between(metric: Metric) -> str:
    """The interval of a measure of an erasure: "91–99 %"."""
    if metric.unit == "share" and metric.low >= 0:
        return f"{round(100 * metric.low)}–{round(100 * metric.high)} %"
    return f"{number(metric, metric.low)} to {number(metric, metric.high)}"


def probability(p: float) -> str:
    """A p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def loss(found: Mean | None) -> str:
    """A mean loss."""
    return "–" if found is None else f"{found.mean:.4f}"


def mean(found: Mean | None) -> str:
    """A mean share with its interval: "62 % (55 to 70)"."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return percent(found.mean)
    return f"{percent(found.mean)} ({round(100 * found.low)} to {round(100 * found.high)})".replace("-", MINUS)


def signed(metric: str, gap: float) -> str:
    """A difference of a learning metric with its sign, in points for shares."""
    share = terms.term(metric).share
    shown = f"{100 * abs(gap):.1f}" if share else f"{abs(gap):.3g}"
    return ("±" if float(shown) == 0 else "+" if gap > 0 else MINUS) + shown


def value(metric: str, found: float | None) -> str:
    """A learning metric: per cent without the sign for shares."""
    if found is None:
        return "–"
    if metric == "seconds":
        return text.duration(found)
    if metric in ("passes", "peak_memory"):
        return text.size(found, "B" if metric == "peak_memory" else "")
    return (f"{100 * found:.1f}" if terms.term(metric).share else f"{found:.3g}").replace("-", MINUS)


def interval(metric: str, found: Mean | None) -> str:
    """Half the width of a learning metric's interval, as "± 1.2"; "" with one seed."""
    return "" if found is None or found.low is None else f"± {value(metric, found.mean - found.low)}"


def listed(words: list[str]) -> str:
    """ "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def plain(data: Any) -> str:
    """Settings as readable JSON."""
    return json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True)
