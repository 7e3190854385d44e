"""A short model card (Markdown) that travels with a delta."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader

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
    targets = _targets(meta.get("concepts")) or [c.target for run in results for c in run.concepts]
    meaning, counts = terms.METHODS.get(str(meta.get("method", "")), ""), meta.get("prompts")
    environment = Environment(
        loader=PackageLoader("unteach.report"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(escape=escape, code=_code, repr=repr)
    return environment.get_template("card.md.j2").render(
        meta=meta,
        named=escape(" and ".join(dict.fromkeys(targets)) or "an unnamed concept"),
        meaning=f". {meaning}" if meaning else "",
        check=None if meta.get("check") is None else Finding.from_dict(meta["check"], where="the delta's check"),
        prompts=prompts(counts) if isinstance(counts, Mapping) else "",
        name=name,
        measured=[(run, list(_measured(run, limits or Thresholds()))) for run in results],
    )


def _measured(run: Results, limits: Thresholds) -> Iterator[tuple[erasure.Verdict, list[tuple[object, ...]]]]:
    """Each concept's verdict and the rows of its table."""
    for concept in run.concepts:
        rows: list[tuple[object, ...]] = []
        for m in run.metrics:
            if m.concept == concept.target and m.when == "after" and terms.term(m.name).first:
                was = run.find(m.name, concept=m.concept, when="before", judge=m.judge, prompts=m.prompts)
                before = number(was[0], was[0].value) if was else "–"
                rows.append((m.name, m.prompts, m.judge, before, number(m, m.value), between(m), m.n))
        yield erasure.verdict(run, concept.target, limits), rows


def _targets(concepts: object) -> list[str]:
    records = concepts if isinstance(concepts, list | tuple) else []
    return [str(c.get("target", "")) if isinstance(c, Mapping) else str(c) for c in records]


def _code(value: object) -> str:
    return " ".join(str(value).split()).replace("`", "'")
