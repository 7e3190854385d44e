import base64
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.report.pages import Page, make, png

from unteach.errors import CheckpointError, DataError
from unteach.records.erasure import Results
from unteach.report import Thresholds
from unteach.report.page import page as render


def test_the_page_has_everything_and_loads_nothing(tmp_path: Path) -> None:
    make(tmp_path)
    page = Page(render([tmp_path / "results.json"], tmp_path / "page.html"))
    assert {"html", "head", "title", "style", "main", "h1"} <= {tag for tag, _ in page.tags}
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    images = page.all("img")
    assert len(images) == 6  # two grids of four, one picture missing in each
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert {base64.b64decode(i["src"].split(",")[1]) for i in images} == {png((255, 0, 0)), png((0, 0, 255))}
    assert all(image["class"] == "px" for image in images)
    for _, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes)
        assert not attributes.get("href", "#").strip("#").startswith(("http", "//", "javascript", "data"))
    without_images = re.sub(r"data:image/png;base64,[\w+/=]+", "", page.source)
    assert not re.search(r"https?:|url\(|@import|//\w", without_images)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "img-src data:" in policy
    for fact in (
        "Taken out: twemoji",
        "twemoji : gone on 98 % of prompts, the rest kept at 93 %".replace(" :", ":"),
        "erased, rest kept",
        "Worst case over 2 judges and 1 prompt set; for the rest, where most was lost",
        "the unchanged model draws it as asked on 97 %",
        "369 k",
        "1 min 11 s",
        "unteach evaluate dog",
        "judge: cnn",
        "judge: nearest",
        "before 97 % (−4 pt, p = 0.020)",
        "dog, twemoji: as asked 100 % before, 0 % after (n 4)",
        "cat, noto: not asked",
        "noto 88 %",
        "21.5 dB",
        "In-domain retain accuracy",
        "a discriminator learns",
        "a judge that knows dog",
        "Wilson",
    ):
        assert fact in page.text, fact


def test_pictures_of_the_target_come_first(tmp_path: Path) -> None:
    results = make(tmp_path)
    results = dataclasses.replace(results, grids=results.grids[::-1])
    page = Page(render([results], tmp_path / "page.html"))
    assert page.text.index("Asking for twemoji") < page.text.index("Asking for anything else")


def test_same_input_same_page(tmp_path: Path) -> None:
    make(tmp_path)
    first = render([tmp_path], tmp_path / "one.html").read_bytes()
    assert render([Results.load(tmp_path / "results.json")], tmp_path / "two.html").read_bytes() == first


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7*7 }}</style></pre>"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    results = make(tmp_path, targets=(HOSTILE,), word=HOSTILE)
    hostile = dataclasses.replace(
        results,
        title=HOSTILE,
        method=HOSTILE,
        protocol=HOSTILE,
        kind=HOSTILE,
        config={HOSTILE: [HOSTILE]},
        notes={HOSTILE: HOSTILE},
        environment=dataclasses.replace(results.environment, platform=HOSTILE, revision=HOSTILE),
        metrics=tuple(dataclasses.replace(m, judge=HOSTILE, prompts=HOSTILE) for m in results.metrics),
        tables=tuple(dataclasses.replace(t, judge=HOSTILE) for t in results.tables),
        grids=tuple(dataclasses.replace(g, name=HOSTILE, prompts=HOSTILE) for g in results.grids),
    )
    hostile.save(tmp_path / "results.json")
    page = Page(render([tmp_path, tmp_path], tmp_path / "page.html", title=HOSTILE))
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.text.count(HOSTILE) > 20
    assert "<script" not in page.source


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_concepts(tmp_path: Path, count: int) -> None:
    targets = tuple(f"style{i}" for i in range(count))
    page = Page(render([make(tmp_path, targets)], tmp_path / "page.html"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) == count
    links = [a["href"] for a in page.all("a")]
    assert links == ([f"#{i}" for i in ids] if count > 1 else [])
    for target in targets:
        assert f"{target}: gone on 98 %" in page.text
    assert page.text.count("Asking for anything else") == 1


def test_several_runs_in_one_page(tmp_path: Path) -> None:
    make(tmp_path / "one", ("mono",))
    make(tmp_path / "two", ("noto",))
    page = Page(render([tmp_path / "one", tmp_path / "two"], tmp_path / "page.html"))
    assert "Taken out: mono, noto" in page.text and "At a glance" in page.text
    assert "How run 1 was made" in page.text and "How run 2 was made" in page.text


def test_verdicts_are_honest(tmp_path: Path) -> None:
    results = make(tmp_path)
    strict = Page(render([results], tmp_path / "a.html", limits=Thresholds(gone=(0.99, 0.9), lost=(0.01, 0.03))))
    assert "much of the rest lost" in strict.text and "erased, rest kept" not in strict.text
    assert any("banner bad" in s.get("class", "") for s in strict.all("section"))
    assert "Green: gone on at least 99 % of prompts, and the rest within 1 points" in strict.text


@pytest.mark.parametrize(("status", "words"), [("partial", "not finished"), ("failed", "marked as failed")])
def test_an_unfinished_run_says_so(tmp_path: Path, status: str, words: str) -> None:
    results = dataclasses.replace(make(tmp_path), status=status)  # type: ignore[arg-type]
    assert words in Page(render([results], tmp_path / "page.html")).text


def test_results_without_anything_still_make_a_page(tmp_path: Path) -> None:
    page = Page(render([Results()], tmp_path / "page.html"))
    assert "How it was made" in page.text
    bare = dataclasses.replace(make(tmp_path), metrics=(), tables=(), grids=())
    assert "not measured" in Page(render([bare], tmp_path / "bare.html")).text


def test_large_pictures_are_not_made_blocky(tmp_path: Path) -> None:
    page = Page(render([make(tmp_path, size=128)], tmp_path / "page.html"))
    assert all("class" not in image for image in page.all("img"))
    assert "image-rendering: pixelated" in page.source


def test_where_it_goes(tmp_path: Path) -> None:
    results = make(tmp_path / "run")
    assert render([results], tmp_path / "site") == tmp_path / "site" / "report.html"
    assert render([results], tmp_path / "site") == tmp_path / "site" / "report.html"
    assert render([results], tmp_path / "deep" / "x.htm") == tmp_path / "deep" / "x.htm"
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        render([results], tmp_path / "file" / "report.html")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one"):
        render([], tmp_path / "page.html")
    with pytest.raises(DataError, match=r"holds nothing that a page can show.*evaluations \(results\.json\)"):
        render([tmp_path], tmp_path / "page.html")
    with pytest.raises(DataError, match=r"cannot read .*results\.json"):
        render([tmp_path / "results.json"], tmp_path / "page.html")
    results = make(tmp_path)
    data = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "newer.json").write_text(json.dumps({**data, "version": Results.VERSION + 1}))
    with pytest.raises(DataError, match="newer version"):
        render([tmp_path / "newer.json"], tmp_path / "page.html")
    with pytest.raises(DataError, match="never saved"):
        render([dataclasses.replace(results, root=None)], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_pictures_that_are_missing_or_no_pictures(tmp_path: Path) -> None:
    results = make(tmp_path)
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(DataError, match=r"grid 'target pictures'.*b\.png cannot be read.*evaluate again"):
        render([results], tmp_path / "page.html")
    (tmp_path / "images" / "b.png").write_text("secret text")
    with pytest.raises(DataError, match="not a PNG"):
        render([results], tmp_path / "page.html")
    (tmp_path / "images" / "b.png").write_bytes(png((0, 0, 0))[:12])
    with pytest.raises(DataError, match="damaged"):
        render([results], tmp_path / "page.html")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    results = make(tmp_path / "run")
    (tmp_path / "private.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "run" / "images" / "b.png").unlink()
    (tmp_path / "run" / "images" / "b.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(DataError, match="outside the folder"):
        render([results], tmp_path / "page.html")


def test_no_model_library_is_loaded(tmp_path: Path) -> None:
    make(tmp_path)
    code = (
        "import sys; from unteach.report.page import page; page([sys.argv[1]], sys.argv[1]);"
        "print([m for m in ('diffusers', 'transformers', 'unteach.diffusion', 'unteach.data') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]" and (tmp_path / "report.html").exists()
