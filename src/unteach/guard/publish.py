"""Publish a guarded model: its pipeline, the freeze manifest, the stamps in its weights, a signature; verified."""

from pathlib import Path
from typing import TYPE_CHECKING

from unteach.diffusion import export
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError
from unteach.guard import signing
from unteach.guard.manifest import FreezeManifest, stamp
from unteach.guard.policy import check_model
from unteach.guard.verify import verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["publish"]


def publish(
    model: Model | Pipeline, manifest: FreezeManifest, out: Path, *, key: "Ed25519PrivateKey | None" = None
) -> tuple[str, ...]:
    """Write the folder to publish, which appears whole and verified or not at all.

    Args:
        model: what the manifest is for: a model, or a diffusers pipeline.
        manifest: which tensors are frozen.
        out: the folder to make; absent or empty.
        key: signs the manifest (:func:`unteach.guard.signing.load_private`); None leaves it unsigned.

    Returns:
        What the folder that the model was loaded from holds and ``out`` does not.

    Raises:
        ConfigError: ``out`` exists and is not empty.
        ModelError: the manifest is for another model.
        CheckpointError: it cannot be written, or does not keep to its own manifest.
    """
    model = Model.of(model)
    check_model(model, manifest, "the mask")
    with export.appearing(out) as aside:
        left = export.write(model, aside)
        part = aside / manifest.component
        for weights in sorted(part.glob("*.safetensors")):
            stamp(weights, manifest)
        manifest.save(part / "manifest.json")
        if key is not None:
            signing.sign(manifest, key).save(part / "manifest.json.sig")
        verdict = verify(aside, aside, manifest)
        if verdict.outcome != "conform":
            raise CheckpointError("the folder would not keep to its own manifest", found=verdict.text())
    return left
