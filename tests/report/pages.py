"""Results with real PNG files, and a strict reader of HTML pages."""

import io
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from unteach.records.erasure import ConceptRecord, Cost, Grid, Metric, Results, Table
from unteach.records.stats import wilson

VOID = {"meta", "img", "br", "link", "input", "hr"}


def png(colour: tuple[int, int, int], size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def metric(name: str, hits: int, n: int, when: str = "after", **more: object) -> Metric:
    interval = wilson(hits, n)
    values = {"value": interval.value, "low": interval.low, "high": interval.high, "n": n, "when": when}
    return Metric(name=name, **{**values, **more})  # type: ignore[arg-type]


def concept_metrics(concept: str, gone: int, before: int, kept: int, **more: object) -> list[Metric]:
    """UA and kept of one judge and prompt set, out of 100."""
    where = {"concept": concept, "judge": "cnn", "prompts": "unlearning set", **more}
    return [
        metric("UA", 2, 100, "before", **where),
        metric("UA", gone, 100, **where),
        metric("kept", before, 100, "before", **where),
        metric("kept", kept, 100, **where),
        Metric(
            name="kept",
            value=(kept - before) / 100,
            low=-0.5,
            high=0.5,
            n=100,
            when="change",
            p=0.02,
            **where,  # type: ignore[arg-type]
        ),
    ]


def make(folder: Path, targets: tuple[str, ...] = ("twemoji",), *, word: str = "dog", size: int = 8) -> Results:
    """A small run with every part of a report, saved in ``folder``; ``word`` goes wherever text may go."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
        (folder / "images" / f"{name}.png").write_bytes(png(colour, size))
    metrics: list[Metric] = []
    tables: list[Table] = []
    grids: list[Grid] = []
    for target in targets:
        metrics += concept_metrics(target, 98, 97, 93)
        metrics += concept_metrics(target, 99, 97, 95, judge="nearest")
        metrics.append(metric("IRA", 90, 100, judge="cnn", prompts="unlearning set", concept=target))
        shape = {"judge": "cnn", "prompts": "all prompts", "concept": target}
        tables.append(
            Table(
                kind="kept",
                row_axis="style",
                column_axis="object",
                rows=(target, "noto"),
                columns=(word, "cat"),
                before=((1.0, 1.0), (0.5, None)),
                after=((0.0, 0.25), (0.75, None)),
                n=((4, 4), (4, 0)),
                erased_rows=(target,),
                **shape,  # type: ignore[arg-type]
            )
        )
        tables.append(
            Table(
                kind="seen",
                row_axis="style asked for",
                column_axis="style seen",
                rows=(target,),
                columns=(target, "noto", "none of these"),
                before=((0.9, 0.1, 0.0),),
                after=((0.02, 0.88, 0.1),),
                n=((50, 50, 50),),
                erased_columns=(target,),
                **shape,  # type: ignore[arg-type]
            )
        )
        grids.append(grid("target", target, word))
    grids.append(grid("retained", "", word))
    metrics.append(metric("same verdict", 9, 10, "change", judge="cnn", prompts="unlearning set"))
    metrics.append(
        Metric(name="PSNR", value=21.5, low=20, high=23, n=10, when="change", unit="dB", prompts="unlearning set")
    )
    results = Results(
        command=f"unteach evaluate {word}",
        method="doco",
        protocol="demo",
        config={"word": word},
        concepts=tuple(ConceptRecord(target=t, anchor="openmoji", kind="style") for t in targets),
        seeds=(188,),
        notes={"cnn": f"a judge that knows {word}"},
        cost=Cost(seconds=131, images=40, method_seconds=71.2, method_steps=120, parameters_moved=368_640),
        metrics=tuple(metrics),
        tables=tuple(tables),
        grids=tuple(grids),
    )
    results.save(folder / "results.json")
    return results


def grid(role: str, concept: str, word: str) -> Grid:
    return Grid(
        name=f"{role} pictures",
        role="target" if role == "target" else "retained",
        rows=("before", "after"),
        columns=(word, "cat"),
        images=(("images/a.png", "images/a.png"), ("images/b.png", "")),
        captions=(f"a {word} in style", "a cat"),
        seeds=(11, 22),
        prompts="unlearning set",
        concept=concept,
    )


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order; keeps tags, attributes and visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]
