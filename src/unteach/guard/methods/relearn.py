"""Relearning, before a mask is learned: fine-tune on both sides, keep what is best on pictures that it does not see."""

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.core.loop import Step
from unteach.core.settings import setting
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.finetune import Finetune, finetune
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, NumericsError
from unteach.guard.data import GuardData, draw, losses, mean_losses, pooled
from unteach.guard.methods.base import Cost

__all__ = ["ADVISED", "Relearning", "Watch", "relearn", "unchanged"]

ADVISED = 40
"""Pictures of a domain below which relearning is likely to learn them by heart (docs/guard.md)."""
PERCENT = (1, 2, 5, *range(10, 101, 10))
"""Points of the relearning at which held-out losses are measured."""
PATIENCE = 0.4
"""Share of the steps after which it stops when nothing got better and the last check did not either."""
CHECK = 3
"""Training steps that a check of the relearned model takes as long as, about."""
FILE = "relearned.safetensors"


@dataclass(frozen=True, kw_only=True)
class Relearning:
    """Settings of a guard that needs a relearned model.

    Args:
        batch_size: samples of each step, half illegal and half innocent.
        relearn_steps: most steps of the full fine-tuning.
        relearn_rate: its learning rate (AdamW).
        relearn_batch: samples of each of its steps; 0 is ``batch_size``.
        relearned: the weights that it gives: the "best" on the publisher's pictures, which it does not see (it stops
            when they got no better for 40 % of its steps and are not getting better), or the "last" (the released
            code of FreezeAsGuard).
        timesteps: a batch's: "stratified" over the range, or "uniform", each drawn on its own (the released code).
    """

    trains: ClassVar[bool] = True

    batch_size: int = setting(32, low=2)
    relearn_steps: int = setting(100, low=0)
    relearn_rate: float = setting(3e-4, above=0)
    relearn_batch: int = setting(0, low=0)
    relearned: Literal["best", "last"] = "best"
    timesteps: Literal["stratified", "uniform"] = "stratified"
    # Where a mask is learned these are settings: further steps, and how sides are drawn and compared.
    steps = 0
    balanced = True
    scale = "gain"

    def cost(self, model: Model, data: GuardData) -> Cost:
        """Relearning with its checks, and further steps: counted, and timed by steps of this size."""
        half = max(1, self.batch_size // 2)
        values = list(model.denoiser.parameters())
        seconds = math.inf
        for turn in range(3):
            begin, step = time.monotonic(), Step(turn, 3, 0)
            batches = [draw(side, step, "estimate", half) for side in (data.illegal_user, data.innocent_user)]
            for value in values:
                value.requires_grad_(True)
            try:
                loss = torch.cat(losses(model, batches, step, "estimate")).mean()
                torch.autograd.grad(loss, values, allow_unused=True)
            finally:
                for value in values:
                    value.requires_grad_(False)
            seconds = min(seconds, time.monotonic() - begin)
        checks = len(PERCENT) * CHECK if self.relearned == "best" else 0
        share = (self.relearn_batch or self.batch_size) / self.batch_size
        work = self.relearn_steps * share + self.steps + min(checks, self.relearn_steps * CHECK)
        return Cost(self.relearn_steps + self.steps, 1.2 * work * seconds)


@contextlib.contextmanager
def unchanged(model: Model, out: Path | None) -> Iterator[tuple[Path, Path]]:
    """Inside, the denoiser may be trained; afterwards it is bit for bit as before, whatever happens.

    Args:
        model: holds the weights to publish, θ_pre.
        out: folder to work in; a temporary one when None.

    Yields:
        The folder, and the file of θ_pre in it.

    Raises:
        CheckpointError: the folder holds the weights of another model.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else out
        path = folder / "pre.safetensors"
        own = dict(model.denoiser.named_parameters())
        if path.exists():
            _check_same(path, own)
        else:
            state.save(path, {name: value.detach() for name, value in own.items()}, {"what": "weights to publish"})
        try:
            yield folder, path
        finally:
            with torch.no_grad(), safe_open(path, framework="pt") as before:
                for name, value in own.items():
                    value.requires_grad_(False)
                    value.copy_(before.get_tensor(name))
            model.weights_changed()


def _check_same(path: Path, params: Mapping[str, nn.Parameter]) -> None:
    """Refuse a folder whose θ_pre is not this model: it would be written over the model at the end."""
    stored, _ = state.load(path)
    changed = [n for n, v in params.items() if n not in stored or not torch.equal(stored[n].to(v.device), v)]
    if changed or len(stored) != len(params):
        raise CheckpointError(
            f"{path} holds the weights of another model", found=f"{len(changed)} tensors differ", fix="use a new folder"
        )


class Stalled(Exception):
    """Ends a relearning whose held-out losses have not got better for long."""


class Watch:
    """Held-out losses while a relearning runs, and the best weights so far.

    A check is as good as the side that gained less: the smaller share of the loss before that has gone.

    Attributes:
        before: the publisher's illegal and innocent loss before.
        checks: (step, illegal, innocent), one a point.
        step: the best one; 0 when none was better than before on both sides.
    """

    def __init__(self, model: Model, data: GuardData, seed: int, steps: int, params: Mapping[str, Tensor]) -> None:
        self._model, self._data, self._seed, self._params = model, data, seed, params
        self._steps = steps
        self.points = {max(1, steps * percent // 100) for percent in PERCENT}
        self.before = mean_losses(model, data, seed)
        self.checks: list[tuple[int, float, float]] = []
        self.step, self._best = 0, 0.0
        self._values: dict[str, Tensor] = {}

    def __call__(self, done: int, /) -> None:
        """Measure at the points.

        Raises:
            Stalled: nothing has got better for long.
        """
        if done not in self.points:
            return
        last = self._gain(self.checks[-1][1:]) if self.checks else 0.0
        after = mean_losses(self._model, self._data, self._seed)
        self.checks.append((done, *after))
        gain = self._gain(after)
        if gain > self._best:  # False for what is not a number
            self.step, self._best = done, gain
            self._values = {name: value.detach().clone() for name, value in self._params.items()}
        elif done < self._steps and done - self.step >= PATIENCE * self._steps and not gain > last:
            raise Stalled  # an optimizer's first steps often do harm: one that is on its way back goes on

    def _gain(self, after: Sequence[float]) -> float:
        return min((b - a) / b for b, a in zip(self.before, after, strict=True))

    @torch.no_grad()
    def keep(self) -> None:
        """Put the best weights into the model, if some were better than those before."""
        for name, value in self._values.items():
            self._params[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Checks and the best weights; what was before is measured anew."""
        return {"checks": self.checks, "step": self.step, "best": self._best, "values": self._values}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.checks = [(int(step), float(a), float(b)) for step, a, b in state_dict["checks"]]
        self.step, self._best = int(state_dict["step"]), float(state_dict["best"])
        self._values = {name: value.to(self._params[name]) for name, value in state_dict["values"].items()}


def relearn(
    model: Model,
    data: GuardData,
    c: Relearning,
    *,
    seed: int,
    out: Path,
    events: Events = SILENT,
) -> Path:
    """Fine-tune ``model.denoiser`` in place on the user's data of both sides; called again it goes on.

    Args:
        model: holds the weights to publish; afterwards the relearned ones.
        data: the user's pictures are trained on, the publisher's are what it is judged by.
        c: settings.
        seed: root of all draws.
        out: folder for the checkpoint and the result.
        events: told the steps of "relearning", and in a sentence which weights were kept.

    Returns:
        The file of the relearned weights.

    Raises:
        NumericsError: it diverged; or, where gains are measured in (``scale``), it is no better on held-out pictures.
        CheckpointError: the folder holds something else.
    """
    params: dict[str, nn.Parameter] = dict(model.denoiser.named_parameters())
    batch = c.relearn_batch or c.batch_size
    settings = [c.relearn_steps, c.relearn_rate, batch, c.relearned, c.timesteps, c.balanced, c.scale]
    of = state.fingerprint([settings, seed, data.digests(), model.digest(fresh=True)])
    path = out / FILE
    if path.exists() and _read(path, of, params):
        model.weights_changed()
        return path
    both = [*data.illegal_user, *data.innocent_user]
    watch = Watch(model, data, seed, c.relearn_steps, params) if c.relearned == "best" else None
    judged = watch is not None and c.scale == "gain" and c.relearn_steps > 0
    learned_from = mean_losses(model, data, seed, "user") if judged else None

    def drawn(step: Step, items: range) -> tuple[Tensor, Conditioning]:
        return draw(both, step, "relearn", len(items)) if c.balanced else pooled(both, step, "relearn", len(items))[:2]

    config = Finetune(steps=c.relearn_steps, batch_size=batch, learning_rate=c.relearn_rate, timesteps=c.timesteps)
    with contextlib.suppress(Stalled):
        place = out / "relearn"
        finetune(model, drawn, config, seed=seed, out=place, data_id=of, events=events, label="relearning", watch=watch)
    if watch is not None:
        if learned_from is not None and watch.step == 0:
            raise no_better(watch, learned_from, mean_losses(model, data, seed, "user"), data, c)
        watch.keep()
        if watch.step:
            now = next(check for check in watch.checks if check[0] == watch.step)[1:]
            sides = ", ".join(f"{side} {a:.4g} → {b:.4g}" for side, a, b in zip(_SIDES, watch.before, now, strict=True))
            last = watch.checks[-1][0]
            early = "" if last == c.relearn_steps else f"; stopped at {last}, nothing got better"
            best = f"step {watch.step} of {c.relearn_steps} is best on held-out pictures"
            events.message(f"relearned: {best} ({sides}){early}")
    model.weights_changed()
    state.save(path, {name: value.detach() for name, value in params.items()}, {"what": "relearned", "of": of})
    return path


_SIDES = ("illegal", "innocent")


def _read(path: Path, of: str, params: Mapping[str, nn.Parameter]) -> bool:
    """Take over a finished relearning; False when it is another one's, or damaged."""
    try:
        tensors, meta = state.load(path)
    except CheckpointError:
        return False  # it is made again from the checkpoint beside it
    if meta.get("of") != of or tensors.keys() != params.keys():
        return False
    with torch.no_grad():
        for name, value in params.items():
            value.copy_(tensors[name])
    return True


def no_better(
    watch: Watch, first: tuple[float, float], last: tuple[float, float], data: GuardData, c: Relearning
) -> NumericsError:
    """Why no state of a relearning is better on held-out pictures of both sides, and what may help.

    Args:
        watch: what was measured on held-out pictures.
        first, last: mean losses of the pictures that were trained on, before and after: illegal, innocent.
        data: for the number of pictures.
        c: settings.
    """
    end = watch.checks[-1]
    gains = [(b - a) / b for b, a in zip(watch.before, end[1:], strict=True)]
    side = 0 if not gains[0] > gains[1] else 1
    fallen = (first[side] - last[side]) / first[side]
    parts = (data.illegal_user, data.innocent_user)[side]
    count = sum(len(set(part.ids)) for part in parts)
    if fallen > 0.02:
        why = f"it learned the {count} {_SIDES[side]} pictures that it trains on by heart (overfitting)"
        fix = (
            f"give more pictures ({ADVISED} or more a domain), or set relearn_rate below {c.relearn_rate:g}; "
            "more relearn_steps do not help"
        )
    elif not fallen > -0.02:
        why = "its loss on the pictures that it trains on rose, too"
        fix = f"set relearn_rate below {c.relearn_rate:g}"
    else:
        why = "it hardly learned the pictures that it trains on either (underfitting)"
        fix = f"set relearn_steps above {c.relearn_steps} or relearn_rate above {c.relearn_rate:g}"
    held = [f"{side} {a:.4g} → {b:.4g}" for side, a, b in zip(_SIDES, watch.before, end[1:], strict=True)]
    trained = [f"{side} {a:.4g} → {b:.4g}" for side, a, b in zip(_SIDES, first, last, strict=True)]
    return NumericsError(
        f"relearning got no better on held-out pictures in {len(watch.checks)} checks over {end[0]} steps: {why}",
        found=f"losses on held-out pictures: {', '.join(held)}; on those it trains on: {', '.join(trained)}",
        fix=f"{fix}; or scale=raw, which needs no gain to measure in",
    )
