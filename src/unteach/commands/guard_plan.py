"""From options to what ``guard learn`` will do, and the model that guard and attack work on; all mistakes together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.commands.base import Base, check_domains
from unteach.commands.options_guard import GuardLearn
from unteach.commands.verb import Mistakes
from unteach.core import state
from unteach.core.registry import near
from unteach.core.run import same
from unteach.core.settings import Settings
from unteach.errors import CheckpointError, ConfigError
from unteach.guard.baselines import baselines
from unteach.guard.config import FreezeAsGuard, make, presets

__all__ = ["CANVAS_SETTINGS", "GuardPlan", "mask_config", "resolve"]

CANVAS_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "freezeasguard": {"user_rates": (3e-4,)},
}
"""What differs from the methods' own defaults on the bundled model, which is small and fine-tunes best at 3e-4."""

DEFAULT = "freezeasguard"
LEARNED = ("inverted", "random-tensors", "random-matched")
"""Baselines that are made from a learned mask, which is learned first."""
NO_SHARE = ("none", "random-tensors", "random-matched")
"""Baselines for which no share is asked."""
_BUDGET = ("rho", "budget")
_USES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "magnitude": (*_BUDGET, "relearn_steps", "relearn_rate", "relearn_batch", "batch_size", "relearned", "timesteps"),
    "gradient-saliency": (*_BUDGET, "samples"),
    "gradient-share": (*_BUDGET, "samples"),
    "fisher-saliency": (*_BUDGET, "samples"),
}
"""Settings of baselines; those of the others are the budget's."""
DECISIVE = ("method", "settings", "illegal", "innocent", "seed", "policy")
"""What must be equal for a run to go on; the model is compared by its weights."""


@dataclass(frozen=True, kw_only=True)
class GuardPlan:
    """One mask, resolved and checked.

    Attributes:
        base: the model.
        illegal, innocent: domains as given.
        method: "freezeasguard", "official" or a baseline.
        config: settings of learning; of a baseline only what it uses counts.
        uses: the baseline's settings; None when the mask is learned.
        samples: a class, for saliency.
        seed: root of every draw.
        policy: id of the policy, or None.
        out: folder; None for a dry run only.
    """

    base: Base
    illegal: tuple[str, ...]
    innocent: tuple[str, ...]
    method: str
    config: FreezeAsGuard
    uses: tuple[str, ...] | None
    samples: int
    seed: int
    policy: str | None
    out: Path | None

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the mask depends on."""
        every = {**self.config.to_dict(), "samples": self.samples}
        if self.uses is not None:
            return {key: every[key] for key in self.uses}
        return {key: value for key, value in every.items() if key not in (FreezeAsGuard.kind, "samples")}

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``--config`` reads back to an equal plan (without ``out``)."""
        found: dict[str, Any] = {
            "model": self.base.model,
            "erased": self.base.erased,
            "illegal": list(self.illegal),
            "innocent": list(self.innocent),
            "method": self.method,
            "settings": self.settings,
            "policy": self.policy,
            "seed": self.seed,
        }
        return {key: value for key, value in found.items() if value is not None}

    @property
    def relearns(self) -> bool:
        """Whether it needs a relearned model, so that pictures are trained on."""
        return self.uses is None or self.method in (*LEARNED, "magnitude")

    def check_folder(self) -> bool:
        """Whether ``out`` holds this very run, begun or finished; False too for another one that left nothing of use.

        Raises:
            CheckpointError: it holds another one that is finished or has a checkpoint; nothing is changed.
        """
        if self.out is None or not (path := self.out / "config.json").exists():
            return False
        try:
            same(self.out, state.read_table(path), self.to_dict(), keys=DECISIVE)
        except CheckpointError:
            work = self.out / "work"
            kept = [self.out / "mask.json", work / "relearned.safetensors", work / "relearn" / "state.safetensors"]
            if any(each.exists() for each in kept):
                raise
            return False
        return True


def resolve(options: GuardLearn) -> GuardPlan:
    """Merge and check everything that can be checked without loading the model.

    Raises:
        UnteachError: the one mistake, or a ConfigError that lists all of them.
    """
    found = Mistakes()
    values = _merged(options, found)
    method, seed = values.get("method", DEFAULT), values.get("seed", 0)
    base = Base.checked(values.get("model"), values.get("erased"), options.device, options.threads, found)
    for key, why in (("illegal", "what must not be relearned"), ("innocent", "what others must still learn")):
        if not values.get(key):
            found.say(f"no {key} domain was given: add --{key} with {why} (see: unteach list domains)")
    check_domains([*values.get("illegal", ()), *values.get("innocent", ())], base, found)
    config, uses, samples = _method(str(method), values["settings"], base.canvas, found)
    if seed < 0:
        found.say(f"seed must be at least 0, found {seed}")
    if "out" not in values and not options.dry_run:
        found.say("no folder for the result was given: add --out DIR")
    found.stop()
    assert config is not None  # else it has stopped
    return GuardPlan(
        base=base,
        illegal=tuple(values["illegal"]),
        innocent=tuple(values["innocent"]),
        method=method,
        config=config,
        uses=uses,
        samples=samples,
        seed=seed,
        policy=values.get("policy"),
        out=Path(values["out"]) if "out" in values else None,
    )


def _method(
    name: str, given: Mapping[str, Any], canvas: bool, found: Mistakes
) -> tuple[FreezeAsGuard | None, tuple[str, ...] | None, int]:
    """Settings of learning, those that a baseline uses, and the samples of saliency."""
    learns = (DEFAULT, *presets)
    if name not in (*learns, *baselines):
        found.say(f"no mask is made by '{name}' ({near(name, [*learns, *baselines])}); see: unteach list masks")
        return None, None, 0
    start = name if name in learns else DEFAULT
    uses = None
    if name not in learns:
        learning = tuple(key for key in make(DEFAULT).to_dict() if key != Settings.kind and key != FreezeAsGuard.kind)
        uses = learning if name in LEARNED else _USES.get(name, _BUDGET)
        for key in given:
            if key not in uses:
                found.say(f"the mask '{name}' has no setting '{key}' ({near(key, uses)})")
    samples = given.get("samples", 64)
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        found.say(f"samples must be a whole number, at least 1, found {samples!r}")
    own = {key: value for key, value in given.items() if uses is None or (key in uses and key != "samples")}
    defaults = CANVAS_SETTINGS.get(start, {}) if canvas else {}
    return found.catch(lambda: make(start, **{**defaults, **own})), uses, samples


def _merged(options: GuardLearn, found: Mistakes) -> dict[str, Any]:
    """The file's values with the command line's laid over them; wrong ones are reported and left out."""
    file, line = options.file(found), options.line()
    if line.get("method", file.get("method", DEFAULT)) != file.get("method", DEFAULT):
        file.pop("settings", None)  # another method has other settings
    return {**file, **line, "settings": options.merged_settings(file, found)}


def mask_config(folder: Path) -> dict[str, Any]:
    """The configuration of a finished ``guard learn``.

    Raises:
        ConfigError: there is no finished mask; CheckpointError: the configuration is damaged.
    """
    if not (folder / "mask.json").is_file():
        raise ConfigError(
            f"'{folder}' holds no finished mask", found="no mask.json", fix="run its 'unteach guard learn' to the end"
        )
    found = Mistakes()
    config = GuardLearn(config=folder / "config.json").file(found)
    if found.errors:
        raise CheckpointError(
            f"{folder / 'config.json'} is damaged: not a configuration of 'unteach guard learn'",
            found="; ".join(map(str, found.errors[:5])),
        )
    return config
