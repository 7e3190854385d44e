"""The memory of past samples: fixed tensors, filled a batch at a time without a loop over samples.

Three policies say what stays. Whatever the policy, rows ``[0, len(memory))`` are the filled ones, an insert is a
function of (seed, step, what was offered before), and its cost does not depend on how many tasks were seen.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unteach.continual.batch import Batch
from unteach.continual.memory.selection import fair, last_wins, rank_within
from unteach.core import seeds
from unteach.core.registry import near
from unteach.errors import CheckpointError, ConfigError, DataError

__all__ = ["Memory"]

Policy = Literal["reservoir", "balanced", "ring"]


class Memory:
    """At most ``capacity`` samples with labels, and logits if asked for.

    Policies:
        reservoir: each of the samples offered so far is kept with equal probability (Vitter's algorithm R).
        balanced: the classes seen share the capacity equally (their counts differ by at most one, except for
            classes with fewer samples than their share); within a class each sample offered is kept with equal
            probability. Each sample gets a random key; a class keeps its smallest ones.
        ring: ``capacity // classes`` rows a class, first in, first out.

    Args:
        capacity: most samples it holds.
        shape: shape of one sample, without the batch.
        classes: number of classes of the whole stream; labels are in [0, classes).
        dtype: type of the samples; uint8 for images.
        policy: what stays, see above.
        logits: keep a row of ``classes`` float32 numbers beside each sample.
        seed: seed of the run.
        device: where the tensors are. The balanced and ring policies wait for it once an insert.

    Raises:
        ConfigError: an unknown policy, a capacity below 1, or one below the number of classes for the policies
            that share it among them.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        *,
        classes: int,
        dtype: torch.dtype = torch.uint8,
        policy: Policy = "reservoir",
        logits: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if policy not in get_args(Policy):
            raise ConfigError("no memory policy is called so", found=repr(policy), fix=near(policy, get_args(Policy)))
        least = 1 if policy == "reservoir" else max(1, classes)
        if capacity < least:
            raise ConfigError(
                "a buffer smaller than the classes" if least > 1 else "a buffer without room for a sample",
                found=f"capacity {capacity}, {classes} classes, policy '{policy}'",
                fix=f"give it room for at least {least}" + (", or use 'reservoir'" if least > 1 else ""),
            )
        self.capacity, self.shape, self.classes = int(capacity), tuple(shape), int(classes)
        self.policy, self.seed, self.device = policy, seed, torch.device(device)
        self.x = torch.zeros(self.capacity, *self.shape, dtype=dtype, device=device)
        self.y = torch.zeros(self.capacity, dtype=torch.int64, device=device)
        self.task = torch.zeros_like(self.y)
        self.index = torch.full_like(self.y, -1)
        self.logits = torch.zeros(self.capacity, self.classes, device=device) if logits else None
        self.seen = 0
        """Samples offered so far."""
        self._share = self.capacity // max(1, self.classes)
        self._reset()

    def _reset(self) -> None:
        """Forget everything; what the policies keep count of is on the CPU."""
        self._filled = 0
        self._keys = torch.zeros(self.capacity if self.policy == "balanced" else 0, dtype=torch.float64)
        rows = self.classes if self.policy == "ring" else 0
        self._arrived = torch.zeros(rows, dtype=torch.int64)  # samples offered, by class
        self._where = torch.full((rows * self._share,), -1)  # (class, place in its queue) to row of the memory

    def __len__(self) -> int:
        return self._filled

    @torch.no_grad()
    def insert(
        self,
        x: Tensor,
        y: Tensor,
        *,
        task: int | Tensor,
        logits: Tensor | None = None,
        index: Tensor | None = None,
        step: int,
    ) -> Tensor:
        """Offer a batch, as if its samples came one after the other.

        Args:
            x: (n, *shape) in the memory's dtype.
            y: (n,) labels.
            task: number of the task, or one a sample (n,).
            logits: (n, classes), needed exactly if the memory keeps logits.
            index: (n,) positions in the stream.
            step: global step; the random draws are a function of (seed, step).

        Returns:
            The distinct rows that were written, int64, on the CPU.

        Raises:
            DataError: wrong shapes, dtypes or labels.
            ConfigError: logits missing, or given to a memory that keeps none.
        """
        labels = self._check(x, y, logits, index)
        draws = torch.rand(len(y), generator=seeds.generator(self.seed, "memory", step), dtype=torch.float64)
        slots, rows = self._place(labels, draws)
        self.seen += len(y)
        if len(slots):
            self._write(slots, rows, x, y, task, logits, index)
        return slots

    @torch.no_grad()
    def replace(
        self,
        x: Tensor,
        y: Tensor,
        *,
        task: int | Tensor,
        logits: Tensor | None = None,
        index: Tensor | None = None,
    ) -> None:
        """Make these samples, in this order, the whole content; arguments as in :meth:`insert`.

        Raises:
            DataError: as :meth:`insert`.
            ConfigError: more samples than there is room for (in all, or of one class in a ring), or as
                :meth:`insert`.
        """
        labels = self._check(x, y, logits, index)
        most = int(torch.bincount(labels).max()) if self.policy == "ring" and len(labels) else 0
        if len(y) > self.capacity or most > self._share:
            raise ConfigError(
                "these samples do not fit into the memory",
                found=f"{len(y)} samples for {self.capacity} rows"
                + (f", {most} of one class for {self._share} rows a class" if most else ""),
                fix="choose fewer, e.g. the first ones in the order of herding",
            )
        self._reset()
        generator = seeds.generator(self.seed, "memory", "replace", self.seen)
        if self.policy == "ring":
            slots, rows = self._ring(labels)
        else:
            slots = rows = torch.arange(len(y))
            self._filled = len(y)
        if self.policy == "balanced":
            self._keys[slots] = torch.rand(len(y), generator=generator, dtype=torch.float64)
        self.seen = max(self.seen, len(y))
        self._write(slots, rows, x, y, task, logits, index)

    def draw(self, n: int, generator: torch.Generator, *, task: int | None = None) -> Batch:
        """``n`` different samples in random order, or all there are if there are fewer.

        Args:
            n: how many.
            generator: random numbers, on the CPU.
            task: draw from this task's samples alone (waits for the device).

        Raises:
            ConfigError: ``n`` is below 1.
        """
        if n < 1:
            raise ConfigError("a draw from the memory needs at least one sample", found=n, fix="draw 1 or more")
        if task is None:
            slots = torch.randperm(self._filled, generator=generator)[:n].to(self.device)
        else:
            held = (self.task[: self._filled] == task).nonzero()[:, 0]
            slots = held[torch.randperm(len(held), generator=generator)[:n].to(self.device)]
        x, y, task_of, index = (held.index_select(0, slots) for held in (self.x, self.y, self.task, self.index))
        logits = None if self.logits is None else self.logits.index_select(0, slots)
        return Batch(x, y, logits, task_of, slots, index)

    @torch.no_grad()
    def update_logits(self, slots: Tensor, logits: Tensor) -> None:
        """Write new logits (n, classes) into these rows (n,).

        Raises:
            ConfigError: the memory keeps no logits.
            DataError: the shapes do not fit.
        """
        if self.logits is None:
            raise ConfigError("this memory keeps no logits", fix="make it with logits=True")
        if logits.shape != (len(slots), self.classes):
            raise DataError(
                f"logits to keep must have the shape ({len(slots)}, {self.classes})",
                found=tuple(logits.shape),
                fix="give one row of all classes' outputs a row of the memory",
            )
        self.logits[slots.to(self.device)] = logits.detach().to(self.logits)

    def state_dict(self) -> dict[str, Any]:
        """Tensors (filled rows alone) and plain numbers from which :meth:`load_state_dict` goes on bit for bit."""
        n = self._filled
        tensors = {name: getattr(self, name)[:n].clone() for name in ("x", "y", "task", "index")}
        if self.logits is not None:
            tensors["logits"] = self.logits[:n].clone()
        counts = {"keys": self._keys, "arrived": self._arrived, "where": self._where}
        return {
            "layout": self._layout(),
            "filled": n,
            "seen": self.seen,
            **tensors,
            **{name: value.clone() for name, value in counts.items() if value.numel()},
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            CheckpointError: the state is of a memory with other settings, or not whole.
        """
        if state_dict.get("layout") != self._layout():
            raise CheckpointError(
                "this state is of another memory",
                found=f"{state_dict.get('layout')}, wanted {self._layout()}",
                fix="make the memory with the settings it was saved with",
            )
        n = int(state_dict["filled"])
        names = ["x", "y", "task", "index", *(["logits"] if self.logits is not None else [])]
        if any(name not in state_dict or len(state_dict[name]) != n for name in names):
            raise CheckpointError("the state of this memory is not whole", found=sorted(state_dict), fix="start anew")
        self._reset()
        for name in names:
            getattr(self, name)[:n] = state_dict[name].to(self.device)
        for name in ("keys", "arrived", "where"):
            if name in state_dict:
                getattr(self, f"_{name}").copy_(state_dict[name])
        self._filled, self.seen = n, int(state_dict["seen"])

    def _layout(self) -> str:
        kept = "logits" if self.logits is not None else "no logits"
        return f"{self.policy}, {self.capacity} x {list(self.shape)} {self.x.dtype}, {self.classes} classes, {kept}"

    # ---- what stays: rows of the memory and the rows of the batch that go there ----

    def _place(self, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        if self.policy == "ring":
            return self._ring(labels)
        if self.policy == "balanced":
            return self._balanced(labels, draws)
        return self._reservoir(draws)

    def _reservoir(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        # While there is room the next row is taken; then sample t (from 0) goes to row ⌊u (t + 1)⌋ if there is one.
        n, size = self._filled, len(draws)
        room = min(size, self.capacity - n)
        self._filled = n + room
        if room == size:
            return torch.arange(n, n + size), torch.arange(size)
        target = (draws.numpy() * np.arange(self.seen + 1, self.seen + size + 1)).astype(np.int64)
        target[:room] = np.arange(n, n + room)
        rows = np.flatnonzero(target < self.capacity)
        return last_wins(target[rows].tolist(), rows.tolist())

    def _balanced(self, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        n = self._filled
        self._filled = min(self.capacity, n + len(labels))
        if n + len(labels) <= self.capacity:
            slots = torch.arange(n, n + len(labels))
            self._keys[slots] = draws
            return slots, slots - n
        kept = fair(torch.cat([self._keys[:n], draws]), torch.cat([self.y[:n].cpu(), labels]), self.capacity)
        slots = torch.cat([(~kept[:n]).nonzero()[:, 0], torch.arange(n, self.capacity)])
        rows = kept[n:].nonzero()[:, 0]
        self._keys[slots] = draws[rows]
        return slots, rows

    def _ring(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        place = (self._arrived[labels] + rank_within(labels)) % self._share
        queue, rows = last_wins((labels * self._share + place).tolist(), range(len(labels)))
        slots = self._where[queue]
        fresh = slots < 0
        count = int(fresh.sum())
        slots[fresh] = torch.arange(self._filled, self._filled + count)
        self._where[queue] = slots
        self._filled += count
        self._arrived += torch.bincount(labels, minlength=self.classes)
        return slots, rows

    def _write(
        self,
        slots: Tensor,
        rows: Tensor,
        x: Tensor,
        y: Tensor,
        task: int | Tensor,
        logits: Tensor | None,
        index: Tensor | None,
    ) -> None:
        fields = ((self.x, x), (self.y, y), (self.logits, logits), (self.task, task), (self.index, index))
        for held, value in fields:
            if held is None:
                continue
            if not isinstance(value, Tensor):
                held[slots.to(self.device)] = -1 if value is None else value
            elif self.device.type == "cpu":
                # NumPy copies whole rows, torch entry by entry: 4 µs against 130 for 32 images of 3 kB.
                _bytes(held)[slots.numpy()] = _bytes(value.detach().to(held))[rows.numpy()]
            else:
                held[slots.to(self.device)] = value.detach().index_select(0, rows.to(value.device)).to(held)

    def _check(self, x: Tensor, y: Tensor, logits: Tensor | None, index: Tensor | None) -> Tensor:
        """The labels on the CPU (an empty tensor for the reservoir elsewhere, which needs none: no wait)."""
        problem = None
        if x.shape[1:] != self.shape or x.dtype != self.x.dtype:
            problem = f"samples must be (n, {', '.join(map(str, self.shape))}) {self.x.dtype}"
            found = f"{tuple(x.shape)} {x.dtype}"
        elif y.shape != x.shape[:1] or y.dtype != torch.int64:
            problem, found = f"labels must be ({len(x)},) int64", f"{tuple(y.shape)} {y.dtype}"
        elif logits is not None and logits.shape != (len(x), self.classes):
            problem, found = f"logits must be ({len(x)}, {self.classes})", f"{tuple(logits.shape)}"
        elif index is not None and index.shape != y.shape:
            problem, found = f"positions in the stream must be ({len(x)},)", f"{tuple(index.shape)}"
        if problem is not None:
            raise DataError(f"the memory cannot take this batch: {problem}", found=found, fix="check the stream")
        if (logits is None) != (self.logits is None):
            raise ConfigError(
                "this memory keeps logits" if logits is None else "this memory keeps no logits",
                found="none were given" if logits is None else "some were given",
                fix="give one row of logits a sample" if logits is None else "make it with logits=True",
            )
        if self.policy == "reservoir" and y.device.type != "cpu":
            return y.new_empty(0, device="cpu")
        labels = y.cpu()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise DataError(
                f"a label is outside [0, {self.classes})",
                found=f"{int(labels.min())} to {int(labels.max())}",
                fix="make the memory with the number of classes of the whole stream",
            )
        return labels


def _bytes(rows: Tensor) -> NDArray[Any]:
    """The same memory for NumPy, which does not know every dtype."""
    return rows.numpy() if rows.ndim == 1 else rows.contiguous().view(torch.uint8).numpy()
