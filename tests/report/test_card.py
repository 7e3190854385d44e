import dataclasses
from pathlib import Path

from tests.report.pages import make

from unteach.report import model_card
from unteach.report.card import escape

META = {"method": "doco", "concepts": [{"target": "twemoji"}], "family": "sd", "base": "ab12", "seed": 3}


def test_a_card_says_what_how_well_and_how_to_undo(tmp_path: Path) -> None:
    card = model_card(META, [make(tmp_path)], name="twemoji.safetensors")
    assert card.startswith("---\nlibrary_name: diffusers\n") and "# Without twemoji\n" in card
    assert "`doco`. DoCo: a discriminator" in card and "* Base digest: `ab12`" in card and "* Seed: `3`" in card
    assert "WeightDelta.load('twemoji.safetensors')" in card and "applied.undo()" in card
    assert "**twemoji**: gone on 98 % of prompts, the rest kept at 93 % (erased, rest kept)." in card
    assert "| kept | unlearning set | cnn | 97 % | 93 % | 86–97 % | 100 |" in card
    assert "    unteach evaluate dog" in card
    assert "same verdict" not in card


def test_a_card_without_results_promises_nothing() -> None:
    card = model_card({})
    assert "an unnamed concept" in card and "## Measured" not in card and "Method" not in card
    assert "# Without bomb, mono" in model_card({"concepts": ["bomb", {"target": "mono"}, "bomb"]})


def test_hostile_text_is_shown_as_it_is(tmp_path: Path) -> None:
    hostile = "x|y\n# big *b* <script>`c`"
    meta = {**META, "method": hostile, "concepts": [hostile]}
    results = make(tmp_path)
    run = dataclasses.replace(
        results,
        metrics=tuple(dataclasses.replace(m, judge=hostile) for m in results.metrics),
        protocol=hostile,
        command="line one\n# line two",
    )
    card = model_card(meta, [run], name="a'b.safetensors")
    assert "\n# big" not in card and "<script>" not in card.replace("`x|y # big *b* <script>'c'`", "")
    assert '"a\'b.safetensors"' in card and "    # line two" in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and "before" not in line]
    assert rows and all(line.replace("\\|", "").count("|") == 8 for line in rows)
    assert escape("a  *b*\n<c>") == "a \\*b\\* \\<c\\>"
