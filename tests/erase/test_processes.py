"""Real processes: killed in the middle and resumed; two that train together."""

import signal

import pytest
import torch
from tests import processes
from tests.erase import worker
from tests.erase.common import CONCEPT, QUICK, quick, same

from unteach.core import state
from unteach.core.events import Steps
from unteach.diffusion import WeightDelta, load
from unteach.erase import erase


@pytest.mark.slow
def test_killed_at_any_point_and_resumed_it_is_as_if_unbroken(folder, tmp_path):
    settings = {"method": "doco", **QUICK, "steps": 8, "warm_up": 2, "images": 20}
    out, toy = tmp_path / "run", folder("sd")
    # While pictures are drawn, after that, in the warm-up, at and after a checkpoint, at the end.
    for when in ("anchors.part/rows-*.safetensors", "anchors.safetensors", 1, 4, 7, "delta.safetensors"):
        process = processes.start(worker.killed, toy, out, settings, when)
        process.join(timeout=120)
        if when == "delta.safetensors":  # it may well have ended before the killer woke up
            assert process.exitcode in (0, -signal.SIGKILL)
        else:
            assert process.exitcode == -signal.SIGKILL, when
    whole = erase(load(toy), CONCEPT, "doco", seed=5, **{k: v for k, v in settings.items() if k != "method"})
    seen: list[int] = []
    resumed = erase(load(toy), CONCEPT, seed=5, out=out, events=Steps(seen.append, "doco"), save_every=2, **settings)
    assert same(resumed, whole) and seen == []
    assert state.load(out / "state.safetensors")[1]["step"] == 8
    assert sorted(file.name for file in out.glob("[!.]*")) == [
        "anchors.safetensors",
        "delta.safetensors",
        "log.jsonl",
        "state.safetensors",
    ]


@pytest.mark.parametrize("name", ["doco", "ablate"])
def test_two_processes_agree(folder, tmp_path, name):
    """§6.9: every gradient is averaged over the processes, so both end with the same weights."""
    method = quick(name, batch_size=4)
    settings = {"method": method}
    toy = folder("sd")
    processes.together(worker.member, toy, tmp_path, settings)
    first, second = (WeightDelta.load(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert same(first, second) and same(first, WeightDelta.load(tmp_path / "shared" / "delta.safetensors"))
    alone = erase(load(toy), CONCEPT, method, seed=5)
    a, b = (torch.cat([d.tensors[n].flatten() for n in alone.tensors]) for d in (first, alone))
    if name == "ablate":
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    else:
        # The discriminator normalises over a process's own share of the batch_size: a slightly different game.
        assert not torch.equal(a, b) and float(torch.nn.functional.cosine_similarity(a, b, dim=0)) > 0.8
