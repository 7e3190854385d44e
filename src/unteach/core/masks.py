"""Which tensors move: by name patterns, or by score within an exact budget.

Names are dotted parameter names (``down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight``) and
patterns are regular expressions that must match the *whole* name (``re.fullmatch``). A parameter that is
reachable under several names (tied or shared) is one tensor: it is counted once, it answers to any of its
names, and it is reported under the first one, which is the name in ``module.named_parameters()``.
"""

import difflib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

from torch import nn

from unteach.core.registry import near
from unteach.errors import ConfigError, ModelError, NumericsError

logger = logging.getLogger(__name__)

Measure = Literal["tensors", "parameters"]
OTHER = "(other)"


@dataclass
class _Entry:
    """One parameter with every name it answers to; the first is the name it is reported under."""

    parameter: nn.Parameter
    names: list[str] = field(default_factory=list)


def select(module: nn.Module, patterns: Sequence[str], exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The parameters whose whole name matches one of ``patterns`` and none of ``exclude``.

    Args:
        module: where to look.
        patterns: regular expressions, e.g. ``r".*attn2\\.to_[kv]\\.weight"``.
        exclude: regular expressions of what to leave out; it wins over ``patterns``.

    Returns:
        Name to parameter, in the module's order, whatever the order of the patterns; each parameter once.

    Raises:
        ConfigError: no pattern, one string instead of a list, or an invalid regular expression.
        ModelError: a pattern (of either list) that matches nothing, or nothing left; lists some names.
    """
    wanted, unwanted = _compile(patterns, "patterns"), _compile(exclude, "exclude")
    if not wanted:
        raise ConfigError("no pattern was given, so nothing can be selected", fix="give at least one, or '.*' for all")
    entries = _entries(module)
    _all_used(entries, [*wanted, *unwanted], module)
    chosen: dict[str, nn.Parameter] = {}
    for entry in entries:
        hit = _first(entry, wanted)
        if hit is None or _first(entry, unwanted) is not None:
            continue
        logger.debug("%s selected by '%s'", entry.names[0], hit.pattern)
        chosen[entry.names[0]] = entry.parameter
    if not chosen:
        raise ModelError(
            f"no parameter of {type(module).__name__} is selected: exclude takes out all matches",
            found=f"patterns {_quoted(patterns)}, exclude {_quoted(exclude)}; {_available(entries)}",
            fix="narrow exclude",
        )
    return chosen


def table(module: nn.Module, groups: Mapping[str, str]) -> str:
    """A printable table of the groups: tensors, parameters, share of the module's parameters, and the total.

    Args:
        module: the whole that the shares refer to.
        groups: parameter name to group, e.g. ``dict.fromkeys(select(...), "trained")``. Parameters that are not
            listed make up the row ``(other)``. Groups come in order of first appearance.

    Raises:
        ModelError: a name that the module does not have, or two names of one shared parameter in two groups.
    """
    entries = _entries(module)
    owner = {name: entry.names[0] for entry in entries for name in entry.names}
    label: dict[str, str] = {}
    for name, group in groups.items():
        if name not in owner:
            raise ModelError(f"{type(module).__name__} has no parameter '{name}'", fix=near(name, owner))
        if label.setdefault(owner[name], group) != group:
            raise ModelError(
                f"'{name}' and '{owner[name]}' are one shared parameter but are in two groups",
                found=f"'{group}' and '{label[owner[name]]}'",
                fix="put both names in one group",
            )
    tensors = dict.fromkeys(label.values(), 0)
    sizes = dict.fromkeys(label.values(), 0)
    for entry in entries:
        group = label.get(entry.names[0], OTHER)
        tensors[group] = tensors.get(group, 0) + 1
        sizes[group] = sizes.get(group, 0) + entry.parameter.numel()
    total = sum(sizes.values())
    rows = [(group, tensors[group], sizes[group]) for group in tensors] + [("total", len(entries), total)]
    cells = [("group", "tensors", "parameters", "share")]
    cells += [(g, f"{n:,}", f"{size:,}", f"{size / max(total, 1):.2%}") for g, n, size in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def by_score(
    scores: Mapping[str, float], sizes: Mapping[str, int], budget: float, measure: Measure = "tensors"
) -> set[str]:
    """The names with the highest scores that fit in the budget, never over it.

    Rounding rule: the limit is ``floor(budget * total)``, worked out exactly on the decimal number as it is
    written, so 0.29 of 100 tensors is 29 (in binary floating point it would be 28). Names are taken in order
    of falling score, ties by name. With ``measure="parameters"`` a name that no longer fits is passed over
    and smaller ones further down may still be taken, so the choices of two budgets need not contain each
    other.

    Args:
        scores: name to score; infinities are allowed.
        sizes: the same names to parameter counts (or any other cost in whole numbers, such as FLOPs); list a
            shared parameter once, as :func:`select` does.
        budget: share of the total in [0, 1]; 0 gives the empty set, 1 gives all names.
        measure: what the share is a share of: the number of names, or the sum of the sizes.

    Raises:
        ConfigError: names that differ between scores and sizes, a negative size, a bad budget or measure.
        NumericsError: a score that is not a number.
    """
    problems = []
    if measure not in get_args(Measure):
        problems.append(f"no measure is called '{measure}', {near(measure, get_args(Measure))}")
    if not (math.isfinite(budget) and 0 <= budget <= 1):
        problems.append(f"the budget is a share and must be in [0, 1], found {budget}")
    if scores.keys() != sizes.keys():
        problems.append(f"scores and sizes have different names: {_listed(sorted(scores.keys() ^ sizes.keys()))}")
    negative = sorted(name for name, size in sizes.items() if size < 0)
    if negative:
        problems.append(f"sizes must not be negative: {_listed(negative)}")
    if problems:
        raise ConfigError.many(problems, where="the choice by score")
    undefined = sorted(name for name, score in scores.items() if math.isnan(score))
    if undefined:
        raise NumericsError("scores that are not a number cannot be ranked", found=_listed(undefined))
    cost = dict.fromkeys(scores, 1) if measure == "tensors" else sizes
    left = math.floor(Fraction(repr(float(budget))) * sum(cost.values()))
    chosen = set()
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        if cost[name] <= left and budget > 0:
            chosen.add(name)
            left -= cost[name]
    return chosen


def _entries(module: nn.Module) -> list[_Entry]:
    """Every parameter once, in the module's order, with all its names."""
    entries: dict[int, _Entry] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        entries.setdefault(id(parameter), _Entry(parameter)).names.append(name)
    if not entries:
        raise ModelError(f"{type(module).__name__} has no parameters")
    return list(entries.values())


def _compile(patterns: Sequence[str], what: str) -> list[re.Pattern[str]]:
    """Compile all patterns, or raise one ConfigError for every invalid one."""
    if isinstance(patterns, str):
        raise ConfigError(
            f"{what} must be a list of patterns", found=f"the string '{patterns}'", fix="put it in a list"
        )
    compiled, problems = [], []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            problems.append(f"'{pattern}' is not a regular expression: {error}")
    if problems:
        raise ConfigError.many(problems, where=what)
    return compiled


def _first(entry: _Entry, patterns: Sequence[re.Pattern[str]]) -> re.Pattern[str] | None:
    """The first pattern that matches one of the entry's names in full."""
    return next((p for p in patterns if any(p.fullmatch(name) for name in entry.names)), None)


def _all_used(entries: Sequence[_Entry], patterns: Sequence[re.Pattern[str]], module: nn.Module) -> None:
    """Raise a ModelError that lists every pattern that matches no name, with what it may have meant."""
    unused = [p for p in patterns if not any(_first(entry, [p]) for entry in entries)]
    if not unused:
        return
    names = [name for entry in entries for name in entry.names]
    hints = []
    for pattern in unused:
        inside = [name for name in names if pattern.search(name)]
        if inside:
            hints.append(f"'{pattern.pattern}' is only a part of {_listed(inside, 3)}: try '.*{pattern.pattern}.*'")
            continue
        plain = re.sub(r"[\\^$*+?()\[\]{}|]", "", pattern.pattern).strip(".")
        close = difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
        hints.append(f"'{pattern.pattern}' is near " + _listed(close) if close else "patterns match whole names")
    raise ModelError(
        f"no parameter of {type(module).__name__} matches {_quoted([p.pattern for p in unused])}",
        found=_available(entries),
        fix="; ".join(dict.fromkeys(hints)),
    )


def _available(entries: Sequence[_Entry]) -> str:
    """Some of the names, spread over the module."""
    names = [entry.names[0] for entry in entries]
    step = max(1, math.ceil(len(names) / 8))
    return f"{len(names)} parameters, such as " + ", ".join(names[::step])


def _listed(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _quoted(patterns: Sequence[str]) -> str:
    """Patterns in quotes."""
    return ", ".join(f"'{pattern}'" for pattern in patterns) if patterns else "none"
