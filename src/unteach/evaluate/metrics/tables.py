"""From what judges saw to metrics and tables: one call a concept, both models on the same prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unteach.evaluate.metrics import presence
from unteach.evaluate.metrics.drift import agreement, drift
from unteach.evaluate.metrics.presence import Answers, Domain
from unteach.records.erasure import Better, Metric, Table, Unit, When
from unteach.records.stats import Interval, mcnemar, paired_difference, share

LOWER = ("target elsewhere",)
ALL_PROMPTS = "all prompts"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured, and by whom: a concept's target, its class index and domain, and a judge's name."""

    concept: str
    target: int
    domain: Domain
    judge: str

    def metric(
        self,
        name: str,
        interval: Interval,
        prompts: str,
        when: When,
        better: Better = "higher",
        p: float | None = None,
    ) -> Metric:
        """A share of this subject as a record."""
        return _metric(
            name,
            interval,
            judge=self.judge,
            concept=self.concept,
            prompts=prompts,
            when=when,
            better=better,
            p=p,
        )


def presence_metrics(subject: Subject, before: Answers, after: Answers, prompts: str) -> list[Metric]:
    """Every measure of ``presence.RULES``: before, after, and the paired change with its McNemar p-value.

    Args:
        subject: what is measured, and by whom.
        before: answers on the unchanged model's pictures.
        after: answers on the same prompts and seeds with the delta.
        prompts: name of the prompt set.
    """
    metrics = []
    for name in presence.RULES:
        first = presence.hits(name, before, subject.target, subject.domain)
        second = presence.hits(name, after, subject.target, subject.domain)
        if not first.size:
            continue
        better: Better = "lower" if name in LOWER else "higher"
        change, p = paired_difference(first, second), mcnemar(first, second).p
        metrics += [
            subject.metric(name, share(first), prompts, "before", better),
            subject.metric(name, share(second), prompts, "after", better),
            subject.metric(name, change, prompts, "change", better, p),
        ]
    return metrics


def none_metrics(
    subject: Subject, before: Answers, after: Answers, prompts: str, none: Mapping[Domain, int]
) -> list[Metric]:
    """Share of "none of these" in the target's domain, on the target's prompts and on the rest.

    Args:
        subject: what is measured, and by whom.
        before: answers on the unchanged model's pictures.
        after: answers on the same prompts and seeds with the delta.
        prompts: name of the prompt set.
        none: index that means "none of these", by domain.
    """
    metrics = []
    whens: tuple[tuple[When, Answers], ...] = (("before", before), ("after", after))
    for name, on_target in (("none on target", True), ("none on rest", False)):
        rows = (before.asked(subject.domain) == subject.target) == on_target
        for when, answers in whens:
            interval = presence.none_share(answers[rows], subject.domain, none[subject.domain])
            if interval is not None:
                metrics.append(subject.metric(name, interval, prompts, when, "lower"))
    return metrics


def drift_metrics(
    before: Tensor, after: Tensor, answers: Mapping[str, tuple[Answers, Answers]], prompts: str
) -> list[Metric]:
    """Pixel drift of unrelated pictures, and how often each judge's verdict stayed the same.

    Args:
        before: (N, 3, H, W) uint8 of the unchanged model.
        after: the same prompts and seeds with the delta.
        answers: judge to (before, after) answers on the same N pictures.
        prompts: name of the prompt set.
    """
    moved = drift(before.float() / 255, after.float() / 255)
    metrics = [
        _metric("pixel change", moved.mae, prompts=prompts, when="change", better="lower", unit="intensity"),
        _metric("PSNR", moved.psnr, prompts=prompts, when="change", better="higher", unit="dB"),
    ]
    for judge, (first, second) in answers.items():
        same = agreement(first.seen_object, first.seen_style, second.seen_object, second.seen_style)
        metrics.append(_metric("same verdict", same, judge=judge, prompts=prompts, when="change", better="higher"))
    return metrics


def kept_table(
    subject: Subject, before: Answers, after: Answers, objects: Sequence[str], styles: Sequence[str]
) -> Table:
    """Style x object: share of pictures that are as asked, before and after; None where nothing was asked."""
    n = _matrix(after, np.ones(len(after)), len(styles), len(objects))
    erased = styles[subject.target] if subject.domain == "style" else objects[subject.target]
    return Table(
        kind="kept",
        row_axis="style",
        column_axis="object",
        rows=tuple(styles),
        columns=tuple(objects),
        before=_ratio(_matrix(before, before.kept(), len(styles), len(objects)), n),
        after=_ratio(_matrix(after, after.kept(), len(styles), len(objects)), n),
        n=tuple(tuple(int(count) for count in row) for row in n),
        judge=subject.judge,
        prompts=ALL_PROMPTS,
        concept=subject.concept,
        erased_rows=(erased,) if subject.domain == "style" else (),
        erased_columns=(erased,) if subject.domain == "object" else (),
    )


def seen_table(subject: Subject, before: Answers, after: Answers, names: Sequence[str]) -> Table | None:
    """What the judge saw on the target's prompts, before and after; None when the target was not asked
    for."""
    first = presence.confusion(before, subject.domain, subject.target, len(names))
    second = presence.confusion(after, subject.domain, subject.target, len(names))
    total = int(second.sum())
    if not total:
        return None
    return Table(
        kind="seen",
        row_axis=f"{subject.domain} asked for",
        column_axis=f"{subject.domain} seen",
        rows=(subject.concept,),
        columns=(*names, "none of these"),
        before=(tuple(float(count) / total for count in first),),
        after=(tuple(float(count) / total for count in second),),
        n=((total,) * (len(names) + 1),),
        judge=subject.judge,
        prompts=ALL_PROMPTS,
        concept=subject.concept,
        erased_columns=(names[subject.target],),
    )


def _matrix(
    answers: Answers, weights: NDArray[np.bool_] | NDArray[np.float64], styles: int, objects: int
) -> NDArray[np.float64]:
    total = np.zeros((styles, objects))
    np.add.at(total, (answers.asked_style, answers.asked_object), weights.astype(np.float64))
    return total


def _ratio(hit: NDArray[np.float64], n: NDArray[np.float64]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(
        tuple(float(h) / float(count) if count else None for h, count in zip(*rows, strict=True))
        for rows in zip(hit, n, strict=True)
    )


def _metric(
    name: str,
    interval: Interval,
    *,
    when: When,
    better: Better,
    judge: str = "",
    prompts: str = "",
    concept: str = "",
    unit: Unit = "share",
    p: float | None = None,
) -> Metric:
    return Metric(
        name=name,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        judge=judge,
        prompts=prompts,
        concept=concept,
        better=better,
        when=when,
        unit=unit,
        p=p,
    )
