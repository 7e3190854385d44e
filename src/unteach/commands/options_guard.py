"""The options of ``unteach attack``; importing this loads neither torch nor diffusers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from unteach.commands.verb import RESUMES, Machine

DOMAINS = "NAME|FOLDER ..."


@dataclass(frozen=True, kw_only=True)
class Attack(Machine):
    """Attack a model by fine-tuning it, with and without its freeze mask, and see what comes back.

    The only attack is `relearn`. The unprotected model goes through the same beside it. The same command run again goes
    on where it stopped. No picture that a mask was learned from is attacked with or measured on.
    """

    stopped: ClassVar[str] = RESUMES
    attack: Annotated[Positional[Literal["relearn"]], arg(metavar="relearn")]
    """Which attack."""
    guard: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: no mask)")] = None
    """The --out folder of `unteach guard learn`: brings mask, model and erasure."""
    manifest: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Instead of --guard: only its manifest.json."""
    model: Annotated[
        str | None, arg(metavar="canvas|FOLDER", help_behavior_hint="(default: the mask's, the erasure's, or canvas)")
    ] = None
    """What to attack: the bundled model, or a local diffusers folder."""
    erased: Annotated[str | None, arg(metavar="DIR|FILE", help_behavior_hint="(default: the mask's, or none)")] = None
    """Result of `unteach erase`, which is applied to the model first."""
    illegal: Annotated[tuple[str, ...], arg(metavar=DOMAINS, help_behavior_hint="")] = ()
    """What the attacker wants back: domains, or folders of pictures with metadata.jsonl."""
    innocent: Annotated[tuple[str, ...], arg(metavar=DOMAINS, help_behavior_hint="")] = ()
    """What others fine-tune on, by the same code."""
    steps: Annotated[tuple[int, ...], arg(metavar="N ...")] = (10, 20, 40)
    """Points at which is measured; the largest is the length."""
    rates: Annotated[tuple[float, ...], arg(metavar="X ...")] = (3e-4,)
    """Learning rates of AdamW."""
    modes: Annotated[tuple[Literal["full", "lora"], ...], arg(metavar="full|lora ...")] = ("full",)
    """Full fine-tuning, or low-rank factors."""
    rank: Annotated[int, arg(metavar="N")] = 4
    """Of the low-rank factors."""
    ignore: bool = False
    """Also the attacker who does not keep to the mask."""
    seeds: Annotated[tuple[int, ...], arg(metavar="N ...")] = (0,)
    """Seeds of the attacks."""
    batch_size: Annotated[int, arg(metavar="N")] = 16
    """Pictures a step."""
    draws: Annotated[int, arg(metavar="N")] = 2
    """Draws of noise for each picture that is measured on."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(required)")] = None
    """Folder of relearning.json and of the cells."""

    def run(self, command: str) -> int:
        """Attack."""
        from unteach.commands import attack

        return attack.run(self, command)
