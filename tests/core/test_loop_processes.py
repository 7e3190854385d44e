"""Real processes: killed at several points and run again; on a full disk; two that share one batch."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from tests import processes
from tests.core import loop_script
from tests.core.loop_script import Net

from unteach.core import state as files


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_kill_9_at_several_points_then_resumed_is_the_unbroken_run(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    whole = Net()
    assert whole.loop(tmp_path / "whole").run(whole.step).resumed_from == 0

    # In the middle of an update; with a checkpoint written beside the old one; after a cut-off log line.
    for point, step in (("update", 0), ("write", 10), ("log", 10)):
        killed = processes.run(loop_script.alone, out, point)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if step:
            assert files.load(out / "state.safetensors")[1]["step"] == step
        else:
            assert not (out / "state.safetensors").exists()
        if point == "write":
            assert len(list(out.glob(".state.safetensors.*.part"))) == 1
            assert [record["step"] for record in lines(out)][-1] == 20  # beyond the checkpoint
        if point == "log":
            assert not (out / "log.jsonl").read_bytes().endswith(b"\n")

    # By another process, some time after the next checkpoint.
    slow = processes.start(loop_script.alone, out, "slow")
    deadline = time.monotonic() + 300
    while files.load(out / "state.safetensors")[1]["step"] < 20:
        assert slow.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    slow.kill()
    slow.join()
    assert slow.exitcode == -signal.SIGKILL
    assert files.load(out / "state.safetensors")[1]["step"] == 20

    again = processes.run(loop_script.alone, out, "none")
    assert again.returncode == 0, again.stderr
    assert again.stdout == "resumed from 20\n"
    assert sorted(p.name for p in out.iterdir()) == ["log.jsonl", "state.safetensors"]
    for name in ("state.safetensors", "log.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_full_disk_stops_with_a_clear_error_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    full = processes.run(loop_script.alone, tmp_path, "full")
    assert full.returncode == 3 and "CheckpointError" in full.stdout, full.stderr
    assert "cannot write the log" in full.stdout and "File too large" in full.stdout
    step = files.load(tmp_path / "state.safetensors")[1]["step"]
    assert step == 10 and not list(tmp_path.glob(".*.part"))


def test_two_processes_are_one_big_batch_and_only_the_first_writes(tmp_path: Path) -> None:
    processes.together(loop_script.ranked, tmp_path)
    ranks = [files.load(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]

    single = Net()  # one process does the same with the whole batch
    whole = single.loop(tmp_path / "single").run(single.step)
    for name, param in single.params.items():
        first, second = ranks[0][0][name], ranks[1][0][name]
        assert torch.equal(first, second), f"{name}: the ranks drifted apart"
        torch.testing.assert_close(first, param.detach(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(first, Net().params[name].detach())
    assert [meta["items"] for _, meta in ranks] == [[0, 1, 2, 3], [4, 5, 6, 7]]

    # Reduced values of several dtypes and shapes: the mean over ranks, each in its own dtype.
    for tensors, meta in ranks:
        assert torch.equal(tensors["mean/float32"], torch.tensor([[0.5, 1.5]]))
        assert torch.equal(tensors["mean/bfloat16"], torch.tensor(3.5, dtype=torch.bfloat16))
        assert torch.equal(tensors["mean/float64"], torch.tensor([1 / 3 + 0.5], dtype=torch.float64))
        assert meta["world"] == 2 and "cannot be shared evenly by 2 processes" in meta["refused"]
    assert [meta["rank"] for _, meta in ranks] == [0, 1]

    # One log, one checkpoint, by rank 0: as many records as steps logged, its tensors those of both ranks.
    out = tmp_path / "two"
    assert sorted(p.name for p in out.iterdir()) == ["log.jsonl", "state.safetensors"]
    assert [record["step"] for record in lines(out)] == [record["step"] for record in whole.records]
    assert all(record["rank"] == 0 for record in lines(out))
    saved = files.load(out / "state.safetensors")[0]
    assert all(torch.equal(saved[f"params/{name}"], ranks[1][0][name]) for name in single.params)
    # Both resumed from it in a second sitting in the same command, and both saw the whole log.
    assert [meta["resumed"] for _, meta in ranks] == [30, 30]
    assert [meta["records"] for _, meta in ranks] == [len(whole.records)] * 2
