"""The figures of docs/security.md are those of the committed results."""

import pytest
from benchmarks.security import page

from unteach.core import state


def test_the_page_holds_the_figures_of_the_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "run: python benchmarks/security/page.py"


@pytest.mark.parametrize(("name", "least"), [("kills", 100), ("files", 5000)])
def test_enough_was_tried_and_it_held(name: str, least: int) -> None:
    """At least 100 kills and 5,000 damaged files: no bit lost, no traceback, no hang, no code run."""
    file = {"kills": "security_kills.json", "files": "security_mutations.json"}[name]
    found = state.read_table(page.RESULTS / file)
    assert found[name] >= least
    if name == "kills":
        assert found["rounds that held"] == found["rounds"] and found["not held"] == []
    else:
        assert [found[key] for key in ("tracebacks", "hangs", "code run", "deaths", "long messages")] == [0] * 5


def test_no_forgery_conforms_and_every_honest_upload_does() -> None:
    counts = state.read_table(page.RESULTS / "security_forgeries.json")["counts"]
    assert counts["forgeries"] >= 60 and "conform" not in counts["forgeries by outcome"]
    assert set(counts["honest uploads by outcome"]) == {"conform"}
