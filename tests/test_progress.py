"""Progress of a command that nobody looks on: plain lines, also when they go into a file (U4)."""

import time

import pytest

from unteach.commands import progress
from unteach.commands.progress import Progress


def test_lines_every_few_seconds_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    show = Progress(every=5)
    for done in range(1, 11):
        clock[0] += 2
        show("relearning", done, 10)
    for done in (6, 7):  # one that goes on in the middle
        show("mask", done, 7)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  relearning: 4 of 10 steps, about 12 s left",
        "  relearning: 7 of 10 steps, about 6.0 s left",
        "  relearning: 10 steps done",
        "  mask: 7 steps done",
    ]


def test_a_bar_where_somebody_looks_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "interactive", lambda: True)
    show = Progress()
    show("relearning", 3, 4)
    show("relearning", 4, 4)
    show("mask", 1, 1)
    show.close()
    said = capsys.readouterr()
    assert said.out == "" and "4/4" in said.err and "1/1" in said.err
