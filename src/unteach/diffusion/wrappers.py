"""What is edited must be what is used: a network whose weights are wrapped, fused or moved away is refused by name.

Such a network still has the tensors that a method would edit, but its forward pass reads others.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from unteach.errors import ModelError

_RELOAD = "load the pipeline again without it"


def check_plain(module: nn.Module, name: str = "the denoiser") -> None:
    """Refuse a network that is not as diffusers or transformers make it.

    Raises:
        ModelError: it carries an adapter (LoRA, IP-Adapter), fused projections, a compiled module, offloading
            hooks, quantised or parametrised weights; the message names which and where.
    """
    for wrapper, fix in _wrappers(module):
        raise ModelError(
            f"the weights of {name} are not those that it uses: an edit would be lost or misread",
            found=wrapper,
            fix=fix,
        )


def _wrappers(module: nn.Module) -> Iterator[tuple[str, str]]:
    for path, part in module.named_modules(remove_duplicate=False):
        kind, where = type(part), f" at '{path}'" if path else ""
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            yield (
                f"a compiled module (torch.compile){where}",
                "use the pipeline before it is compiled; compile the result",
            )
        if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
            yield f"a {kind.__name__}{where}", "give the network inside it ('.module')"
        if kind.__module__.partition(".")[0] == "peft" or hasattr(part, "peft_config"):
            adapters = ", ".join(getattr(part, "peft_config", None) or [kind.__name__])
            yield (
                f"a loaded LoRA or other adapter ('{adapters}'{where})",
                "call unload_lora_weights() on the pipeline; to keep the adapter, call fuse_lora() before that",
            )
        if getattr(part, "fused_projections", False):
            yield f"fused projections (fuse_qkv_projections){where}", "call unfuse_qkv_projections(), or " + _RELOAD
        if hasattr(part, "_hf_hook"):
            yield (
                f"accelerate's offloading ({type(part._hf_hook).__name__}{where})",
                ("load the pipeline without offloading or a device map"),
            )
        if hasattr(part, "parametrizations"):
            yield f"a parametrised weight{where}", "remove the parametrization, leaving plain weights"
    processors = getattr(module, "attn_processors", {})
    for path, processor in processors.items():
        if isinstance(processor, nn.Module) and next(processor.parameters(), None) is not None:
            yield f"an attention processor with weights ({type(processor).__name__} at '{path}')", _RELOAD
    for path, tensor in module.named_parameters():
        if tensor.device.type == "meta":
            yield f"'{path}' has no values in memory (it is offloaded, or its file lacked it)", _RELOAD
        if not tensor.is_floating_point():
            yield (
                f"quantised weights ('{path}' is {str(tensor.dtype).removeprefix('torch.')})",
                ("load the pipeline in float32, bfloat16 or float16"),
            )
    unknown = sorted(_names(module) - _plain_names(module))
    if unknown:
        yield f"{len(unknown)} tensors that a plain {type(module).__name__} has not, such as '{unknown[0]}'", _RELOAD


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters(remove_duplicate=False)}


def _plain_names(module: nn.Module) -> set[str]:
    """The names that the class gives to a network of this configuration; those of the module where it has none."""
    config = getattr(module, "config", None)
    if config is None or not hasattr(type(module), "from_config"):
        return _names(module)
    kind: Any = type(module)
    return _made(kind, json.dumps(dict(config), sort_keys=True, default=str))


@functools.lru_cache(maxsize=16)
def _made(kind: Any, config: str) -> set[str]:
    # On the meta device: names alone, without memory for the values.
    with torch.device("meta"):
        return _names(kind.from_config(json.loads(config)))
