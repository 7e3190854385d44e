"""The one training loop: steps, progress, logging, resuming, stopping.

The loop owns *when*; a step function owns *what*: it computes gradients and steps its optimizers itself, so
any rule on gradients fits (surgery, refresh, adversaries). Accelerate is inside for devices and processes;
gradients are averaged by :meth:`Step.reduce`, which also serves rules that need several gradients a step.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import reduce as all_reduce
from torch import Tensor, nn

from unteach.core import places, seeds
from unteach.core import state as files
from unteach.core.events import SILENT, Events
from unteach.core.run import same
from unteach.errors import CheckpointError, ConfigError, NumericsError

log = logging.getLogger(__name__)


class Stateful(Protocol):
    """Anything with ``state_dict`` and ``load_state_dict``: an optimizer, a module, an average of weights."""

    def state_dict(self) -> Any:
        """The state as nested dicts and lists of tensors and plain values."""

    def load_state_dict(self, state_dict: Any, /) -> object:
        """Take over a state that :meth:`state_dict` gave."""


@dataclass(frozen=True)
class Step:
    """What a step function may know of the step: its index, and reproducible draws for it."""

    index: int
    total: int
    seed: int
    rank: int = 0
    world: int = 1

    def items(self, batch: int) -> range:
        """Global indices of the items of this process in a batch of ``batch`` items over all processes."""
        if batch % self.world:
            raise ConfigError(
                f"a batch of {batch} cannot be shared evenly by {self.world} processes",
                fix=f"choose a batch size that is a multiple of {self.world}",
            )
        share = batch // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    def randn(self, purpose: str, shape: Sequence[int], items: Sequence[int]) -> Tensor:
        """Normal noise ``(len(items), *shape)``, one stream an item (see :mod:`unteach.core.seeds`)."""
        return seeds.randn(shape, self.seed, purpose, self.index, items)

    def rand(self, purpose: str, shape: Sequence[int], items: Sequence[int]) -> Tensor:
        """Uniform draws in [0, 1), ``(len(items), *shape)``."""
        return seeds.rand(shape, self.seed, purpose, self.index, items)

    def randint(self, purpose: str, high: int, items: Sequence[int]) -> Tensor:
        """Integers in [0, high), ``(len(items),)``."""
        return seeds.randint(high, self.seed, purpose, self.index, items)

    def reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean of each tensor over all processes, in one exchange; with one process, the same tensors."""
        if self.world == 1 or not tensors:
            return list(tensors)
        wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        flat = torch.cat([tensor.detach().reshape(-1).to(wide) for tensor in tensors])
        flat = all_reduce(flat, reduction="mean")
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(like).to(like.dtype) for part, like in zip(parts, tensors, strict=True)]


@dataclass
class History:
    """What a run logged: one record a logged step (with ``out``, those of earlier sessions too), the seconds
    of this session, and the step that it was resumed from.
    """

    records: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    resumed_from: int = 0


class Loop:
    """Run ``steps`` calls of a step function, saving so that the same command goes on where it was stopped.

    Args:
        steps: how many steps in all.
        seed: the root of all draws of :class:`Step`.
        params: the tensors that move, by name; saved and restored.
        state: optimizers, helper modules, averages: anything with ``state_dict``; saved and restored.
        config: everything that the result depends on; a checkpoint of another config is refused.
        out: folder for ``state.safetensors`` and ``log.jsonl``; None keeps nothing on disk.
        save_every: steps between checkpoints.
        log_every: steps between records.
        events: told of each step and of what is logged; an exception from it stops the run.
        label: what the events call this stage.
    """

    def __init__(
        self,
        *,
        steps: int,
        seed: int,
        params: Mapping[str, nn.Parameter],
        state: Mapping[str, Stateful] | None = None,
        config: Mapping[str, Any] | None = None,
        out: Path | None = None,
        save_every: int = 25,
        log_every: int = 10,
        events: Events = SILENT,
        label: str = "train",
    ) -> None:
        if steps < 0:
            raise ConfigError("the number of steps is negative", found=steps)
        if save_every < 1 or log_every < 1:
            raise ConfigError("save_every and log_every start at 1", found=(save_every, log_every))
        self.steps, self.seed, self.params, self.out = steps, seed, dict(params), out
        self.state = dict(state or {})
        # Through JSON at once: what cannot be compared later fails here, not at the first checkpoint.
        self.config = json.loads(files.canonical({"steps": steps, "seed": seed, **dict(config or {})}))
        self.save_every, self.log_every, self.events, self.label = save_every, log_every, events, label
        process = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.world = process.process_index, process.num_processes

    @property
    def path(self) -> Path | None:
        """The checkpoint file, or None when nothing is kept."""
        return None if self.out is None else self.out / "state.safetensors"

    def run(self, step: Callable[[Step], Mapping[str, float | Tensor]]) -> History:
        """Call ``step`` for every step that is left and return what was logged.

        Values whose name contains "loss" must be finite in every step, and all parameters whenever they are
        saved and at the end. Steps are counted from 1 in the log and in messages.

        Raises:
            NumericsError: a loss or a parameter is not finite; the last good checkpoint stays.
            CheckpointError: the checkpoint in ``out`` is damaged or belongs to another configuration.
        """
        history = History()
        first = history.resumed_from = self._resume()
        history.records = self._trim_log(first)
        PartialState().wait_for_everyone()  # nobody writes before everybody has read
        begin, saved = time.monotonic(), first
        index = first
        try:
            for index in range(first, self.steps):
                values = step(Step(index, self.steps, self.seed, self.rank, self.world))
                if self._bad(values):
                    shown = _numbers(values)
                    raise self._diverged("a loss", index + 1, shown, saved)
                if (index + 1) % self.log_every == 0 or index + 1 == self.steps:
                    self._log(history, index, values)
                if (index + 1) % self.save_every == 0 or index + 1 == self.steps:
                    broken = [name for name, p in self.params.items() if not bool(torch.isfinite(p).all())]
                    if broken:
                        raise self._diverged("a parameter", index + 1, ", ".join(broken[:3]), saved)
                    self._save(index + 1)
                    saved = index + 1
                self.events.step(self.label, index + 1, self.steps)
        except KeyboardInterrupt:
            # It may have come in the middle of an update: the last checkpoint is the last whole state.
            onward = f"the same command goes on from step {saved}" if self.out else "nothing was kept"
            log.warning("stopped in step %d of %d; %s", index + 1, self.steps, onward)
            raise
        except NumericsError:
            log.error("training diverged at step %d", index + 1)
            raise
        finally:
            self.events.close()
            history.seconds = time.monotonic() - begin
        return history

    def _bad(self, values: Mapping[str, float | Tensor]) -> bool:
        losses = [torch.as_tensor(value).detach().float() for name, value in values.items() if "loss" in name]
        return bool(losses) and not bool(torch.isfinite(torch.stack([x.mean() for x in losses])).all())

    def _diverged(self, what: str, step: int, found: object, saved: int) -> NumericsError:
        kept = (
            f"the good state of step {saved} is kept in {self.path}" if self.out and saved else "nothing was saved yet"
        )
        return NumericsError(
            f"{what} is not finite at step {step} of {self.steps}; {kept}",
            found=found,
            fix="lower the learning rate or clip the gradient, and start in a new folder",
        )

    def _log(self, history: History, index: int, values: Mapping[str, float | Tensor]) -> None:
        numbers = _numbers(values)
        record: dict[str, float] = {"step": index + 1, **numbers}
        history.records.append(record)
        self.events.metrics(self.label, index + 1, numbers)
        if self.out is not None and self.rank == 0:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:
                raise CheckpointError(
                    f"cannot write the log in {self.out}",
                    found=error.strerror or error,
                    fix=f"{places.cure(error)}, then run the same command again",
                ) from error

    def _save(self, done: int) -> None:
        if self.path is not None and self.rank == 0:
            self._write(self.path, done)
        if self.path is not None:
            PartialState().wait_for_everyone()  # nobody goes on, or ends, before the file is there

    def _write(self, path: Path, done: int) -> None:
        tensors: dict[str, Tensor] = {f"params/{name}": value for name, value in self.params.items()}
        plain: dict[str, Any] = {}
        for key, item in self.state.items():
            plain[key] = _pack(item.state_dict(), f"state/{key}", tensors)
        meta = {
            "step": done,
            "fingerprint": files.fingerprint(self.config),
            "config": self.config,
            "state": plain,
        }
        files.save(path, tensors, meta)

    def _resume(self) -> int:
        if self.path is None or not self.path.exists():
            return 0
        tensors, meta = files.load(self.path)
        step, config, kept = (meta.get(key) for key in ("step", "config", "state"))
        if meta.get("fingerprint") != files.fingerprint(self.config):
            same(self.path, config, self.config)
            raise self._other("a configuration that was edited")
        names = {name.removeprefix("params/") for name in tensors if name.startswith("params/")}
        if not isinstance(kept, dict) or names != set(self.params) or set(kept) != set(self.state):
            states = sorted(kept) if isinstance(kept, dict) else kept
            raise self._other(f"parameters {sorted(names)}, states {states}")
        if type(step) is not int or not 0 <= step <= self.steps:
            raise self._other(f"step {step!r}")
        for name, param in self.params.items():
            saved = tensors[f"params/{name}"]
            if (saved.shape, saved.dtype) != (param.shape, param.dtype):
                raise self._other(f"{name} is {tuple(saved.shape)}, {saved.dtype}")
        for key, item in self.state.items():
            try:
                item.load_state_dict(_unpack(kept[key], tensors))
            except Exception as error:  # whatever an optimizer makes of a state that is none
                raise self._other(f"state '{key}': {error}") from error
        with torch.no_grad():
            for name, param in self.params.items():
                param.copy_(tensors[f"params/{name}"])
        log.info("going on from step %d of %s", step, self.path)
        return step

    def _other(self, found: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} does not hold the state of this run", found=found, fix="use a new output folder"
        )

    def _trim_log(self, done: int) -> list[dict[str, float]]:
        """The logged records up to step ``done``. What a stopped session left beyond them is removed: records
        of steps that are run again, a line that was cut off, files that were being written.
        """
        if self.out is None:
            return []
        path = self.out / "log.jsonl"
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise CheckpointError(f"cannot read {path}", found=error.strerror or error) from error
        records = []
        for line in data.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int) and record["step"] <= done:
                records.append(record)
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        if self.rank == 0:
            places.sweep(self.out, deep=False)
            if text != data:
                files.write_bytes(path, text)
        return records


def _numbers(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {k: float(v.detach() if isinstance(v, Tensor) else v) for k, v in values.items()}


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Nested state as JSON, its tensors moved to ``tensors``; integer keys survive."""
    if isinstance(value, Tensor):
        while path in tensors:  # keys 1 and "1", or "a/b" beside "a" with "b"
            path += "'"
        tensors[path] = value.clone()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"map": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}  # JSON has no infinity
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise CheckpointError("a state holds something that is neither a tensor nor a plain value", found=type(value))


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in value:
        # A copy, because tensors of a file lie at any address and matrix products round differently off a boundary.
        return tensors[value["tensor"]].clone()
    if "map" in value:
        return {key: _unpack(item, tensors) for key, item in value["map"]}
    if "list" in value:
        return [_unpack(item, tensors) for item in value["list"]]
    if "float" in value:
        return float(value["float"])
    return value["value"]
