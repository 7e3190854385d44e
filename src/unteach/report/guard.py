"""The part of a page about a guard: what is frozen, by part of the network, and what attacks reached.

Made from a mask and from relearning attacks, either of which may be missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from unteach.errors import CheckpointError
from unteach.records.attack import Arm, Attack, Domain, Mean, Reach, Relearning, Setting, check_same
from unteach.records.mask import Mask
from unteach.report import freeze_table, svg
from unteach.report.format import listed
from unteach.report.freeze_table import FreezeTable, Tallies, Tally
from unteach.report.guard_words import ARMS, MODES, ROLES, Finding, finding, modes
from unteach.report.section import Kind, Section, Thresholds

CSS: dict[Arm, str] = {"unprotected": "alone", "kept": "c0", "ignored": "c1 dashed"}
NAMES: dict[Arm, str] = {"unprotected": "no mask", "kept": "kept", "ignored": "ignored"}
LAST = 10
"""Publisher steps at the end that stability is told of."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The frozen network: as a whole, in tables, tallied by part and by kind, and module by module."""

    whole: Tally
    frozen: FreezeTable
    score: FreezeTable | None
    tallies: tuple[tuple[str, Tallies], ...]
    modules: Tallies


@dataclass(frozen=True, kw_only=True)
class Settling:
    """Charts of the mask over its learning, and the Jaccard overlap of its last steps."""

    panels: list[tuple[str, Markup]]
    last: int
    mean: float
    low: float


@dataclass(frozen=True, kw_only=True)
class Glance:
    """How far each attacker gets: modes and arms with their names, and a row a domain."""

    modes: list[tuple[str, str]]
    arms: list[tuple[Arm, str]]
    rows: list[tuple[Domain, dict[tuple[str, Arm], Reach | None]]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One attacker at one step: losses, and how many of its seeds got there."""

    loss: Mean | None
    recovery: Mean | None
    others: Mean | None
    reached: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Charts of one attack: on the domain's own pictures, and on everything else."""

    mode: str
    rate: str
    own: Markup
    others: Markup


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack at one measured step."""

    mode: str
    rate: str
    step: int
    cells: dict[Arm, Measured]


@dataclass(frozen=True, kw_only=True)
class DomainView:
    """Fine-tuning on one domain; ``others`` are the probes of everything else."""

    id: str
    domain: Domain
    others: list[str]
    panels: list[Panel]
    rows: list[Row]
    before: dict[str, Mean | None]


@dataclass(frozen=True, kw_only=True)
class GuardSection(Section):
    """A mask, attacks, or both."""

    TEMPLATE: ClassVar[str] = "guard.html.j2"
    STYLES: ClassVar[tuple[str, ...]] = ("charts.css", "guard.css")
    finding: Finding
    mask: Mask | None
    attacks: Relearning | None
    network: Network | None
    learning: Settling | None
    domains: list[DomainView]
    diverged: list[Attack]
    glance: Glance | None
    arms: list[tuple[Arm, str, str]]
    roles: dict[str, str]


def section(records: Sequence[Any], limits: Thresholds | None = None) -> GuardSection:
    """The part of the page, of a mask, of attacks, or of both.

    Raises:
        CheckpointError: there are two of a kind, or the attacks are of another mask.
    """
    mask, attacks = _one(records, Mask), _one(records, Relearning)
    if mask and attacks:
        check_same(mask, attacks)
    return GuardSection(
        title=_title(mask, attacks),
        finding=finding(mask, attacks),
        mask=mask,
        attacks=attacks,
        network=_network(mask) if mask else None,
        learning=_learning(mask) if mask else None,
        domains=[_domain(i, attacks, d) for i, d in enumerate(attacks.domains)] if attacks else [],
        diverged=[r for r in attacks.records if r.diverged] if attacks else [],
        glance=_glance(attacks) if attacks else None,
        arms=[(arm, ARMS[arm], CSS[arm]) for arm in attacks.arms] if attacks else [],
        roles=ROLES,
    )


def _one(records: Sequence[Any], kind: type[Any]) -> Any:
    found = [record for record in records if isinstance(record, kind)]
    if len(found) > 1:
        raise CheckpointError(f"a page is of one {kind.FILE}", found=len(found), fix="name one, make a page for each")
    return found[0] if found else None


def _title(mask: Mask | None, attacks: Relearning | None) -> str:
    if mask is not None:
        return f"Guard: {mask.model_name} against {listed(list(mask.manifest.illegal)) or 'no named domain'}"
    assert attacks is not None
    of = f"mask “{attacks.mask.name}”" if attacks.mask else "unprotected model"
    return f"Relearning attacks: {attacks.model.name}, {of}"


def _network(mask: Mask) -> Network:
    by, score = freeze_table.by, freeze_table.table(mask.tensors, "score")
    return Network(
        whole=freeze_table.tally(mask.tensors),
        frozen=freeze_table.table(mask.tensors),
        score=score if score.span else None,
        tallies=(
            ("part of the network", by(mask.tensors, freeze_table.part)),
            ("kind of tensor", by(mask.tensors, freeze_table.kind)),
        ),
        modules=by(mask.tensors, freeze_table.module),
    )


def _learning(mask: Mask) -> Settling | None:
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
        low, high = (0, 1) if min(values) >= 0 and max(values) <= 1 else (min(values), max(values))
        scale = svg.ticks(low, high)
        panels.append((label, svg.lines([line], title=label, x_label="step", scale=scale, at=at if rising else ())))
    last = [entry.jaccard for entry in mask.log[-LAST:]]
    return Settling(panels=panels, last=len(last), mean=sum(last) / len(last), low=min(last))


def _glance(attacks: Relearning) -> Glance:
    found, arms = modes(attacks), [arm for arm in attacks.arms if arm != "unprotected"]
    return Glance(
        modes=[(m, MODES[m]) for m in found],
        arms=[(a, ARMS[a]) for a in arms],
        rows=[(d, {(m, a): attacks.reach(d.name, m, a) for m in found for a in arms}) for d in attacks.domains],
    )


def _domain(index: int, attacks: Relearning, domain: Domain) -> DomainView:
    settings = [s for s in attacks.settings if s.domain == domain.name]
    own = [domain.name] if domain.name in attacks.probes else []
    domains = {d.name for d in attacks.domains}  # a probe of no domain is of everything else
    others = [p for p in attacks.probes if p not in domains] or [p for p in attacks.probes if p != domain.name]
    panels = []
    for s in settings:
        title = f"{domain.name}, {MODES[s.mode]}, rate {s.rate:g}"
        panel = Panel(
            mode=MODES[s.mode],
            rate=f"{s.rate:g}",
            own=_chart(attacks, s, own, settings, title),
            others=_chart(attacks, s, others, settings, "everything else", height=120),
        )
        panels.append(panel)
    before = [(p, attacks.loss(settings[0], "unprotected", 0, [p]) if settings else None) for p in [*own, *others]]
    return DomainView(
        id=f"domain{index}",
        domain=domain,
        others=others,
        panels=panels,
        rows=[_row(attacks, s, step, others) for s in settings for step in attacks.steps(s) if step],
        before=dict(before),
    )


def _row(attacks: Relearning, setting: Setting, step: int, others: Sequence[str]) -> Row:
    cells = {}
    for arm in attacks.arms:
        runs = attacks.runs(setting, arm)
        cells[arm] = Measured(
            loss=attacks.loss(setting, arm, step),
            recovery=attacks.recovery(setting, arm, step),
            others=attacks.loss(setting, arm, step, others) if others else None,
            reached=sum(step in run.at for run in runs.values()),
            of=len(runs),
        )
    return Row(mode=MODES[setting.mode], rate=f"{setting.rate:g}", step=step, cells=cells)


def _chart(
    attacks: Relearning,
    setting: Setting,
    probes: Sequence[str],
    alike: Sequence[Setting],
    title: str,
    height: int = 190,
) -> Markup:
    """Mean loss over the probes: thin lines are seeds, thick ones their mean; one scale for all settings alike."""
    if not probes:
        return Markup("")
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
                    label = f"{ARMS[arm]}, seed {seed}"
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


KINDS = (
    Kind(record=Mask, what="a guard's mask", file=Mask.FILE, section=section),
    Kind(record=Relearning, what="relearning attacks", file=Relearning.FILE, section=section),
)
