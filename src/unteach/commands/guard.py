"""``unteach guard``: learn a mask, make keys, publish the model with its manifest, show a policy, verify an upload.

Importing this loads neither torch nor diffusers, and ``guard verify`` imports the verification alone, for a CI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from unteach.commands.console import events, pass_phrase, say, wrote
from unteach.commands.verb import Configured, Machine, Mistakes, Settings, Verb
from unteach.errors import CheckpointError, ConfigError, UnteachError, printable

if TYPE_CHECKING:
    from unteach.commands.base import Base
    from unteach.core.run import Run
    from unteach.diffusion.domains import Domains
    from unteach.guard.methods import Guard as Method
    from unteach.records.mask import Mask

__all__ = ["CANVAS_SETTINGS", "Guard", "Learn", "Plan", "mask_config"]

DOMAINS = "NAME|FOLDER ..."
DEFAULT = "freezeasguard"
CANVAS_SETTINGS: Mapping[str, Any] = {"user_rates": (3e-4,)}
"""Where a guard has such a setting: its default on the bundled model, which is small and fine-tunes best at 3e-4."""
DECISIVE = ("method", "settings", "illegal", "innocent", "seed", "policy")
"""What must be equal for a run to go on; the model is compared by its weights."""
STAGES = ("work/relearn/state.safetensors", "work/relearned.safetensors", "mask.json", "manifest.json")
PRIVATE, PUBLIC = "guard-private.pem", "guard-public.pem"


@dataclass(frozen=True, kw_only=True)
class Learn(Machine, Configured):
    """Learn which tensors to freeze, so that fine-tuning on what is illegal is held back and on the rest is not.

    Writes mask.json and manifest.json. 40 or more pictures a domain are advised. The same command run again goes on
    with its relearning; steps of the mask start anew and give the same. `unteach list masks` shows the methods,
    `unteach list domains` the pictures that come with the bundled model.
    """

    stopped: ClassVar[str] = "stopped; the same command goes on with relearning where it was, and chooses the mask anew"
    FILE: ClassVar[Mapping[str, Any]] = {**Configured.FILE, "out": str}
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
    """How to choose: a guard or a preset."""
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
        """Learn a mask, or with ``--dry-run`` say what would be done."""
        import shutil

        from unteach.core import reading
        from unteach.core.run import CONFIG
        from unteach.core.text import duration
        from unteach.diffusion.domains import Domains
        from unteach.guard.data import GuardData
        from unteach.guard.describe import pictures, summary
        from unteach.guard.manifest import FreezeManifest
        from unteach.guard.methods import Job
        from unteach.guard.policy import check_model, mask_by
        from unteach.records.mask import Mask

        plan = self.resolve()
        run = None if plan.out is None else plan.folder(plan.out)
        model, erased = plan.base.load()
        domains = Domains.read(plan.illegal, plan.innocent, model, plan.seed)
        data = GuardData.of(domains, model)
        if self.dry_run:
            say(reading.to_yaml(plan.to_dict()) + "\n")
            say(pictures(domains, plan.guard.trains))
            count = sum(1 for _ in model.denoiser.parameters())
            say(f"{count} tensors to choose from; {plan.guard.cost(model, data).text()}")
            if run is not None and run.known:
                say(f"{plan.out} holds this run already: it would go on")
            say("dry run: nothing was written")
            return 0
        if run is None:
            raise ConfigError("no folder for the result was given", fix="add --out DIR")
        say(f"choosing what to freeze in {plan.base.name} with {plan.method}")
        say(pictures(domains, plan.guard.trains))
        work, replaces = run.folder / "work", not run.known and (run.folder / CONFIG).exists()

        def make() -> Mask:
            if run.known:
                say(f"{run.folder} holds this run, begun: its relearning goes on, the mask starts anew")
            elif replaces:
                say(f"{run.folder} held another run of which nothing was finished: this one starts in its place")
                shutil.rmtree(work, ignore_errors=True)
            say(plan.guard.cost(model, data).text())
            job = Job(plan.seed, work, events())
            mask = mask_by(plan.guard, model, data, job, erased=erased, command=command, **plan.named(domains))
            say(f"it took {duration(mask.seconds)}")
            return mask

        with run.working():
            finished = (run.folder / Mask.FILE).exists()
            mask = run.stage(Mask.FILE, Mask, make)
            if finished:
                check_model(model, mask.manifest, "the mask")
                say(f"{run.folder} holds the finished mask")
            manifest = run.stage("manifest.json", FreezeManifest, lambda: FreezeManifest.of(mask.manifest))
            shutil.rmtree(work, ignore_errors=True)  # what is finished needs no checkpoint
        say(summary(manifest))
        wrote([run.folder / Mask.FILE, run.folder / "manifest.json"])
        return 0

    def resolve(self) -> Plan:
        """Merge and check everything that can be checked without loading the model; all mistakes are listed."""
        from unteach.commands.base import Base, check_domains
        from unteach.guard.methods import guards

        found = Mistakes()
        file, line = self.file(found), self.line()
        if line.get("method", file.get("method", DEFAULT)) != file.get("method", DEFAULT):
            file.pop("settings", None)  # another method has other settings
        values = {**file, **line}
        settings = self.merged_settings(file, found)
        method, seed = values.get("method", DEFAULT), values.get("seed", 0)
        place = values.get("device"), values.get("threads")
        base = Base.checked(values.get("model"), values.get("erased"), *place, found)
        for key, why in (("illegal", "what must not be relearned"), ("innocent", "what others must still learn")):
            if not values.get(key):
                found.say(f"no {key} domain was given: add --{key} with {why} (see: unteach list domains)")
        check_domains([*values.get("illegal", ()), *values.get("innocent", ())], base, found)
        if base.canvas and method in guards:
            known = {field.name for field in fields(guards[method])}
            settings = {**{key: value for key, value in CANVAS_SETTINGS.items() if key in known}, **settings}
        guard = found.catch(lambda: guards.make(method, **settings))
        found.least({"seed": seed}, 0)
        if "out" not in values and not self.dry_run:
            found.say("no folder for the result was given: add --out DIR")
        found.stop()
        assert guard is not None  # else it has stopped
        return Plan(
            base=base,
            illegal=tuple(values["illegal"]),
            innocent=tuple(values["innocent"]),
            method=method,
            guard=guard,
            seed=seed,
            policy=values.get("policy"),
            out=Path(values["out"]) if "out" in values else None,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One mask, resolved and checked.

    Attributes:
        method: name of the guard, or of the preset.
        guard: how to choose.
        out: folder; None for a dry run only.
    """

    base: Base
    illegal: tuple[str, ...]
    innocent: tuple[str, ...]
    method: str
    guard: Method
    seed: int
    policy: str | None
    out: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``--config`` reads back to an equal plan (without ``out``)."""
        found: dict[str, Any] = {
            "model": self.base.model,
            "erased": self.base.erased,
            "illegal": list(self.illegal),
            "innocent": list(self.innocent),
            "method": self.method,
            "settings": {key: value for key, value in self.guard.to_dict().items() if key != self.guard.kind},
            "policy": self.policy,
            "seed": self.seed,
        }
        return {key: value for key, value in found.items() if value is not None}

    def folder(self, out: Path) -> Run:
        """The folder of this plan.

        Raises:
            CheckpointError: it holds another run that is finished or has a checkpoint; nothing is changed.
        """
        from unteach.core.run import Run

        return Run(out, self.to_dict(), keys=DECISIVE, stages=STAGES)

    def named(self, domains: Domains) -> dict[str, Any]:
        """What the mask's record says of where it comes from."""
        sides = {"illegal": domains.illegal, "innocent": domains.innocent}
        names = {key: [domain.name for domain in side] for key, side in sides.items()}
        return names | {"name": self.method, "policy": self.policy, "model_name": self.base.name}


@dataclass(frozen=True, kw_only=True)
class Keygen(Verb):
    """Make the key pair that manifests are signed with; never overwrites one."""

    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of guard-private.pem (keep it secret) and guard-public.pem."""
    pass_phrase: bool = False
    """Encrypt the private key; asks for the pass phrase, or takes it from UNTEACH_PASS_PHRASE."""

    def run(self, command: str) -> int:
        """Make keys."""
        from unteach.guard import signing

        private, public = self.out / PRIVATE, self.out / PUBLIC
        secret = pass_phrase(f"the new key {private}", twice=True) if self.pass_phrase else None
        key = signing.keygen(private, public, password=secret)
        say(f"made the key {key[:12]}; keep {private.name} secret, and give {public.name} out where people trust you")
        wrote([private, public])
        return 0


@dataclass(frozen=True, kw_only=True)
class Apply(Machine):
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
        from unteach.commands.base import Base
        from unteach.guard import signing
        from unteach.guard.describe import summary
        from unteach.guard.manifest import FreezeManifest
        from unteach.guard.publish import publish
        from unteach.records.mask import Mask

        folder, out, found = self.mask, self.out, Mistakes()
        config = found.catch(lambda: mask_config(folder))
        mask = found.catch(lambda: Mask.load(folder / "mask.json"))
        manifest = None if mask is None else found.catch(lambda: FreezeManifest.beside(mask, folder))
        path = self.key
        key = None if path is None else found.catch(lambda: _key(path))
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            found.say(f"{out} exists and is not empty: choose another folder")
        base = None
        if config is not None:
            given = self.model or config.get("model"), self.erased or config.get("erased")
            base = Base.checked(*given, self.device, self.threads, found)
        found.stop()
        assert base is not None and manifest is not None  # else it has stopped
        model, _ = base.load()
        left = publish(model, manifest, out, key=key)
        say(summary(manifest))
        if left:
            say(f"not published with it: {', '.join(left)}")
        say("signed by key " + signing.key_id(key.public_key())[:12] if key is not None else "not signed: add --key")
        wrote([out, out / manifest.component / "manifest.json"])
        return 0


@dataclass(frozen=True, kw_only=True)
class Show(Verb):
    """Show a freeze policy: how much it freezes, where in the model, and where it comes from."""

    manifest: Annotated[Positional[Path], arg(metavar="DIR|MANIFEST")]
    """A manifest, the folder of `unteach guard learn`, or a published model."""
    tensors: Annotated[int, arg(metavar="N")] = 5
    """How many of the most and of the least scored tensors."""

    def run(self, command: str) -> int:
        """Show."""
        from unteach.guard.describe import describe
        from unteach.guard.manifest import FreezeManifest

        path = self.manifest
        if path.is_dir():
            published = sorted(path.glob("*/manifest.json")) if (path / "model_index.json").is_file() else []
            path = next(iter(published), path / "manifest.json")
        say(describe(FreezeManifest.load(path), self.tensors))
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify(Verb):
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
        """Print the verdict and return its exit code; whatever goes wrong, nobody is told "conform" by mistake."""
        import json
        import os
        import sys

        from unteach.guard.verify import verify

        try:
            verdict = verify(
                self.base, self.candidate, self.manifest, signature=self.signature, public_key=self.public_key
            )
        except (UnteachError, OSError):
            raise
        except Exception as error:  # a plain traceback would leave with 1, which means "violates"
            raise UnteachError("the check itself failed: there is no verdict", found=repr(error)) from error
        try:
            print(json.dumps(verdict.to_dict(), indent=2) if self.json else printable(verdict.text()), flush=True)
        except BrokenPipeError:  # nobody listens any more; the exit code still counts
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        return verdict.exit_code


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Freeze tensors against relearning: learn a mask, publish the model with its manifest, verify what others upload.

    A mask binds only those who keep to it: whoever ignores it trains as before.
    """

    command: OmitSubcommandPrefixes[
        Annotated[Learn, subcommand("learn")]
        | Annotated[Keygen, subcommand("keygen")]
        | Annotated[Apply, subcommand("apply")]
        | Annotated[Show, subcommand("show")]
        | Annotated[Verify, subcommand("verify")]
    ]


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
    config = Learn(config=folder / "config.json").file(found)
    if found.errors:
        raise CheckpointError(
            f"{folder / 'config.json'} is damaged: not a configuration of 'unteach guard learn'",
            found="; ".join(map(str, found.errors[:5])),
        )
    return config


def _key(path: Path) -> Any:
    """The private key to sign with; an encrypted one asks for its pass phrase."""
    from unteach.guard import signing

    secret = pass_phrase(f"the key {path}") if signing.is_encrypted(path) else None
    return signing.load_private(path, password=secret)
