"""A short model card (Markdown) that travels with a delta."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unteach.core.finding import Finding
from unteach.records.erasure import Results
from unteach.report import erasure, terms
from unteach.report.erased import prompts
from unteach.report.format import between, number
from unteach.report.section import Thresholds

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~&])")


def escape(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def model_card(
    meta: Mapping[str, Any],
    results: Sequence[Results] = (),
    *,
    name: str = "delta.safetensors",
    limits: Thresholds | None = None,
) -> str:
    """Markdown: what the delta does, how well by which judge, how to apply and undo it, and its limits.

    Args:
        meta: the delta's metadata ("method", "concepts", "family", "base", ...; what is missing is left out).
        results: evaluations of it.
        name: file name of the delta.
        limits: when a verdict counts as met.
    """
    limits = limits or Thresholds()
    method = str(meta.get("method", ""))
    targets = [_target(concept) for concept in _records(meta.get("concepts"))]
    if not targets:
        targets = [c.target for run in results for c in run.concepts]
    named = escape(" and ".join(dict.fromkeys(targets)) or "an unnamed concept")
    found = None if meta.get("check") is None else Finding.from_dict(meta["check"], where="the delta's check")
    lines = [
        "---",
        "library_name: diffusers",
        "tags:",
        "- unteach",
        "- concept-erasure",
        "---",
        "",
        f"# {'Without' if found is not None and found.good else 'To erase'} {named}",
        "",
        f"A weight delta made by Unteach: added to its base model, it is meant to take {named} out.",
        "",
        *_checked(found),
    ]
    if method:
        meaning = terms.METHODS.get(method, "")
        lines += [f"* Method: `{_code(method)}`{'. ' + meaning if meaning else ''}"]
    lines += [
        f"* {label}: `{_code(meta[key])}`"
        for key, label in (("family", "Model family"), ("base", "Base digest"), ("seed", "Seed"))
        if key in meta
    ]
    if isinstance(counts := meta.get("prompts"), Mapping):
        lines += ["* Prompts: " + _code(prompts(counts))]
    lines += ["", "## Use", "", "```python", "from unteach.diffusion.delta import WeightDelta", ""]
    lines += [f"delta = WeightDelta.load({_code(name)!r})", "applied = delta.apply(model)", "applied.undo()"]
    lines += ["```", ""]
    for run in results:
        lines += _measured(run, limits)
    lines += [
        "## Limits",
        "",
        "* “Gone” means that the judges named above do not see it on the prompts asked. Other prompts, other "
        "judges or further training may bring it back.",
        "* Check the rest for what you need: the shares above are averages.",
        "",
    ]
    return "\n".join(lines)


def _checked(found: Finding | None) -> list[str]:
    if found is None:
        return ["Whether it does was not checked when it was made.", ""]
    head = f"**Checked when it was made: {escape(found.verdict)}.** By the model's own outputs, without a judge:"
    return [head, "", *(f"* {escape(line)}" for line in found.lines()), ""]


def _measured(run: Results, limits: Thresholds) -> list[str]:
    lines = [f"## Measured ({escape(run.protocol or run.kind)}, {run.status})", ""]
    for concept in run.concepts:
        verdict = erasure.verdict(run, concept.target, limits)
        lines += [f"**{escape(concept.target)}**: {escape(verdict.sentence)} ({verdict.label}).", ""]
        lines += [
            "| measure | prompts | judge | before | after | 95 % | n |",
            "|---|---|---|---|---|---|---|",
        ]
        for metric in run.metrics:
            if metric.concept == concept.target and metric.when == "after" and terms.term(metric.name).first:
                was = run.find(
                    metric.name,
                    concept=metric.concept,
                    when="before",
                    judge=metric.judge,
                    prompts=metric.prompts,
                )
                cells = [
                    metric.name,
                    metric.prompts,
                    metric.judge,
                    number(was[0], was[0].value) if was else "–",
                    number(metric, metric.value),
                    between(metric),
                    metric.n,
                ]
                lines.append("| " + " | ".join(escape(cell) for cell in cells) + " |")
        lines.append("")
    if run.command:
        lines += ["Made by:", "", *(f"    {line}" for line in run.command.splitlines()), ""]
    return lines


def _records(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _target(record: object) -> str:
    return str(record.get("target", "")) if isinstance(record, Mapping) else str(record)


def _code(value: object) -> str:
    return " ".join(str(value).split()).replace("`", "'")
