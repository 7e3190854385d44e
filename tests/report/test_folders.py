"""``unteach report`` makes a page of every folder that a command writes, by this release and by earlier ones."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch
from tests.report.pages import Page, make
from tests.report.test_card import FOUND

from unteach.cli import main
from unteach.core import state
from unteach.errors import CheckpointError, DataError
from unteach.report.erased import Erased
from unteach.report.page import KINDS, find, page

ARTEFACTS = Path(__file__).parents[1] / "regression"
RELEASES = sorted(path.name for path in ARTEFACTS.iterdir() if path.is_dir() and path.name[0].isdigit())
WRITTEN = {
    "doco": ("Erased: twemoji", "twemoji: whether it is gone was not checked", "DoCo: a discriminator", "2.05 k"),
    "uce": ("Erased: twemoji", "UCE: a closed-form edit"),
    "evaluation": ("Taken out: twemoji", "Asking for anything else", "PSNR"),
    "guard": ("Guard: toy against bad", "No attack was run", "The budget"),
    "attack": ("Relearning attacks: toy", "Fine-tuning on bad", "Recovery at each measured step"),
    "learn": ("Continual learning: digits", "er 20 + reweight", "4 arms, 4 runs"),
    "demo": ("Taken out: twemoji", "How run 2 was made", "uce"),
    "protect": ("Guard: toy against bad", "Fine-tuning on bad", "Erased: twemoji", "Taken out: twemoji"),
}


@pytest.fixture(params=RELEASES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folders of a release, and two made of them: a demo, and one of everything."""
    folder = tmp_path / "runs"
    shutil.copytree(ARTEFACTS / request.param, folder, ignore=shutil.ignore_patterns("toy", "published"))
    for erased in ("doco", "uce"):
        shutil.copytree(folder / erased, folder / "demo" / erased)
        shutil.copytree(folder / "evaluation", folder / "demo" / erased / "evaluation")
    for part in ("doco", "evaluation", "guard", "attack"):
        shutil.copytree(folder / part, folder / "protect" / part)
    return folder


@pytest.mark.parametrize("written", WRITTEN)
def test_every_folder_makes_a_page(place: Path, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(place / written)]) == 0
    assert capsys.readouterr().out.split() == ["wrote:", str(place / written / "report.html")]
    made = Page(place / written / "report.html")
    for fact in WRITTEN[written]:
        assert fact in made.text, fact
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in made.tags}
    assert not re.search(r"https?:|url\(|@import", re.sub(r"base64,[\w+/=]+", "", made.source))
    ids = [attributes["id"] for _, attributes in made.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {a["href"][1:] for a in made.all("a")} <= set(ids)
    (policy,) = [m["content"] for m in made.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and ("img-src" in policy) == bool(made.all("img"))


def test_a_page_of_everything_has_a_part_for_each(place: Path, tmp_path: Path) -> None:
    shutil.rmtree(place / "demo")
    shutil.rmtree(place / "protect")
    made = Page(page([place], tmp_path / "all.html"))
    titles = ["Taken out: twemoji", "Erased: twemoji", "Guard: toy against bad", "Continual learning: digits"]
    assert "; ".join(titles) in made.text
    assert [made.source.index(f"<h2>{title}</h2>") for title in titles] == sorted(
        made.source.index(f"<h2>{title}</h2>") for title in titles
    )
    assert {type(record) for record in find(place)} == {kind.record for kind in KINDS}


@pytest.mark.parametrize("other", ["bad", "keys", "lora", "empty", "bad/0.png"])
def test_another_folder_is_refused_with_what_can_be_read(
    place: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "empty").mkdir()
    assert main(["report", str(place / other)]) == 2
    said = capsys.readouterr().err
    assert f"{place / other} holds nothing that a page can show" in said
    for kind in KINDS:
        assert f"{kind.what} ({kind.file})" in said
    assert not (place / other / "report.html").exists()


def erased(folder: Path, **meta: object) -> Path:
    record = {"format": "unteach-delta", "version": 1, "concepts": [{"target": "fluent", "anchor": "noto"}], **meta}
    state.write_json(folder / "cost.json", {"seconds": 71.2})
    return state.save(folder / "delta.safetensors", {"a": torch.ones(3, 4)}, record)


def test_an_erasure_says_what_its_check_found(tmp_path: Path) -> None:
    counts = {"pairs": 6, "kept": 240}
    erased(tmp_path / "one", check=FOUND.to_dict(), prompts=counts, method="doco", seed=3, config={"steps": 7})
    made = Page(page([tmp_path / "one"], tmp_path / "a.html"))
    for fact in (
        "fluent: nothing happened",
        "fluent → noto: nothing happened (1 % of the way to the anchor, 0.98 of the distance left",
        FOUND.lines()[1],
        "6 pairs, 0 pairs with random words around the name, 240 to keep",
        "1 min 11 s",
        '"steps": 7',
    ):
        assert fact in made.text, fact
    assert any("banner bad" in s.get("class", "") for s in made.all("section"))
    effect = dataclasses.replace(FOUND.concepts[0], towards=1.0, left=0.0, moved=1.0)
    erased(tmp_path / "two", check=dataclasses.replace(FOUND, concepts=(effect,)).to_dict())
    good = Page(page([tmp_path / "two"], tmp_path / "b.html"))
    assert "fluent: erased, the rest kept" in good.text
    assert any("banner good" in s.get("class", "") for s in good.all("section"))


def test_an_evaluation_beside_a_delta_speaks_for_it(tmp_path: Path) -> None:
    erased(tmp_path)
    make(tmp_path / "evaluation")
    assert "Taken out: twemoji" in (text := Page(page([tmp_path], tmp_path / "a.html")).text) and "Erased" not in text


def test_odd_deltas(tmp_path: Path) -> None:
    word = "<script>\"'&"
    erased(
        tmp_path / "odd",
        concepts=[{"target": word, "anchor": word}, 3],
        method=word,
        prompts={"pairs": word},
        seed=word,
    )
    made = Page(page([tmp_path / "odd" / "delta.safetensors"], tmp_path / "a.html"))
    assert not made.all("script") and made.text.count(word) > 5
    bare = Page(page([Erased(name="x", meta={}, tensors=1, parameters=2, seconds=None)], tmp_path / "b.html"))
    assert "Erased: an unnamed concept" in bare.text and "Time to erase" not in bare.text
    state.save(tmp_path / "other" / "delta.safetensors", {"a": torch.ones(2)}, {"format": "unteach-anchors"})
    with pytest.raises(CheckpointError, match="not a weight delta"):
        page([tmp_path / "other"], tmp_path / "c.html")
    with pytest.raises(DataError, match="check of odd"):
        page([erased(tmp_path / "odd", check={"rest": "?"})], tmp_path / "c.html")
