"""The record of one relearning attack, and how two of them compare."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from unteach.core import state
from unteach.errors import CheckpointError, ConfigError

Mode = Literal["full", "lora"]


@dataclass(frozen=True)
class Curve:
    """One attack and what it reached.

    Attributes:
        mode: "full" or "lora".
        honoured: whether the mask was kept.
        frozen: digest of the mask's names; of no names without a mask.
        frozen_tensors: how many tensors the mask freezes, whether kept or not.
        trained_tensors, trained_parameters: what moved (the adapted weights and their factors in "lora").
        steps, learning_rate, batch_size, rank, seed: of the attack; rank 0 in "full".
        data: name and digest of the attack's data.
        probes: name to digest of each probe set.
        at: steps at which was measured; 0 is before the attack.
        losses: probe to its mean denoising loss at each of ``at``.
        diverged: the training or a loss was not finite; ``at`` ends before.
        seconds: of the whole call; not part of what must be equal.
    """

    mode: Mode
    honoured: bool
    frozen: str
    frozen_tensors: int
    trained_tensors: int
    trained_parameters: int
    steps: int
    learning_rate: float
    batch_size: int
    rank: int
    seed: int
    data: tuple[str, str]
    probes: dict[str, str]
    at: tuple[int, ...]
    losses: dict[str, tuple[float, ...]]
    diverged: bool = False
    seconds: float = 0.0

    def loss(self, probe: str, step: int | None = None) -> float:
        """Loss of a probe at a measured step, the last one by default.

        Raises:
            ConfigError: no such probe, or nothing was measured at this step.
        """
        if probe not in self.losses or (step is not None and step not in self.at):
            raise ConfigError(
                f"the curve has no loss of '{probe}' at step {step}",
                found=f"probes {', '.join(self.losses)} at steps {list(self.at)}",
            )
        return self.losses[probe][-1 if step is None else self.at.index(step)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()} | {
            "losses": {name: list(values) for name, values in self.losses.items()}
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Curve":
        """Back from :meth:`to_dict`.

        Raises:
            CheckpointError: other keys, or values of other kinds; names what is wrong.
        """
        known = {each.name: each for each in fields(cls)}
        wrong = [f"unknown key {key!r:.40}" for key in values if key not in known]
        wrong += [f"missing key '{key}'" for key in known if key not in values]
        wrong += [
            f"'{key}' is {values[key]!r:.40}" for key, fits in _KINDS.items() if key in values and not fits(values[key])
        ]
        if not wrong and any(len(row) != len(values["at"]) for row in values["losses"].values()):
            wrong = ["a probe has not one loss a point"]
        if wrong:
            raise CheckpointError("the record of an attack is damaged", found="; ".join(wrong[:6]))
        losses = {name: tuple(row) for name, row in values["losses"].items()}
        first, second = values["data"]
        return cls(**{**values, "data": (first, second), "at": tuple(values["at"]), "losses": losses})


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _losses(value: object) -> bool:
    rows = list(value.values()) if isinstance(value, dict) else [None]
    return all(isinstance(row, list | tuple) and all(_number(each) for each in row) for row in rows)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "mode": lambda value: value in ("full", "lora"),
    "honoured": lambda value: isinstance(value, bool),
    "diverged": lambda value: isinstance(value, bool),
    "frozen": lambda value: isinstance(value, str),
    "data": lambda value: isinstance(value, list | tuple) and [type(each) for each in value] == [str, str],
    "probes": _texts,
    "at": lambda value: isinstance(value, list | tuple) and all(_count(each) for each in value),
    "losses": _losses,
    "learning_rate": _number,
    "seconds": _number,
    **dict.fromkeys(
        ("frozen_tensors", "trained_tensors", "trained_parameters", "steps", "batch_size", "rank", "seed"), _count
    ),
}


def recovery(curve: Curve, unprotected: Curve, probe: str, step: int | None = None) -> float | None:
    """(loss before - loss after) / (loss before - loss of the unprotected model after), at one step.

    1 is full recovery and 0 none; it may be negative or above 1. None when either did not reach the step, or the
    unprotected model did not learn (its loss did not fall), so that there is nothing to compare with.

    Raises:
        ConfigError: the two were not measured alike (data, probes, settings), or before the attack.
    """
    alike = ("mode", "steps", "learning_rate", "batch_size", "rank", "seed", "data", "probes")
    if different := [name for name in alike if getattr(curve, name) != getattr(unprotected, name)]:
        raise ConfigError("recovery compares the same attack on two models", found=f"different {', '.join(different)}")
    step = curve.steps if step is None else step
    if step not in curve.at or step not in unprotected.at:
        return None
    gained = curve.loss(probe, 0) - curve.loss(probe, step)
    possible = unprotected.loss(probe, 0) - unprotected.loss(probe, step)
    return gained / possible if possible > 0 else None


def unprotected(curve: Curve) -> Curve:
    """The record with the mask and the clock left out: equal for an attacker who ignores a mask and one without."""
    return replace(curve, honoured=True, frozen=state.fingerprint([]), frozen_tensors=0, seconds=0.0)
