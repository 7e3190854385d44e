"""What a run tells: lines where nobody looks on, bars where somebody does, JSON lines for programs (U4)."""

import io
import json
import time

import pytest

from unteach.core.events import SILENT, Bars, JsonLines, Lines, Steps


def test_lines_every_few_seconds_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    show = Lines(every=5)
    for done in range(1, 11):
        clock[0] += 2
        show.step("relearning", done, 10)
    for done in (6, 7):  # one that goes on in the middle
        show.step("mask", done, 7)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  relearning: 4 of 10, about 12 s left",
        "  relearning: 7 of 10, about 6.0 s left",
        "  relearning: 10 done",
        "  mask: 7 done",
    ]


def test_a_bar_where_somebody_looks_on(capsys: pytest.CaptureFixture[str]) -> None:
    show = Bars()
    show.step("relearning", 3, 4)
    show.metrics("relearning", 3, {"loss": 0.25})
    show.step("relearning", 4, 4)
    show.step("mask", 1, 1)
    show.message("half way\x1b[2J")
    show.close()
    said = capsys.readouterr()
    assert said.out == "half way\\x1b[2J\n" and "4/4" in said.err and "1/1" in said.err and "loss=0.25" in said.err


def test_json_lines_say_everything() -> None:
    out = io.StringIO()
    show = JsonLines(out)
    show.message("begun")
    show.step("train", 1, 2)
    show.metrics("train", 1, {"loss": 0.5})
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all(event.pop("time") > 0 for event in events)
    assert events == [
        {"event": "message", "text": "begun"},
        {"event": "step", "stage": "train", "done": 1, "total": 2},
        {"event": "metrics", "stage": "train", "step": 1, "values": {"loss": 0.5}},
    ]


def test_steps_of_one_stage_or_of_all_reach_a_function_which_may_cancel() -> None:
    seen: list[int] = []
    for events in (Steps(seen.append), Steps(seen.append, "train"), SILENT):
        events.step("draw", 1, 2)
        events.step("train", 2, 2)
    assert seen == [1, 2, 2]

    class Cancelled(Exception):
        pass

    def cancel(_: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        Steps(cancel).step("train", 1, 2)
