"""The options of ``unteach guard``; importing this loads neither torch nor diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from unteach.commands.verb import Configured, Settings, Verb

DOMAINS = "NAME|FOLDER ..."


@dataclass(frozen=True, kw_only=True)
class Place(Verb):
    """Where it is computed."""

    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 1 on the bundled model, else torch's choice)")
    ] = None
    """Processor threads."""


@dataclass(frozen=True, kw_only=True)
class GuardLearn(Place, Configured):
    """Learn which tensors to freeze, so that fine-tuning on what is illegal is held back and on the rest is not.

    Writes mask.json and manifest.json. 40 or more pictures a domain are advised. The same command run again goes on
    with its relearning; steps of the mask start anew and give the same. `unteach list masks` shows the methods,
    `unteach list domains` the pictures that come with the bundled model.
    """

    stopped: ClassVar[str] = "stopped; the same command goes on with relearning where it was, and chooses the mask anew"
    FILE: ClassVar[Mapping[str, Any]] = {**Configured.FILE, "out": str}
    NOT_IN_FILE: ClassVar[tuple[str, ...]] = (*Configured.NOT_IN_FILE, "device", "threads")
    illegal: Annotated[tuple[str, ...] | None, arg(metavar=DOMAINS, help_behavior_hint="")] = None
    """What fine-tuning must not bring back: domains, or folders of pictures with metadata.jsonl."""
    innocent: Annotated[tuple[str, ...] | None, arg(metavar=DOMAINS, help_behavior_hint="")] = None
    """What fine-tuning must still be able to learn."""
    model: Annotated[
        str | None, arg(metavar="canvas|FOLDER", help_behavior_hint="(default: the erasure's, or canvas)")
    ] = None
    """The bundled model, or a local diffusers folder."""
    erased: Annotated[str | None, arg(metavar="DIR|FILE", help_behavior_hint="(default: none)")] = None
    """Result of `unteach erase`, which is applied to the model first; brings its model and dtype."""
    method: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: freezeasguard)")] = None
    """How to choose: freezeasguard, official, or a baseline."""
    settings: Settings = ()
    """Settings of the method, such as rho=0.2 budget=parameters."""
    policy: Annotated[str | None, arg(metavar="ID", help_behavior_hint="(default: made from the mask)")] = None
    """Id of the freeze policy in the manifest."""
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 0)")] = None
    """Root of every random draw, and of who gets which picture."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(required, but for --dry-run)")] = None
    """Folder of the result and of what resuming needs."""
    dry_run: bool = False
    """Check everything, show what would be done and estimate what it costs; write nothing."""

    def run(self, command: str) -> int:
        """Learn a mask."""
        from unteach.commands import guard

        return guard.learn(self, command)


@dataclass(frozen=True, kw_only=True)
class GuardKeygen(Verb):
    """Make the key pair that manifests are signed with; never overwrites one."""

    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of guard-private.pem (keep it secret) and guard-public.pem."""
    pass_phrase: bool = False
    """Encrypt the private key; asks for the pass phrase, or takes it from UNTEACH_PASS_PHRASE."""

    def run(self, command: str) -> int:
        """Make keys."""
        from unteach.commands import guard

        return guard.keygen(self)


@dataclass(frozen=True, kw_only=True)
class GuardApply(Place):
    """Make the folder to publish: the model, its freeze manifest, the stamp in the weights, and a signature.

    The folder appears whole or not at all, and is verified before.
    """

    mask: Annotated[Positional[Path], arg(metavar="DIR")]
    """The --out folder of `unteach guard learn`."""
    out: Annotated[Path, arg(metavar="PUBLISHED")]
    """The diffusers folder to make."""
    key: Annotated[Path | None, arg(metavar="PRIVATE.pem", help_behavior_hint="(default: not signed)")] = None
    """Signs the manifest. The pass phrase of an encrypted key is asked for, or taken from UNTEACH_PASS_PHRASE."""
    model: Annotated[str | None, arg(metavar="canvas|FOLDER", help_behavior_hint="(default: the mask's)")] = None
    """Where the model is now, if it was moved."""
    erased: Annotated[str | None, arg(metavar="DIR|FILE", help_behavior_hint="(default: the mask's)")] = None
    """Where the erasure is now, if it was moved."""

    def run(self, command: str) -> int:
        """Publish."""
        from unteach.commands import guard

        return guard.apply(self)


@dataclass(frozen=True, kw_only=True)
class GuardShow(Verb):
    """Show a freeze policy: how much it freezes, where in the model, and where it comes from."""

    manifest: Annotated[Positional[Path], arg(metavar="DIR|MANIFEST")]
    """A manifest, the folder of `unteach guard learn`, or a published model."""
    tensors: Annotated[int, arg(metavar="N")] = 5
    """How many of the most and of the least scored tensors."""

    def run(self, command: str) -> int:
        """Show."""
        from unteach.commands import guard

        return guard.show(self)


@dataclass(frozen=True, kw_only=True)
class GuardVerify(Verb):
    """Check a checkpoint or an adapter against a freeze manifest; loads no model and runs no code of it.

    Exit codes: 0 conform, 1 violates, 3 undecidable, 2 no verdict (an error). Only 0 is a pass.
    """

    base: Annotated[Positional[Path], arg(metavar="BASE")]
    """The published model: its folder (best), its unet folder or file."""
    candidate: Annotated[Positional[Path], arg(metavar="CANDIDATE")]
    """What somebody made of it: a folder, a safetensors file, a LoRA, a weight delta."""
    manifest: Annotated[Path, arg(metavar="FILE")]
    """The freeze manifest."""
    signature: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: not checked)")] = None
    """The manifest's signature."""
    public_key: Annotated[Path | None, arg(metavar="PUBLIC.pem", help_behavior_hint="(needed with --signature)")] = None
    """The publisher's key, from where you trust it."""
    json: bool = False
    """Print the verdict as JSON."""

    def run(self, command: str) -> int:
        """Verify."""
        from unteach.commands import guard_verify

        return guard_verify.verify(self)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Freeze tensors against relearning: learn a mask, publish the model with its manifest, verify what others upload.

    A mask binds only those who keep to it: whoever ignores it trains as before.
    """

    command: OmitSubcommandPrefixes[
        Annotated[GuardLearn, subcommand("learn")]
        | Annotated[GuardKeygen, subcommand("keygen")]
        | Annotated[GuardApply, subcommand("apply")]
        | Annotated[GuardShow, subcommand("show")]
        | Annotated[GuardVerify, subcommand("verify")]
    ]
