import dataclasses
from pathlib import Path

from tests.report.pages import make

from unteach.core.finding import Effect, Finding
from unteach.report import model_card
from unteach.report.card import escape

FOUND = Finding(
    concepts=(Effect(target="fluent", anchor="noto", towards=0.01, left=0.98, moved=0.0, apart=0.3, prompts=16),),
    rest=0.0,
    prompts=24,
    seed=0,
)
META = {"method": "doco", "concepts": [{"target": "twemoji"}], "family": "sd", "base": "ab12", "seed": 3}


def test_a_card_says_what_how_well_and_how_to_undo(tmp_path: Path) -> None:
    card = model_card(META, [make(tmp_path)], name="twemoji.safetensors")
    assert card.startswith("---\nlibrary_name: diffusers\n") and "# To erase twemoji\n" in card
    assert "`doco`. DoCo: a discriminator" in card and "* Base digest: `ab12`" in card and "* Seed: `3`" in card
    assert "WeightDelta.load('twemoji.safetensors')" in card and "applied.undo()" in card
    assert "**twemoji**: gone on 98 % of prompts, the rest kept at 93 % (erased, rest kept)." in card
    assert "| kept | unlearning set | cnn | 97 % | 93 % | 86–97 % | 100 |" in card
    assert "    unteach evaluate dog" in card
    assert "same verdict" not in card


def test_a_card_without_results_promises_nothing() -> None:
    card = model_card({})
    assert "an unnamed concept" in card and "## Measured" not in card and "Method" not in card
    assert "it takes" not in card and "Whether it does was not checked" in card
    assert "# To erase bomb and mono" in model_card({"concepts": ["bomb", {"target": "mono"}, "bomb"]})


def test_u2_the_card_says_what_the_check_found() -> None:
    meta = {"concepts": [{"target": "fluent"}], "check": FOUND.to_dict(), "prompts": {"pairs": 6, "kept": 240}}
    card = model_card(meta)
    assert "# To erase fluent\n" in card and "**Checked when it was made: nothing happened.**" in card
    card = card.replace("\\", "")
    assert "* fluent → noto: nothing happened (1 % of the way to the anchor, 0.98 of the distance left" in card
    assert "* the rest: kept (moved 0.00 of the distance to the next picture, 24 prompts)" in card
    assert (
        "* Prompts: 6 pairs, 0 pairs with random words around the name, 240 to keep" in card
        and "takes fluent out" not in card
    )
    erased = dataclasses.replace(FOUND.concepts[0], towards=1.0, left=0.0, moved=1.0)
    good = dataclasses.replace(FOUND, concepts=(erased,))
    assert "# Without fluent\n" in model_card({**meta, "check": good.to_dict()})


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
