"""The part of a page about continual learning: arms, paired differences, curves, costs, diagnostics.

Every method is a row and every plug-in a column; what belongs to one method alone is folded under its name.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from markupsafe import Markup

from unteach.core import state
from unteach.records.learning import (
    ALONE,
    Arm,
    Group,
    LearningResults,
    LearningRun,
    Mean,
    Paired,
    Values,
    holm,
)
from unteach.report import svg, terms
from unteach.report.format import signed, value
from unteach.report.section import Kind, Section, Thresholds
from unteach.report.terms import Term

CONTROLS = ("reweight", "reduced-rate", "sam")
"""Plug-ins that the others are held against, where they were run."""
COLOURS = 8
INERT, CANCELLING = 1e-3, 0.5

Means = dict[Arm, Mean | None]


@dataclass(frozen=True, kw_only=True)
class Glance:
    """Every plug-in against one control ("alone" is its host), with p-values after Holm's correction."""

    name: str
    cells: dict[Arm, Paired | None]
    holm: dict[Arm, float]
    tests: int


@dataclass(frozen=True, kw_only=True)
class Against:
    """A plug-in against all controls: verdict and sentences."""

    pairs: dict[str, Paired | None]
    tone: str
    label: str
    words: list[str]


@dataclass(frozen=True, kw_only=True)
class PluginLine:
    """A plug-in against one control over all methods: outcomes counted, those that survive Holm, the mean gap."""

    name: str
    n: int
    counts: Counter[str]
    robust: int
    mean: float


@dataclass(frozen=True, kw_only=True)
class Card:
    """What belongs to one method; ``first``, ``all`` and ``undefined`` are names of metrics."""

    id: str
    method: str
    runs: dict[Arm, list[LearningRun]]
    first: list[str]
    all: list[str]
    undefined: list[str]
    tables: dict[str, Means]
    chart: Markup
    gaps: Markup
    heats: list[tuple[Arm, list[Values]]]
    keys: list[str]
    diagnostics: list[tuple[Arm, list[tuple[float, float, float] | None]]]


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """Runs that can be compared. Alarms are arms with what a reader must know first, and in how many of their runs."""

    id: str
    results: LearningResults
    group: Group
    methods: list[str]
    plugins: list[str]
    css: dict[str, str]
    seeds: str
    most: int
    main: str
    kind: str
    means: Means
    glances: list[Glance]
    against: dict[Arm, Against]
    plugin_lines: list[tuple[str, list[PluginLine]]]
    best: Arm | None
    frontier: list[Arm]
    scatter: Markup
    chart: Markup
    alarms: list[tuple[Arm, list[tuple[str, int, int]]]]
    cards: list[Card]


@dataclass(frozen=True, kw_only=True)
class LearningSection(Section):
    """Runs by group, the words of their metrics, and where they were made."""

    TEMPLATE: ClassVar[str] = "learning.html.j2"
    STYLES: ClassVar[tuple[str, ...]] = ("charts.css", "learning.css")
    groups: list[GroupView]
    terms: list[Term]
    kinds: list[str]
    environments: list[tuple[dict[str, Any], int]]


def section(runs: Sequence[LearningRun], limits: Thresholds | None = None) -> LearningSection:
    """The part of the page.

    Raises:
        DataError: the runs contradict each other.
    """
    results = LearningResults(runs)
    names = {name for run in runs for name in run.metrics}
    made = Counter(state.canonical(run.environment) for run in runs if run.environment)
    return LearningSection(
        title="Continual learning: " + ", ".join(dict.fromkeys(g.stream for g in results.groups)),
        lead="Runs of equal seeds share their data order and first weights, so methods are compared seed by seed. "
        "Numbers are accuracies in per cent and differences in points unless named otherwise.",
        groups=[_group(f"g{index}", results.of(group)) for index, group in enumerate(results.groups)],
        terms=[term for term in terms.LEARNING if any(n.rsplit("/", 1)[-1] == term.name for n in names)],
        kinds=[text for kind, text in terms.KINDS.items() if any(n.startswith(kind + "/") for n in names)],
        environments=[(json.loads(text), count) for text, count in made.items()],
    )


def verdict(against: dict[str, Paired | None]) -> tuple[str, str]:
    """(tone, label) of a plug-in from its paired differences: "alone" is its host, the others are controls."""
    host = against.get("alone")
    if host is None:
        return "none", "no paired run of the method alone"
    if host.outcome != "better":
        labels = {
            "worse": ("bad", "worse than alone"),
            "identical": ("none", "identical to alone: it did nothing"),
            "one seed": ("none", "one seed: no interval"),
        }
        return labels.get(host.outcome, ("none", "not told apart from alone"))
    controls = {name: paired for name, paired in against.items() if name != "alone" and paired is not None}
    beaten = [name for name, paired in controls.items() if paired.outcome == "better"]
    others = [name for name in controls if name not in beaten]
    if not controls:
        return "good", "better than alone"
    if others:
        return "fair", f"better than alone, not shown better than {' or '.join(others)}"
    return "good", f"better than alone and than {' and '.join(beaten)}"


def sentence(name: str, paired: Paired | None, metric: str) -> str:
    """A paired difference in words."""
    if paired is None:
        return f"Against {name}: no common seeds."
    gap, seeds = signed(metric, paired.mean), f"better in {paired.better} of {paired.n} seeds"
    if paired.outcome == "identical":
        return f"Against {name}: exactly the same in {'the one seed' if paired.n == 1 else f'all {paired.n} seeds'}."
    if paired.low is None or paired.high is None:
        return f"Against {name}: {gap} in one seed, which says nothing about others."
    between = f"95 % interval {signed(metric, paired.low)} to {signed(metric, paired.high)}"
    word = {"better": "better", "worse": "worse", "unclear": "not told apart, the interval holds 0"}[paired.outcome]
    return f"Against {name}: {word}, {gap} ({between}; {seeds})."


def _group(ident: str, results: LearningResults) -> GroupView:
    (group,) = results.groups
    arms, kind = results.arms(), "task_il" if group.scenario == "task" else "class_il"
    main = f"{kind}/final_average_accuracy"
    methods = list(dict.fromkeys(arm.method for arm in arms))
    given = dict.fromkeys(arm.plugin for arm in arms if arm.plugin != ALONE)
    controls = [c for c in CONTROLS if c in given]
    plugins = [p for p in given if p not in controls] + controls
    css = {ALONE: "alone", **{p: _colour(i) for i, p in enumerate(plugins)}}
    means = results.table(main)
    glances = [_glance(results, name, main) for name in ("alone", *controls)]
    against = {arm: _against(arm, glances, main) for arm in arms if arm.plugin != ALONE}
    top = svg.ticks(0, max((100 * a for r in results.runs for a in r.curve(kind) if a is not None), default=100))
    seeds = [len(results.by_seed(arm)) for arm in arms]
    passes = results.table("passes")
    frontier = _frontier(passes, means)
    return GroupView(
        id=ident,
        results=results,
        group=group,
        methods=methods,
        plugins=plugins,
        css=css,
        seeds=str(seeds[0]) if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)}",
        most=max(seeds),
        main=main,
        kind=terms.KINDS[kind],
        means=means,
        glances=glances,
        against=against,
        plugin_lines=[(p, _plugin_lines(p, glances)) for p in plugins],
        best=max(known, key=known.__getitem__) if (known := {a: m.mean for a, m in means.items() if m}) else None,
        frontier=frontier,
        scatter=_scatter(main, passes, means, frontier, css),
        chart=_alone(results, methods, kind, top),
        alarms=_alarms(results, against),
        cards=[_card(f"{ident}m{i}", results, m, plugins, kind, css, top) for i, m in enumerate(methods)],
    )


def _colour(i: int) -> str:
    return f"c{i % COLOURS}{' dashed' if i >= COLOURS else ''}"


def _glance(results: LearningResults, control: str, metric: str) -> Glance:
    arms = results.arms()
    cells: dict[Arm, Paired | None] = {}
    for arm in arms:
        other = Arm(arm.method, ALONE if control == "alone" else control)
        if arm.plugin != ALONE and arm != other:
            cells[arm] = results.paired(arm, other, metric) if other in arms else None
    tested = {arm: c.p for arm, c in cells.items() if c is not None and c.p is not None and c.equal < c.n}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return Glance(name=control, cells=cells, holm=adjusted, tests=len(tested))


def _against(arm: Arm, glances: Sequence[Glance], main: str) -> Against:
    pairs = {g.name: g.cells[arm] for g in glances if arm in g.cells}
    control = arm.plugin in {g.name for g in glances}  # a control is held against the host alone
    tone, label = verdict({"alone": pairs.get("alone")} if control else pairs)
    return Against(pairs=pairs, tone=tone, label=label, words=[sentence(n, p, main) for n, p in pairs.items()])


def _plugin_lines(plugin: str, glances: Sequence[Glance]) -> list[PluginLine]:
    lines = []
    for glance in glances:
        cells = {a: c for a, c in glance.cells.items() if a.plugin == plugin and c is not None}
        if cells:
            counts = Counter(c.outcome for c in cells.values())
            robust = sum(glance.holm.get(a, 1.0) < 0.05 and c.outcome == "better" for a, c in cells.items())
            gap = fmean(c.mean for c in cells.values())
            lines.append(PluginLine(name=glance.name, n=len(cells), counts=counts, robust=robust, mean=gap))
    return lines


def _alone(results: LearningResults, methods: Sequence[str], kind: str, top: Sequence[float]) -> Markup:
    """Every method by itself, in one chart."""
    arms = [(i, Arm(method)) for i, method in enumerate(methods) if Arm(method) in results.arms()]
    drawn = [_line(str(arm), _colour(i), _curve(results, arm, kind)) for i, arm in arms]
    title, room = "Mean accuracy on the tasks seen so far, each method alone", 8 * max(map(len, methods))
    return svg.lines(drawn, title=title, x_label="tasks seen", scale=top, width=1100, height=320, names=room)


def _curve(results: LearningResults, arm: Arm, kind: str) -> Values:
    return _average([run.curve(kind) for run in results.by_seed(arm).values()])


def _line(label: str, css: str, values: Values) -> svg.Line:
    return svg.Line(label=label, css=css, values=tuple(None if v is None else 100 * v for v in values))


def _frontier(cost: Means, mean: Means) -> list[Arm]:
    """Arms that no other arm beats at equal or fewer passes, by passes."""
    known = [(c.mean, -m.mean, a) for a, c in cost.items() if c and (m := mean[a]) and c.mean > 0]
    found, best = [], float("inf")
    for _, lost, arm in sorted(known):
        if lost < best:
            found.append(arm)
            best = lost
    return found


def _scatter(main: str, cost: Means, mean: Means, best: Sequence[Arm], css: dict[str, str]) -> Markup:
    points = []
    for arm, c in cost.items():
        if c and (m := mean[arm]) and c.mean > 0:
            label = f"{arm}: {value(main, m.mean)} % at {value('passes', c.mean)} passes"
            note = str(arm) if arm in best else ""
            points.append(svg.Point(label=label, css=css[arm.plugin], x=c.mean, y=100 * m.mean, note=note))
    x_label, y_label = "forward-backward passes of a run", "accuracy, %"
    return svg.scatter(points, title="Accuracy against passes", x_label=x_label, y_label=y_label)


def _alarms(results: LearningResults, against: dict[Arm, Against]) -> list[tuple[Arm, list[tuple[str, int, int]]]]:
    """Arms that did nothing, that diverged, and what runs warned of."""
    found = []
    for arm in results.arms():
        runs = results.by_seed(arm).values()
        said = Counter(line for run in runs for line in dict.fromkeys([*_flags(run.diagnostics), *run.warnings]))
        host = against[arm].pairs.get("alone") if arm in against else None
        lines = [(text, count, len(runs)) for text, count in said.items()]
        if host is not None and host.outcome == "identical":
            lines.insert(0, ("inert: every seed gave exactly what the method gives alone", host.n, len(runs)))
        if lines:
            found.append((arm, lines))
    return found


def _flags(diagnostics: Sequence[dict[str, float | None]]) -> list[str]:
    found = []
    for key, number in ((key, number) for task in diagnostics for key, number in task.items()):
        if number is None:
            found.append(f"diverged: {key} was not a finite number")
        elif key in ("unlearn_ratio", "refresh_ratio") and number < INERT:
            found.append(f"inert: in some task its step was below {INERT:g} of the descent step ({key})")
        elif key.startswith("cancelling") and number > CANCELLING:
            found.append(f"diverging: in some task more than half of the steps climbed the loss ({key})")
    return list(dict.fromkeys(found))


def _card(
    ident: str,
    results: LearningResults,
    method: str,
    plugins: Sequence[str],
    kind: str,
    css: dict[str, str],
    top: Sequence[float],
) -> Card:
    arms = [arm for arm in (Arm(method, p) for p in (ALONE, *plugins)) if arm in results.arms()]
    runs = {arm: list(results.by_seed(arm).values()) for arm in arms}
    names = list(dict.fromkeys(n for r in runs.values() for run in r for n in run.metrics))
    tables = {name: _known(results, arms, name) for name in names}
    curves = {arm: _curve(results, arm, kind) for arm in arms}
    drawn = [_line(str(arm), css[arm.plugin], curve) for arm, curve in reversed(curves.items())]
    host, added = curves.get(Arm(method)), [arm for arm in reversed(arms) if arm.plugin != ALONE]
    gaps = [_line(str(arm), css[arm.plugin], tuple(map(_gap, curves[arm], host))) for arm in added if host]
    keys = list(dict.fromkeys(key for r in runs.values() for run in r for task in run.diagnostics for key in task))
    return Card(
        id=ident,
        method=method,
        runs=runs,
        first=[n for n in terms.FIRST if any(tables.get(n, {}).values())],
        all=[n for n in names if any(tables[n].values())],
        undefined=[n for n in names if not any(tables[n].values())],
        tables=tables,
        chart=svg.lines(drawn, title=f"{method}: average accuracy", x_label="tasks seen", scale=top),
        gaps=svg.lines(gaps, title=f"{method}: difference from alone", x_label="tasks seen"),
        heats=[(arm, _heat([run.matrices.get(kind, ()) for run in runs[arm]])) for arm in arms],
        keys=keys,
        diagnostics=[(arm, [_span(runs[arm], key) for key in keys]) for arm in arms if arm.plugin != ALONE],
    )


def _known(results: LearningResults, arms: Sequence[Arm], name: str) -> Means:
    """Means of a metric that some runs may not know."""
    table = LearningResults(r for r in results.runs if r.key.arm in arms and name in r.metrics).table(name)
    return {arm: table.get(arm) for arm in arms}


def _average(rows: Sequence[Values]) -> Values:
    columns = [[v for v in column if v is not None] for column in zip(*filter(None, rows), strict=True)]
    return tuple(fmean(column) if column else None for column in columns)


def _gap(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _heat(matrices: Sequence[Sequence[Values]]) -> list[Values]:
    return [_average(rows) for rows in zip(*filter(None, matrices), strict=True)]


def _span(runs: Sequence[LearningRun], key: str) -> tuple[float, float, float] | None:
    known = [v for run in runs for task in run.diagnostics if (v := task.get(key)) is not None]
    return (fmean(known), min(known), max(known)) if known else None


KINDS = (Kind(record=LearningRun, what="runs of continual learning", file=LearningRun.FILE, section=section),)
