"""A small training in its own process, for the tests of the loop. Not a test."""

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unteach.core import state as files
from unteach.core.events import Steps
from unteach.core.loop import Loop, Step
from unteach.errors import CheckpointError, ConfigError


class Net:
    """Linear regression with AdamW and a schedule; the loss is a mean over the batch of all processes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.params = dict(self.net.named_parameters())
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.02)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 40)

    def loop(self, out: Path, steps: int = 40, **extra: Any) -> Loop:
        state = {"optimizer": self.optimizer, "schedule": self.schedule, **extra.pop("state", {})}
        settings = {"save_every": 10, "log_every": 4, **extra}
        return Loop(steps=steps, seed=4, params=self.params, state=state, out=out, **settings)

    def step(self, s: Step) -> Mapping[str, float | Tensor]:
        items = s.items(8)
        x = s.randn("x", (4,), items)
        loss = ((self.net(x) - x[:, :2].roll(1, 1)) ** 2).mean()
        grads = s.reduce(torch.autograd.grad(loss, list(self.params.values())))
        for param, grad in zip(self.params.values(), grads, strict=True):
            param.grad = grad
        self.optimizer.step()
        self.schedule.step()
        return {"loss": s.reduce([loss])[0], "rank": s.rank}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def alone(out: Path, point: str) -> None:
    """Train, up to a point: none, update, write, log, slow or full."""
    net = Net()

    def step(s: Step) -> Mapping[str, float | Tensor]:
        if point == "update" and s.index == 8:
            with torch.no_grad():
                net.params["0.weight"].add_(1)  # half an update
            kill()
        if point == "log" and s.index == 18:
            with (out / "log.jsonl").open("ab") as file:
                file.write(b'{"step": 20, "lo')
            kill()
        if point == "full" and s.index == 12:
            # From now on no file grows beyond the log that there is: as on a full disk.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            size = (out / "log.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        if point == "write" and s.index == 19:
            # The next checkpoint is written beside the old one, and the process dies before it is renamed.
            rename = Path.replace

            def die(self: Path, target: Path) -> Path:
                if self.suffix == ".part":
                    kill()
                return rename(self, target)

            Path.replace = die  # type: ignore[method-assign,assignment]
        if point == "slow":
            time.sleep(0.01 if s.index < 26 else 600)  # the other process has all the time to kill this one
        return net.step(s)

    try:
        history = net.loop(out).run(step)
    except CheckpointError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # to say so
        print("CheckpointError:", error)
        sys.exit(3)
    print("resumed from", history.resumed_from)


def two(folder: Path) -> None:
    first = Net()
    first.loop(folder / "two", steps=40, save_every=30, events=Steps(stop)).run(first.step)


class Enough(Exception):
    pass


def stop(done: int) -> None:
    if done == 34:
        raise Enough


def ranked(folder: Path) -> None:
    with contextlib.suppress(Enough):
        two(folder)
    net = Net()
    loop = net.loop(folder / "two", steps=40, save_every=30)
    seen: dict[str, Any] = {}

    def step(s: Step) -> Mapping[str, float | Tensor]:
        if not seen:
            seen["items"] = list(s.items(8))
            try:
                s.items(5)
            except ConfigError as error:
                seen["refused"] = str(error)
            mine = [
                torch.tensor([[0.0, 1.0]]) + s.rank,
                torch.tensor(3.0 + s.rank, dtype=torch.bfloat16),
                torch.tensor([1 / 3 + s.rank], dtype=torch.float64),
            ]
            seen["mean"] = s.reduce(mine)
            assert s.reduce([]) == []
        return net.step(s)

    history = loop.run(step)
    mean = {f"mean/{str(tensor.dtype).removeprefix('torch.')}": tensor for tensor in seen["mean"]}
    meta = {
        "rank": loop.rank, "world": loop.world, "items": seen["items"], "refused": seen["refused"],
        "resumed": history.resumed_from, "records": len(history.records),
    }  # fmt: skip
    files.save(folder / f"rank{loop.rank}.safetensors", {**net.params, **mean}, meta)
    torch.distributed.destroy_process_group()
