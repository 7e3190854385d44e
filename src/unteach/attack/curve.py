"""The record of one relearning attack, and how two of them compare."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from unteach.core import state
from unteach.errors import ConfigError

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
            ValueError: other keys, types or lengths.
        """
        try:
            losses = {name: tuple(row) for name, row in values["losses"].items()}
            first, second = values["data"]
            made = cls(**{**values, "data": (first, second), "at": tuple(values["at"]), "losses": losses})
            wrong = [name for name, kinds in _KINDS.items() if type(getattr(made, name)) not in kinds]
            wrong += [] if all(type(step) is int for step in made.at) and isinstance(made.probes, dict) else ["at"]
            numbers = [type(loss) in (int, float) for row in losses.values() for loss in row]
            wrong += [] if all(numbers) and all(len(row) == len(made.at) for row in losses.values()) else ["losses"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a curve: {error}") from error
        if wrong:
            raise ValueError(f"not a curve: {', '.join(wrong)}")
        return made


_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("mode", "frozen"), (str,)),
    **dict.fromkeys(("honoured", "diverged"), (bool,)),
    **dict.fromkeys(("frozen_tensors", "trained_tensors", "trained_parameters"), (int,)),
    **dict.fromkeys(("steps", "batch_size", "rank", "seed"), (int,)),
    **dict.fromkeys(("learning_rate", "seconds"), (int, float)),
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
