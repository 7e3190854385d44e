"""One self-contained page from runs of continual learning: arms, paired differences, curves, costs, diagnostics.

A reader finds every method in a row and every plug-in in a column; what belongs to one method alone is folded
under its name. No scripts, no requests, no model.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unteach.core import state, text
from unteach.records.learning import ALONE, Arm, Group, LearningResults, Mean, Paired, holm, lower_is_better
from unteach.report import learning_words as words
from unteach.report import svg, view

CONTROLS = ("reweight", "reduced-rate", "sam")
"""Plug-ins that the others are held against, where they were run."""

COLOURS = 8
INERT, CANCELLING = 1e-3, 0.5


def render_learning(
    results: LearningResults | Path | str, out: Path | str, title: str = "", *, controls: Sequence[str] = CONTROLS
) -> Path:
    """Write a report of runs.

    Args:
        results: runs, or a folder with ``run.json`` files in it and below.
        out: HTML file to write; a folder gets a ``learning.html``.
        title: headline of the page.
        controls: labels of plug-ins that every other plug-in is compared with, besides its host.

    Returns:
        Path of the page.

    Raises:
        DataError: no runs, or a file is newer or malformed.
        CheckpointError: the page cannot be written.
    """
    if not isinstance(results, LearningResults):
        results = LearningResults.load(results)
    environment = Environment(
        loader=PackageLoader("unteach.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=text.duration, size=text.size, p=view.probability, signed=signed, json=_json)
    environment.globals.update(value=value, interval=interval, term=words.term)
    groups = [_group(index, results.of(group), controls) for index, group in enumerate(results.groups)]
    names = {name for run in results.runs for name in run.metrics}
    page = environment.get_template("learning.html.j2").render(
        title=title or "Continual learning: " + ", ".join(dict.fromkeys(g.stream for g in results.groups)),
        groups=groups,
        terms=[term for name, term in words.TERMS.items() if any(n.rsplit("/", 1)[-1] == name for n in names)],
        kinds={kind: text for kind, text in words.KINDS.items() if any(n.startswith(kind + "/") for n in names)},
        environments=_environments(results),
    )
    path = Path(out)
    if path.is_dir() or not path.suffix:
        path = path / "learning.html"
    return state.write_bytes(path, page.encode())


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


def signed(metric: str, gap: float) -> str:
    """A difference with its sign, in points for shares."""
    if words.is_share(metric):
        gap *= 100
    text = f"{abs(gap):.1f}" if words.is_share(metric) else f"{abs(gap):.3g}"
    sign = "±" if float(text) == 0 else "+" if gap > 0 else "−"
    return sign + text


def value(metric: str, number: float | None) -> str:
    """A metric for a reader: per cent without the sign for shares."""
    if number is None:
        return "–"
    if words.is_share(metric):
        return f"{100 * number:.1f}".replace("-", "−")
    if metric == "seconds":
        return text.duration(number)
    if metric in ("passes", "peak_memory"):
        return text.size(number, "B" if metric == "peak_memory" else "")
    return f"{number:.3g}".replace("-", "−")


def interval(metric: str, mean: Mean | None) -> str:
    """Half the width of the interval, as "± 1.2"; "" with one seed."""
    if mean is None or mean.low is None:
        return ""
    return f"± {value(metric, mean.mean - mean.low)}"


def _group(index: int, results: LearningResults, controls: Sequence[str]) -> dict[str, Any]:
    (group,) = results.groups
    arms, main = results.arms(), _main(group)
    methods = list(dict.fromkeys(arm.method for arm in arms))
    plugins = list(dict.fromkeys(arm.plugin for arm in arms if arm.plugin != ALONE))
    plugins = [p for p in plugins if p not in controls] + [p for p in controls if p in plugins]
    css = {ALONE: "alone", **{p: f"c{i % COLOURS}{' dashed' if i >= COLOURS else ''}" for i, p in enumerate(plugins)}}
    means = results.table(main)
    glances = [_glance(results, name, main) for name in ("alone", *(c for c in controls if c in plugins))]
    against = {arm: _against(results, arm, glances) for arm in arms if arm.plugin != ALONE}
    top = svg.ticks(0, max((100 * a for r in results.runs for a in r.curve(_kind(main)) if a is not None), default=100))
    seeds = [len(results.by_seed(arm)) for arm in arms]
    cards = [_card(f"g{index}m{i}", results, m, plugins, main, css, top) for i, m in enumerate(methods)]
    return {
        "id": f"g{index}",
        "group": group,
        "main": main,
        "kind": words.KINDS[_kind(main)],
        "methods": methods,
        "plugins": plugins,
        "controls": [c for c in controls if c in plugins],
        "css": css,
        "arms": len(arms),
        "runs": len(results.runs),
        "seeds": f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}",
        "most": max(seeds),
        "tasks": results.runs[0].task_names,
        "means": means,
        "glances": glances,
        "against": against,
        "plugin_words": [_plugin_words(p, glances, means) for p in plugins],
        "best": max((a for a in arms if means[a]), key=lambda a: means[a].mean, default=None),  # type: ignore[union-attr]
        "costs": {name: results.table(name) for name in ("passes", "seconds", "peak_memory")},
        "frontier": _frontier(results, main),
        "scatter": _scatter(results, main, css),
        "chart": _alone(results, methods, _kind(main), top),
        "alarms": _alarms(results, against),
        "cards": cards,
    }


def _main(group: Group) -> str:
    return f"{'task_il' if group.scenario == 'task' else 'class_il'}/final_average_accuracy"


def _kind(metric: str) -> str:
    return metric.split("/", 1)[0]


def _glance(results: LearningResults, control: str, metric: str) -> dict[str, Any]:
    """Paired differences of every plug-in against its host, or against one control, with Holm's correction."""
    arms = results.arms()
    cells: dict[Arm, Paired | None] = {}
    for arm in arms:
        other = Arm(arm.method, ALONE if control == "alone" else control)
        if arm.plugin != ALONE and arm != other:
            cells[arm] = results.paired(arm, other, metric) if other in arms else None
    tested = [arm for arm, cell in cells.items() if cell is not None and cell.p is not None and cell.equal < cell.n]
    adjusted = dict(zip(tested, holm([cells[arm].p or 0.0 for arm in tested]), strict=True))  # type: ignore[union-attr]
    return {"name": control, "cells": cells, "holm": adjusted, "tests": len(tested)}


def _against(results: LearningResults, arm: Arm, glances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    pairs = {g["name"]: g["cells"][arm] for g in glances if arm in g["cells"]}
    tone, label = verdict(pairs)
    if arm.plugin in {g["name"] for g in glances}:  # a control is held against the host alone
        tone, label = verdict({"alone": pairs.get("alone")})
    main = _main(results.groups[0])
    return {"pairs": pairs, "tone": tone, "label": label, "words": [sentence(n, p, main) for n, p in pairs.items()]}


def _plugin_words(plugin: str, glances: Sequence[dict[str, Any]], means: dict[Arm, Mean | None]) -> dict[str, Any]:
    rows = []
    for glance in glances:
        cells = {a: c for a, c in glance["cells"].items() if a.plugin == plugin and c is not None}
        if cells:
            outcomes = [c.outcome for c in cells.values()]
            counts = {word: outcomes.count(word) for word in ("better", "worse", "unclear", "identical", "one seed")}
            robust = sum(glance["holm"].get(a, 1.0) < 0.05 and c.outcome == "better" for a, c in cells.items())
            gap = fmean(c.mean for c in cells.values())
            rows.append({"name": glance["name"], "n": len(cells), "counts": counts, "robust": robust, "mean": gap})
    return {"plugin": plugin, "rows": rows}


def _alone(results: LearningResults, methods: Sequence[str], kind: str, top: Sequence[float]) -> str:
    """Every method by itself, in one chart."""
    drawn = []
    for i, method in enumerate(methods):
        if Arm(method) in results.arms():
            curve = _average([run.curve(kind) for run in results.by_seed(Arm(method)).values()])
            css = f"c{i % COLOURS}{' dashed' if i >= COLOURS else ''}"
            drawn.append(svg.Line(label=method, css=css, values=tuple(None if v is None else 100 * v for v in curve)))
    title, room = "Mean accuracy on the tasks seen so far, each method alone", 8 * max(map(len, methods))
    return svg.lines(drawn, title=title, x_label="tasks seen", scale=top, width=1100, height=320, names=room)


def _frontier(results: LearningResults, main: str) -> list[Arm]:
    """Arms that no other arm beats at equal or fewer passes, by passes."""
    cost, mean = results.table("passes"), results.table(main)
    known = [(c.mean, -m.mean, a) for a in results.arms() if (c := cost[a]) and (m := mean[a]) and c.mean > 0]
    found, best = [], float("inf")
    for _, lost, arm in sorted(known):
        if lost < best:
            found.append(arm)
            best = lost
    return found


def _scatter(results: LearningResults, main: str, css: dict[str, str]) -> str:
    best = _frontier(results, main)
    cost, mean = results.table("passes"), results.table(main)
    points = []
    for arm in results.arms():
        c, m = cost[arm], mean[arm]
        if c and m and c.mean > 0:
            label = f"{arm}: {value(main, m.mean)} % at {value('passes', c.mean)} passes"
            note = str(arm) if arm in best else ""
            points.append(svg.Point(label=label, css=css[arm.plugin], x=c.mean, y=100 * m.mean, note=note))
    return svg.scatter(
        points, title="Accuracy against passes", x_label="forward-backward passes of a run", y_label="accuracy, %"
    )


def _alarms(results: LearningResults, against: dict[Arm, dict[str, Any]]) -> list[dict[str, Any]]:
    """What a reader must know before the numbers: arms that did nothing, that diverged, and what runs warned of."""
    found = []
    for arm in results.arms():
        runs = list(results.by_seed(arm).values())
        said: dict[str, int] = {}
        for run in runs:
            for line in dict.fromkeys([*_flags(run.diagnostics), *run.warnings]):
                said[line] = said.get(line, 0) + 1
        host = against.get(arm, {}).get("pairs", {}).get("alone")
        if host is not None and host.outcome == "identical":
            said = {"inert: every seed gave exactly what the method gives alone": host.n, **said}
        if said:
            found.append({"arm": arm, "said": [(text, count, len(runs)) for text, count in said.items()]})
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
    main: str,
    css: dict[str, str],
    top: Sequence[float],
) -> dict[str, Any]:
    """What belongs to one method."""
    arms = [arm for arm in (Arm(method, p) for p in (ALONE, *plugins)) if arm in results.arms()]
    kind = _kind(main)
    runs = {arm: list(results.by_seed(arm).values()) for arm in arms}
    names = [n for n in dict.fromkeys(n for r in runs.values() for run in r for n in run.metrics)]
    tables = {name: _safe(results, arms, name) for name in names}
    curves = {arm: _average([run.curve(kind) for run in runs[arm]]) for arm in arms}
    drawn = [
        svg.Line(label=str(arm), css=css[arm.plugin], values=tuple(None if v is None else 100 * v for v in curve))
        for arm, curve in reversed(curves.items())
    ]
    host = curves.get(Arm(method))
    gaps = [
        svg.Line(label=str(arm), css=css[arm.plugin], values=tuple(map(_gap, curve, host)))
        for arm, curve in reversed(curves.items())
        if host and arm.plugin != ALONE
    ]
    keys = list(dict.fromkeys(key for r in runs.values() for run in r for task in run.diagnostics for key in task))
    return {
        "id": ident,
        "method": method,
        "arms": arms,
        "first": [n for n in words.FIRST if any(tables.get(n, {}).values())],
        "all": [n for n in names if any(tables[n].values())],
        "lower": {name for name in names if lower_is_better(name)},
        "undefined": [n for n in names if not any(tables[n].values())],
        "tables": tables,
        "chart": svg.lines(drawn, title=f"{method}: average accuracy", x_label="tasks seen", scale=top),
        "gaps": svg.lines(gaps, title=f"{method}: difference from alone", x_label="tasks seen"),
        "heats": [(arm, _heat([run.matrices.get(kind, ()) for run in runs[arm]])) for arm in arms],
        "tasks": runs[arms[0]][0].task_names,
        "keys": keys,
        "diagnostics": [(arm, [_span(runs[arm], key) for key in keys]) for arm in arms if arm.plugin != ALONE],
        "settings": [(arm, _settings(runs[arm][0].key)) for arm in arms],
        "commands": [run.command for arm in arms for run in runs[arm] if run.command],
    }


def _safe(results: LearningResults, arms: Sequence[Arm], name: str) -> dict[Arm, Mean | None]:
    """Means of a metric that some runs may not know."""
    knows = LearningResults(r for r in results.runs if r.key.arm in arms and name in r.metrics)
    table = knows.table(name)
    return {arm: table.get(arm) for arm in arms}


def _average(rows: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    columns = [[v for v in column if v is not None] for column in zip(*filter(None, rows), strict=True)]
    return tuple(fmean(column) if column else None for column in columns)


def _gap(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else 100 * (a - b)


def _heat(matrices: Sequence[Sequence[Sequence[float | None]]]) -> list[tuple[float | None, ...]]:
    return [_average(rows) for rows in zip(*filter(None, matrices), strict=True)]


def _span(runs: Sequence[Any], key: str) -> dict[str, float] | None:
    known = [task[key] for run in runs for task in run.diagnostics if task.get(key) is not None]
    return {"mean": fmean(known), "low": min(known), "high": max(known)} if known else None


def _settings(key: Any) -> dict[str, Any]:
    return {"training": key.training, "method": key.method_settings, "plug-in": key.plugin_settings}


def _environments(results: LearningResults) -> list[tuple[dict[str, Any], int]]:
    texts = [state.canonical(run.environment) for run in results.runs if run.environment]
    return [(json.loads(text), texts.count(text)) for text in dict.fromkeys(texts)]


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True)
