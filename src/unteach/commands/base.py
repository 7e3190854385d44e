"""The model that a guard or an attack works on: what was given, checked before it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.canvas import CANVAS, folder_of, is_canvas
from unteach.commands.verb import Mistakes
from unteach.core import state
from unteach.core.device import device_of, use_threads
from unteach.diffusion import domains
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.erased import lay_on
from unteach.diffusion.loading import inspect
from unteach.diffusion.model import Model, load
from unteach.errors import CheckpointError, ConfigError

__all__ = ["Base", "check_domains"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that is guarded or attacked: what was given, and where it is computed."""

    model: str
    erased: str | None
    device: str
    threads: int | None

    @classmethod
    def checked(
        cls, model: str | None, erased: str | None, device: str | None, threads: int | None, found: Mistakes
    ) -> "Base":
        """Check what can be checked without loading; mistakes go into ``found``.

        Args:
            model: None is the model of the erasure's run, and the bundled one without an erasure.
            device: None is what there is.
        """
        if model is None and erased is not None:
            model = found.catch(lambda: _model_of(erased))
        model = model or CANVAS
        found.catch(lambda: inspect(folder_of(model)))
        if erased is not None:
            found.catch(lambda: _delta_file(erased))
        if threads is not None and threads < 1:
            found.say(f"threads must be at least 1, found {threads}")
        return cls(
            model=model,
            erased=erased,
            device=found.catch(lambda: device_of(device or "auto")) or "cpu",
            threads=threads,
        )

    @property
    def canvas(self) -> bool:
        """Whether it is the bundled model."""
        return is_canvas(self.model)

    @property
    def name(self) -> str:
        """For records: "canvas", or the folder's name without its path."""
        return CANVAS if self.canvas else folder_of(self.model).resolve().name

    def load(self) -> tuple[Model, dict[str, Any]]:
        """The model with the erasure applied, and the erasure's record (empty without one).

        All is computed in float32; the values are those that a published folder will hold, in its number format.

        Raises:
            ModelError, CheckpointError: a damaged file, or an erasure of another model.
        """
        use_threads(self.threads, small=self.canvas)
        model = load(folder_of(self.model), device=self.device)
        if self.erased is None:
            return model, {}
        delta = WeightDelta.load(_delta_file(self.erased))
        lay_on(model, delta)
        concepts = delta.meta.get("concepts") or []
        targets = [str(concept["target"]) for concept in concepts if isinstance(concept, dict) and "target" in concept]
        return model, {"method": delta.meta.get("method"), "targets": targets, "base": delta.meta.get("base")}


def check_domains(given: Sequence[str], base: Base, found: Mistakes) -> None:
    """Whether these domains exist and have different names; mistakes go into ``found``."""
    for each in given:
        found.catch(lambda each=each: domains.source(each, bundled=base.canvas))  # type: ignore[misc]
    found.catch(lambda: domains.check_names(given))


def _model_of(erased: str) -> str | None:
    """The model of the run that an erasure is of; None where its configuration is not beside it.

    Raises:
        CheckpointError: a damaged configuration.
    """
    place = Path(erased).expanduser()
    path = (place if place.is_dir() else place.parent) / "config.json"
    if not path.is_file():
        return None
    config = state.read_json(path)
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, str):
        raise CheckpointError(f"{path} does not say which model was erased from", fix="give the model with --model")
    return model


def _delta_file(erased: str) -> Path:
    """The delta of an erasure's folder, or the file itself.

    Raises:
        ConfigError: there is none.
    """
    path = Path(erased).expanduser()
    if path.is_dir():
        if not (path / "delta.safetensors").is_file():
            raise ConfigError(
                f"'{erased}' holds no finished erasure", found="no delta.safetensors", fix="run its 'unteach erase'"
            )
        return path / "delta.safetensors"
    if not path.is_file():
        raise ConfigError(f"there is no erasure '{erased}'", fix="give a folder of 'unteach erase', or its delta file")
    return path
