"""One self-contained page of a guard: what is frozen, drawn on the network, and what attacks reached.

Made from ``mask.json`` and ``relearning.json`` alone, either of which may be missing. No scripts, no requests.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unteach.core import state, text
from unteach.errors import CheckpointError
from unteach.records.attack import Arm, Domain, Mean, Relearning, Setting, check_same
from unteach.records.mask import Mask
from unteach.report import guarding_map, svg
from unteach.report import guarding_words as words

CSS: dict[Arm, str] = {"unprotected": "alone", "kept": "c0", "ignored": "c1 dashed"}
NAMES: dict[Arm, str] = {"unprotected": "no mask", "kept": "kept", "ignored": "ignored"}
MASK, RELEARNING = Mask.FILE, Relearning.FILE
LAST = 10
"""Publisher steps at the end that stability is told of."""


def is_guard(path: Path | str) -> bool:
    """Whether this is a guard's or a relearning attack's folder, or one of their files."""
    path = Path(path)
    return path.name in (MASK, RELEARNING) if path.is_file() else any((path / n).is_file() for n in (MASK, RELEARNING))


def find(paths: Sequence[Path | str]) -> tuple[Mask | None, Relearning | None]:
    """The mask and the attacks in these folders or files; of a guard's folder, those in its ``attack`` too.

    Raises:
        CheckpointError: a file is damaged or foreign, there are two of a kind, or the two are not of one mask.
    """
    files: dict[str, list[Path]] = {MASK: [], RELEARNING: []}
    for path in map(Path, paths):
        if path.is_file():
            files[MASK if path.name == MASK else RELEARNING].append(path)
            continue
        files[MASK] += [path / MASK] if (path / MASK).is_file() else []
        files[RELEARNING] += [p for p in (path / RELEARNING, path / "attack" / RELEARNING) if p.is_file()]
    for name, found in files.items():
        if len(found) > 1:
            listed = ", ".join(map(str, found))
            raise CheckpointError(f"a page is of one {name}", found=listed, fix="name one, make a page for each")
    if not any(files.values()):
        raise CheckpointError(f"there is no {MASK} and no {RELEARNING}", found=", ".join(map(str, paths)))
    mask = Mask.load(files[MASK][0]) if files[MASK] else None
    attacks = Relearning.load(files[RELEARNING][0]) if files[RELEARNING] else None
    return mask, attacks


def render_guard(mask: Mask | None, attacks: Relearning | None, out: Path | str, title: str = "") -> Path:
    """Write the page of a mask, of attacks, or of both.

    Args:
        mask: what is frozen; None when only attacks are there.
        attacks: what they reached; None when there were none.
        out: HTML file to write; a folder gets a ``report.html``.
        title: headline of the page.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: neither is given, the attacks are of another mask, or the page cannot be written.
    """
    if mask is None and attacks is None:
        raise CheckpointError("a page needs a mask or attacks")
    if mask and attacks:
        check_same(mask, attacks)
    environment = Environment(
        loader=PackageLoader("unteach.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=text.duration, count=_count, share=words.share, json=_json, loss=loss, mean=mean
    )
    page = environment.get_template("guarding.html.j2").render(
        title=title or _title(mask, attacks),
        finding=words.finding(mask, attacks),
        mask=mask,
        attacks=attacks,
        network=None if mask is None else _network(mask),
        learning=None if mask is None else _learning(mask),
        domains=[] if attacks is None else [_domain(i, attacks, d) for i, d in enumerate(attacks.domains)],
        diverged=[r for r in attacks.records if r.diverged] if attacks else [],
        glance=None if attacks is None else _glance(attacks),
        roles=words.ROLES,
        limits=words.LIMITS,
        arms=[(arm, words.ARMS[arm], CSS[arm]) for arm in attacks.arms] if attacks else [],
    )
    path = Path(out)
    if path.is_dir() or not path.suffix:
        path = path / "report.html"
    return state.write_bytes(path, page.encode())


def loss(found: Mean | None) -> str:
    """A mean loss."""
    return "–" if found is None else f"{found.mean:.4f}"


def mean(found: Mean | None) -> str:
    """A mean share with its interval: "62 % (55 to 70)"."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return words.share(found.mean)
    return f"{words.share(found.mean)} ({round(100 * found.low)} to {round(100 * found.high)})".replace("-", "−")


def _title(mask: Mask | None, attacks: Relearning | None) -> str:
    if mask is None and attacks is not None:
        of = f"mask “{attacks.mask.name}”" if attacks.mask else "unprotected model"
        return f"Relearning attacks: {attacks.model.name}, {of}"
    assert mask is not None
    return f"Guard: {mask.model_name} against {words.listed(mask.manifest.illegal) or 'no named domain'}"


def _network(mask: Mask) -> dict[str, Any]:
    span = guarding_map.score_range(mask)
    return {
        "frozen": guarding_map.draw(mask),
        "score": guarding_map.draw(mask, "score") if span else "",
        "span": span,
        "whole": guarding_map.tally(mask.tensors),
        "tables": [("part of the network", guarding_map.parts(mask)), ("kind of tensor", guarding_map.kinds(mask))],
    }


def _learning(mask: Mask) -> dict[str, Any] | None:
    if not mask.log:
        return None
    at = [entry.step for entry in mask.log]
    rising = at == sorted(set(at))
    panels = []
    for label, values in (
        ("Jaccard with the step before", [entry.jaccard for entry in mask.log]),
        ("mean mask", [entry.mean for entry in mask.log]),
    ):
        line = svg.Line(label=label, css="c0", values=tuple(values), named=False)
        drawn = svg.lines([line], title=label, x_label="step", scale=_scale(values), at=at if rising else ())
        panels.append((label, drawn))
    last = [entry.jaccard for entry in mask.log[-LAST:]]
    return {"panels": panels, "last": len(last), "mean": sum(last) / len(last), "low": min(last)}


def _scale(values: Sequence[float]) -> list[float]:
    inside = min(values) >= 0 and max(values) <= 1
    return svg.ticks(0, 1) if inside else svg.ticks(min(values), max(values))


def _glance(attacks: Relearning) -> dict[str, Any]:
    modes = words.modes(attacks)
    arms: list[Arm] = [arm for arm in attacks.arms if arm != "unprotected"]
    rows = []
    for domain in attacks.domains:
        cells = {(m, arm): attacks.reach(domain.name, m, arm) for m in modes for arm in arms}
        rows.append({"domain": domain, "cells": cells})
    return {"modes": [(m, words.MODES[m]) for m in modes], "arms": [(a, words.ARMS[a]) for a in arms], "rows": rows}


def _domain(index: int, attacks: Relearning, domain: Domain) -> dict[str, Any]:
    settings = [s for s in attacks.settings if s.domain == domain.name]
    own = [domain.name] if domain.name in attacks.probes else []
    domains = {d.name for d in attacks.domains}  # a probe of no domain is of everything else
    others = [p for p in attacks.probes if p not in domains] or [p for p in attacks.probes if p != domain.name]
    return {
        "id": f"domain{index}",
        "domain": domain,
        "others": others,
        "panels": [
            {
                "mode": words.MODES[s.mode],
                "rate": f"{s.rate:g}",
                "own": _chart(attacks, s, own, settings, f"{domain.name}, {words.MODES[s.mode]}, rate {s.rate:g}"),
                "others": _chart(attacks, s, others, settings, "everything else", height=120),
            }
            for s in settings
        ],
        "rows": [_row(attacks, s, step, others) for s in settings for step in attacks.steps(s) if step],
        "before": {probe: _before(attacks, settings, [probe]) for probe in [*own, *others]},
    }


def _before(attacks: Relearning, settings: Sequence[Setting], probes: Sequence[str]) -> Mean | None:
    return attacks.loss(settings[0], "unprotected", 0, probes) if settings else None


def _row(attacks: Relearning, setting: Setting, step: int, others: Sequence[str]) -> dict[str, Any]:
    cells = {}
    for arm in attacks.arms:
        runs = attacks.runs(setting, arm)
        cells[arm] = {
            "loss": attacks.loss(setting, arm, step),
            "recovery": attacks.recovery(setting, arm, step),
            "others": attacks.loss(setting, arm, step, others) if others else None,
            "reached": sum(step in run.at for run in runs.values()),
            "of": len(runs),
        }
    return {"mode": words.MODES[setting.mode], "rate": f"{setting.rate:g}", "step": step, "cells": cells}


def _chart(
    attacks: Relearning,
    setting: Setting,
    probes: Sequence[str],
    alike: Sequence[Setting],
    title: str,
    height: int = 190,
) -> str:
    """Mean loss over the probes: thin lines are seeds, thick ones their mean; one scale for all settings alike."""
    if not probes:
        return ""
    at = attacks.steps(setting)
    scale = _losses(attacks, alike, probes)
    drawn: list[svg.Line] = []
    for thick in (False, True):
        for arm in attacks.arms:
            runs = attacks.runs(setting, arm)
            if thick:
                means = [attacks.loss(setting, arm, step, probes) for step in at]
                values = [_inside(m.mean if m else None, scale) for m in means]
                label = NAMES[arm]
                drawn.append(svg.Line(label=label, css=CSS[arm], values=tuple(values)))
            elif len(runs) > 1:
                for seed, run in runs.items():
                    curve = _seed(run.losses, run.at, probes, at)
                    values = [_inside(value, scale) for value in curve]
                    label = f"{words.ARMS[arm]}, seed {seed}"
                    drawn.append(svg.Line(label=label, css=f"thin {CSS[arm]}", values=tuple(values), named=False))
    return svg.lines(drawn, title=title, x_label="steps", scale=scale, height=height, names=54, at=at)


def _seed(
    losses: dict[str, tuple[float, ...]], reached: Sequence[int], probes: Sequence[str], at: Sequence[int]
) -> list[float | None]:
    known = {step: sum(losses[p][i] for p in probes) / len(probes) for i, step in enumerate(reached)}
    return [known.get(step) for step in at]


def _losses(attacks: Relearning, settings: Sequence[Setting], probes: Sequence[str]) -> list[float]:
    """A scale for all of them; what runs did before they diverged does not stretch it."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for setting in settings:
        for arm in attacks.arms:
            for run in attacks.runs(setting, arm).values():
                found[run.diverged] += [v for v in _seed(run.losses, run.at, probes, run.at) if v is not None]
    values = found[False] or found[True] or [0.0, 1.0]
    return svg.ticks(min(values), max(values), 4)


def _inside(value: float | None, scale: Sequence[float]) -> float | None:
    room = 1e-6 * (scale[-1] - scale[0])  # ticks are rounded
    return value if value is not None and scale[0] - room <= value <= scale[-1] + room else None


def _count(number: float) -> str:
    return text.size(number, "")


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True)
