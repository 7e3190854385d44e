"""Verification of anyone's checkpoint or adapter against a freeze manifest: ``verify(base, candidate, manifest)``.

What the files are (reader, collect, kinds), what is in them (names, hashes, components, adapters, reference), what lies
beside the weights (folders, configurations, tokenizers, peft_config), and the verdict (check, verdict).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unteach.guard.verify.check import verify
    from unteach.guard.verify.verdict import Finding, Verdict

__all__ = ["Finding", "Verdict", "verify"]


def __getattr__(name: str) -> Any:
    """The public names, looked up when they are asked for: manifests use the reader and the hashes alone."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from unteach.guard.verify import check

    return getattr(check, name)
