"""``unteach guard``: learn a mask, make keys, publish the model with its manifest, show a policy."""

import math
import shutil
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unteach.commands.base import Base
from unteach.commands.console import events, pass_phrase, say, wrote
from unteach.commands.guard_plan import LEARNED, NO_SHARE, GuardPlan, mask_config, resolve
from unteach.commands.options_guard import GuardApply, GuardKeygen, GuardLearn, GuardShow
from unteach.commands.verb import Mistakes
from unteach.core import places, reading, state, text
from unteach.core.events import Events
from unteach.core.loop import Step
from unteach.core.text import aligned
from unteach.diffusion import domains, export
from unteach.diffusion.domains import Domain
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, ConfigError, NumericsError
from unteach.guard import signing
from unteach.guard import verify as checking
from unteach.guard.baselines import Case, baselines, layer_type
from unteach.guard.data import GuardData, draw, losses
from unteach.guard.learn import learn as learn_mask
from unteach.guard.manifest import FreezeManifest, FrozenTensor, stamp
from unteach.guard.policy import check_model, mask_of, mask_of_learned
from unteach.guard.relearn import ADVISED, PERCENT, relearn
from unteach.records import environment
from unteach.records.mask import Mask

__all__ = ["apply", "keygen", "learn", "show"]

CHECK = 3
"""Training steps that a check of the relearned model takes as long as, about."""
PRIVATE, PUBLIC = "guard-private.pem", "guard-public.pem"


@dataclass(frozen=True, eq=False)
class Pictures:
    """The mask's domains and the sets made of them."""

    illegal: list[Domain]
    innocent: list[Domain]
    data: GuardData

    @classmethod
    def read(cls, plan: GuardPlan, model: Model) -> "Pictures":
        """Read and encode; every domain that cannot be used is reported."""
        found = Mistakes()
        read = [found.catch(lambda g=g: Domain.read(g, model, plan.seed)) for g in (*plan.illegal, *plan.innocent)]  # type: ignore[misc]
        found.stop()
        every = [domain for domain in read if domain is not None]
        illegal, innocent = every[: len(plan.illegal)], every[len(plan.illegal) :]
        domains.apart(
            [(d.name, set(d.ids)) for d in illegal],
            [(d.name, set(d.ids)) for d in innocent],
            "what is illegal must not be among what is innocent",
        )
        user, publisher = domains.SIDES["mask"]
        data = GuardData(
            [d.examples(model, user) for d in illegal],
            [d.examples(model, publisher) for d in illegal],
            [d.examples(model, user) for d in innocent],
            [d.examples(model, publisher) for d in innocent],
        )
        return cls(illegal, innocent, data)

    def lines(self, relearns: bool) -> list[str]:
        """What there is, for the terminal; and whether it is enough, where the mask needs a relearned model."""
        rows = [("domain", "kind", *(f"{role}" for role in domains.ROLES))]
        for kind, side in (("illegal", self.illegal), ("innocent", self.innocent)):
            rows += [(d.name, kind, *(str(len(d.roles[role])) for role in domains.ROLES)) for d in side]
        lines = [aligned(rows), "  (pictures of each role; attack and probe are kept for `unteach attack`)"]
        few = [d for d in (*self.illegal, *self.innocent) if len(set(d.ids)) < ADVISED]
        if relearns and few:
            counts = ", ".join(f"{d.name} has {len(set(d.ids))}" for d in few)
            lines.append(
                f"  few pictures: {counts}; {ADVISED} or more a domain are advised, because the relearned model "
                "trains on the user's alone and must get better on the publisher's"
            )
        return lines


def learn(options: GuardLearn, command: str) -> int:
    """Learn a mask, or with ``--dry-run`` say what would be done."""
    plan = resolve(options)
    known = plan.check_folder()
    model, erased = plan.base.load()
    pictures = Pictures.read(plan, model)
    if options.dry_run:
        say(reading.to_yaml(plan.to_dict()) + "\n")
        for line in pictures.lines(plan.relearns):
            say(line)
        count = sum(1 for _ in model.denoiser.parameters())
        say(f"{count} tensors to choose from; {_estimate(plan, model, pictures.data)}")
        if known:
            say(f"{plan.out} holds this run already: it would go on")
        say("dry run: nothing was written")
        return 0
    if plan.out is None:
        raise ConfigError("no folder for the result was given", fix="add --out DIR")
    with places.alone(plan.out):
        return _learn(plan, plan.out, known, model, erased, pictures, command)


def _learn(
    plan: GuardPlan, out: Path, known: bool, model: Model, erased: dict[str, Any], pictures: Pictures, command: str
) -> int:
    path = out / "mask.json"
    say(f"choosing what to freeze in {plan.base.name} with {plan.method}")
    for line in pictures.lines(plan.relearns):
        say(line)
    if path.exists():
        mask = Mask.load(path)
        check_model(model, mask.manifest, "the mask")
        say(f"{out} holds the finished mask")
    else:
        if known:
            say(f"{out} holds this run, begun: its relearning goes on; steps of the mask start anew and give the same")
        elif (out / "config.json").exists():
            say(f"{out} held a run with other settings of which nothing was finished: this one starts in its place")
            shutil.rmtree(out / "work", ignore_errors=True)
        say(_estimate(plan, model, pictures.data))
        state.write_json(out / "config.json", plan.to_dict())
        try:
            mask = _make(plan, model, erased, pictures, command)
        except NumericsError:  # what is left of it helps nobody, and another try must find the folder free
            shutil.rmtree(out / "work", ignore_errors=True)
            raise
        mask.save(path)
        say(f"it took {text.duration(mask.seconds)}")
    if not (out / "manifest.json").exists():
        FreezeManifest.of(mask.manifest).save(out / "manifest.json")
    shutil.rmtree(out / "work", ignore_errors=True)  # what is finished needs no checkpoint
    say(_summary(FreezeManifest.load(out / "manifest.json")))
    wrote([path, out / "manifest.json"])
    return 0


def _make(plan: GuardPlan, model: Model, erased: dict[str, Any], pictures: Pictures, command: str) -> Mask:
    """The mask: learned, or a baseline."""
    begin = time.monotonic()
    work, data = (plan.out or Path()) / "work", pictures.data
    learned, frozen, relearned = None, set[str](), None
    told = events()
    if plan.uses is None or plan.method in LEARNED:
        learned = learn_mask(model, data, plan.config, seed=plan.seed, out=work, events=told)
    if plan.method == "magnitude":
        relearned = _relearned(plan, model, data, work, told)
    told.close()
    if plan.uses is not None:
        case = Case(
            model, plan.config.rho, plan.config.budget, plan.seed, relearned, data, learned, samples=plan.samples
        )
        frozen = baselines[plan.method](case)
    more: dict[str, Any] = {
        "name": plan.method,
        "model_name": plan.base.name,
        "illegal": [d.name for d in pictures.illegal],
        "innocent": [d.name for d in pictures.innocent],
        "policy": plan.policy,
        "erased": erased,
        "seconds": round(time.monotonic() - begin, 3),
        "environment": vars(environment.collect()),
        "command": command,
    }
    if plan.uses is None and learned is not None:
        return mask_of_learned(model, learned, **more)
    rho = None if plan.method in NO_SHARE else plan.config.rho
    more |= {"measure": plan.config.budget, "rho": rho, "seed": plan.seed, "digests": data.digests()}
    return mask_of(model, frozen, method=plan.settings, **more)


def _relearned(plan: GuardPlan, model: Model, data: GuardData, work: Path, told: Events) -> dict[str, Tensor]:
    """θ_ft by name, after fine-tuning on the user's data; the model is as before afterwards."""
    own = dict(model.denoiser.named_parameters())
    before = {name: value.detach().clone() for name, value in own.items()}
    try:
        relearn(model, data, plan.config, seed=plan.seed, out=work, events=told)
        return {name: value.detach().clone() for name, value in own.items()}
    finally:
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(before[name])
        model.weights_changed()


def _estimate(plan: GuardPlan, model: Model, data: GuardData) -> str:
    """How long it will take, from one training step of this size, timed."""
    if not plan.relearns:
        return "no training is needed"
    c = plan.config
    mask = c.steps if plan.uses is None or plan.method in LEARNED else 0
    checks = len(PERCENT) * CHECK if c.relearned == "best" else 0
    share = (c.relearn_batch or c.batch_size) / c.batch_size
    steps = c.relearn_steps + mask
    half = max(1, plan.config.batch_size // 2)
    values = list(model.denoiser.parameters())
    seconds = math.inf
    for turn in range(3):
        begin, step = time.monotonic(), Step(turn, 3, plan.seed)
        batches = [draw(side, step, "estimate", half) for side in (data.illegal_user, data.innocent_user)]
        for value in values:
            value.requires_grad_(True)
        try:
            torch.autograd.grad(torch.cat(losses(model, batches, step, "estimate")).mean(), values, allow_unused=True)
        finally:
            for value in values:
                value.requires_grad_(False)
        seconds = min(seconds, time.monotonic() - begin)
    work = c.relearn_steps * share + mask + min(checks, c.relearn_steps * CHECK)
    return f"at most {steps} training steps: about {text.duration(1.2 * work * seconds)}"


def keygen(options: GuardKeygen) -> int:
    """Make a key pair."""
    private, public = options.out / PRIVATE, options.out / PUBLIC
    secret = pass_phrase(f"the new key {private}", twice=True) if options.pass_phrase else None
    key = signing.keygen(private, public, password=secret)
    say(f"made the key {key[:12]}; keep {private.name} secret, and give {public.name} out where people trust you")
    wrote([private, public])
    return 0


def apply(options: GuardApply) -> int:
    """Make the folder to publish."""
    folder, out = options.mask, options.out
    found = Mistakes()
    config = found.catch(lambda: mask_config(folder))
    mask = found.catch(lambda: Mask.load(folder / "mask.json"))
    manifest = None if mask is None else found.catch(lambda: _manifest(mask, folder))
    key = None if options.key is None else found.catch(lambda: _key(options.key))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found.say(f"{out} exists and is not empty: choose another folder")
    base = None
    if config is not None:
        given = options.model or config.get("model"), options.erased or config.get("erased")
        base = Base.checked(*given, options.device, options.threads, found)
    found.stop()
    assert base is not None and manifest is not None  # else it has stopped
    model, _ = base.load()
    check_model(model, manifest, "the mask")
    left = _publish(model, manifest, key, out)
    say(_summary(manifest))
    if left:
        say(f"not published with it: {', '.join(left)}")
    say("signed by key " + signing.key_id(key.public_key())[:12] if key is not None else "not signed: add --key")
    wrote([out, out / manifest.component / "manifest.json"])
    return 0


def _manifest(mask: Mask, folder: Path) -> FreezeManifest:
    """The mask's manifest, which manifest.json repeats; release 0.1 kept the hashes there alone."""
    path, old = folder / "manifest.json", not any(tensor.hashes for tensor in mask.tensors)
    if not old and not path.exists():
        return FreezeManifest.of(mask.manifest)
    manifest = FreezeManifest.load(path)
    same = (manifest.frozen, manifest.model) == (mask.frozen, mask.manifest.model)
    if not same or not (old or vars(manifest) == vars(mask.manifest)):
        raise CheckpointError(
            f"{folder} holds a mask and a manifest that do not belong together",
            fix="delete manifest.json and run its 'unteach guard learn' again",
        )
    return manifest


def _key(path: Path | None) -> Any:
    """The private key to sign with; an encrypted one asks for its pass phrase."""
    path = path or Path()
    secret = pass_phrase(f"the key {path}") if signing.is_encrypted(path) else None
    return signing.load_private(path, password=secret)


def _publish(model: Model, manifest: FreezeManifest, key: Any, out: Path) -> tuple[str, ...]:
    """Write the pipeline, the manifest, the stamps and the signature into a folder aside, verify it, rename it.

    Returns:
        What the original folder holds and ``out`` does not.
    """
    with export.appearing(out) as aside:
        left = export.write(model, aside)
        part = aside / manifest.component
        for weights in sorted(part.glob("*.safetensors")):
            stamp(weights, manifest)
        manifest.save(part / "manifest.json")
        if key is not None:
            signing.sign(manifest, key).save(part / "manifest.json.sig")
        verdict = checking.verify(aside, aside, manifest)
        if verdict.outcome != "conform":
            raise CheckpointError("the folder would not keep to its own manifest", found=verdict.text())
    return left


def show(options: GuardShow) -> int:
    """Show a policy."""
    path = options.manifest
    if path.is_dir():
        published = sorted(path.glob("*/manifest.json")) if (path / "model_index.json").is_file() else []
        path = next(iter(published), path / "manifest.json")
    manifest = FreezeManifest.load(path)
    say(_summary(manifest))
    say(f"  of: the {manifest.component} of a model of family {manifest.family}, digest {manifest.model[:12]}")
    say(f"  manifest {manifest.digest()[:12]}, made {manifest.created}\n")
    for title, of in (("part", _part), ("kind of layer", lambda t: layer_type(t.name, len(t.shape)))):
        groups: dict[str, list[FrozenTensor]] = {}
        for tensor in manifest.tensors:
            groups.setdefault(of(tensor), []).append(tensor)
        say(aligned([(title, "tensors frozen", "parameters frozen"), *(_row(k, v) for k, v in groups.items())]) + "\n")
    scored = sorted((t for t in manifest.tensors if t.score is not None), key=lambda t: (-(t.score or 0.0), t.name))
    if scored and options.tensors > 0:
        count = min(options.tensors, len(scored) // 2)
        chosen = [*scored[:count], *scored[len(scored) - count :]]
        rows = [(f"{t.score:.4f}", "frozen" if t.frozen else "free", t.name) for t in chosen]
        say(aligned([("score", "", f"the {count} most and the {count} least scored tensors"), *rows]) + "\n")
    made = manifest.provenance
    facts: dict[str, Any] = {
        key: made.method[key] for key in ("name", "illegal", "innocent", "erased") if key in made.method
    }
    settings = {key: value for key, value in made.method.items() if key not in facts}
    facts |= {"settings": settings, "seeds": made.seeds, "with": made.versions}
    facts |= {f"data, {name}": digest[:12] for name, digest in made.data.items()}
    facts |= {f"vouches for the {name}": digest[:12] for name, digest in manifest.components.items()}
    say("made by")
    for key, value in facts.items():
        if value:
            say(textwrap.fill(f"{key}: {_short(value)}", 110, initial_indent="  ", subsequent_indent="    "))
    return 0


def _summary(manifest: FreezeManifest) -> str:
    b = manifest.budget
    asked = "" if b.rho is None else f" (asked for: {b.rho:g} of the {b.measure})"
    return (
        f"policy {manifest.policy}: {b.frozen_tensors} of {b.tensors} tensors ({b.share_of_tensors:.1%}) and "
        f"{b.share_of_parameters:.1%} of the parameters are frozen{asked}"
    )


def _part(tensor: FrozenTensor) -> str:
    """down_blocks.0, mid_block, up_blocks.1, or the module at the top."""
    head, *more = tensor.name.split(".")
    return f"{head}.{more[0]}" if head in ("down_blocks", "up_blocks") else head


def _row(name: str, tensors: list[FrozenTensor]) -> tuple[str, str, str]:
    held, total = sum(t.size for t in tensors if t.frozen), sum(t.size for t in tensors)
    share = f"{held / max(total, 1):.0%} of {text.size(total, '')}"
    return name, f"{sum(t.frozen for t in tensors)} of {len(tensors)}", share


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
