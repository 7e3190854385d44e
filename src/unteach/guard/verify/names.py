"""Names of the same tensor in other files: CompVis checkpoints, fused projections, adapters.

The canonical names are diffusers' (``down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight``). The rules
follow the order in which the original Stable Diffusion code numbers its blocks: ``input_blocks.0`` is the first
convolution, then come the L layers of each level and its downsampling; ``output_blocks`` count the L + 1 layers of
each level upwards, the upsampling inside the last. Valid for SD 1, SD 2 and SDXL U-Nets.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Adapters", "Target", "companion", "compvis", "fused", "modules", "vae_compvis"]

_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def compvis(names: Collection[str]) -> dict[str, str]:
    """diffusers name → CompVis name (without ``model.diffusion_model.``) of a U-Net's tensors.

    Args:
        names: all tensors of the U-Net; how many layers a level has is seen from them.

    Returns:
        One to one; a name that has no counterpart is left out.
    """
    layers = 1 + max((int(m[4]) for m in map(_BLOCK.fullmatch, names) if m and m[1] == "down"), default=0)
    attended = {(m[1], m[2]) for m in map(_BLOCK.fullmatch, names) if m and m[3] == "attentions"}
    found: dict[str, str] = {}
    for name in names:
        other = _compvis(name, layers, attended)
        if other is not None:
            found[name] = other
    return found


def _compvis(name: str, layers: int, attended: set[tuple[str, str]]) -> str | None:
    for ours, theirs in _TOP.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    for ours, theirs in _MIDDLE.items():
        if name.startswith(f"mid_block.{ours}."):
            return _inside(theirs, ours.split(".")[0], name[len(f"mid_block.{ours}.") :])
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv.', 'op.', 1)}"
    if kind == "upsamplers":
        place = 2 if ("up", match[2]) in attended else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{place}.{rest}"
    column = 1 if kind == "attentions" else 0
    if side == "down":
        return _inside(f"input_blocks.{1 + block * (layers + 1) + index}.{column}", kind, rest)
    return _inside(f"output_blocks.{block * (layers + 1) + index}.{column}", kind, rest)


def _inside(block: str, kind: str, rest: str) -> str | None:
    if kind == "attentions":
        return f"{block}.{rest}"
    part, _, last = rest.rpartition(".")
    return f"{block}.{_RESNET[part]}.{last}" if part in _RESNET else None


_VAE = [
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."), (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."), (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."), (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."), (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."), (r"\.conv_norm_out\.", ".norm_out."),
]  # fmt: skip


def vae_compvis(names: Collection[str]) -> dict[str, str]:
    """diffusers name → CompVis name (without ``first_stage_model.``) of an autoencoder's tensors."""
    ups = [int(m[1]) for m in (re.match(r"decoder\.up_blocks\.(\d+)\.", name) for name in names) if m]
    top = max(ups, default=0)
    found = {}
    for name in names:
        other = name
        for pattern, replacement in _VAE:
            other = re.sub(pattern, replacement, other)
        match = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets\.|upsamplers\.0\.)(.+)", other)
        if match:
            kind = "block." if match[2] == "resnets." else "upsample."
            other = f"decoder.up.{top - int(match[1])}.{kind}{match[3]}"
        found[name] = other
    return found


_PARTS = {
    "to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}  # fmt: skip


def fused(name: str, names: Collection[str]) -> tuple[str, ...]:
    """The tensors that a fused projection holds one below the other; empty when ``name`` is none."""
    owner, _, last = name.rpartition(".")
    owner, _, module = owner.rpartition(".")
    parts = tuple(f"{owner}.{part}.{last}" for part in _PARTS.get(module, ()))
    return parts if parts and all(part in names for part in parts) else ()


_COMPANIONS = re.compile(
    r"(.+?)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.[\w.]+|SCB|weight_format|qweight|qzeros|"
    r"scales|g_idx|scale|zero_point|scale_weight|scale_input|weight_scale|weight_scale_2|input_scale|weight_qdata|"
    r"weight_zero_point|comfy_quant)"
)


def companion(name: str, names: Collection[str]) -> str | None:
    """The tensor whose quantised values this one belongs to (scales, tables); None when it belongs to none."""
    match = _COMPANIONS.fullmatch(name)
    if match is None:
        return None
    return next((stem for stem in (match[1], f"{match[1]}.weight") if stem in names), None)


def modules(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Every module, containers too → the tensors in it."""
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), []).append(name)
    return {module: tuple(members) for module, members in found.items()}


@dataclass(frozen=True)
class Target:
    """What a key of an adapter file is about.

    Attributes:
        module: module of the policy's component, in canonical names; None when the key names another component.
        tensor: the tensor that the key replaces in full (``modules_to_save``, trained biases), else None.
        component: the other component ("text_encoder"), else None.
        side: "A" (input side) or "B" (output side) of a low-rank pair, else None.
    """

    module: str | None = None
    tensor: str | None = None
    component: str | None = None
    side: str | None = None


_SUFFIX = re.compile(
    r"\.(?:(?P<a>lora_A|lora_down|lora\.down|lora_linear_layer\.down)|(?P<b>lora_B|lora_up|lora\.up|"
    r"lora_linear_layer\.up)|lora_embedding_[AB]|lora_mid|lora_magnitude_vector|dora_scale|alpha|scalar|hada_w[12]_[ab]"
    r"|hada_w[12]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t[12]|b?oft_[A-Za-z_]+|ia3_l|vera_lambda_[bd]|diff|diff_b|w_norm"
    r"|b_norm|rescale|lora\.alpha|a1|a2|b1|b2)(?:\.default)?(?P<last>\.weight|\.bias)?$"
)
_PROCESSOR = re.compile(r"(?P<attn>.+)\.processor\.(?P<to>to_[qkv]|to_out)_lora\.(?P<side>down|up)\.weight")
_TEXT = re.compile(r"lora_te(\d?)_|lycoris_te(\d?)_|(text_encoder(?:_\d)?)\.|(text_model)\.")
_FLAT = re.compile(r"(?:lora_unet|lycoris_unet|lycoris)_")
_HEAD = re.compile(r"(?:base_model\.model\.)?(?:model\.diffusion_model\.|diffusion_model\.)?")


class Adapters:
    """Finds what adapter keys are about, for one base.

    Args:
        names: canonical names of the base's tensors.
        component: its name in a pipeline ("unet").
    """

    def __init__(self, names: Collection[str], component: str = "unet") -> None:
        self.names, self.component = set(names), component
        self.modules = modules(names)
        other = compvis(names)
        self._compvis = {theirs: ours for ours, theirs in _module_pairs(other)}
        self._flat: dict[str, set[str]] = {}
        for ours in self.modules:
            self._flat.setdefault(ours.replace(".", "_"), set()).add(ours)
        for theirs, ours in self._compvis.items():
            self._flat.setdefault(theirs.replace(".", "_"), set()).add(ours)

    def targets(self, key: str) -> tuple[Target, ...]:
        """What the key is about; more than one when a flattened name can be read in several ways, none when unknown."""
        bare = key.removeprefix("base_model.model.")
        text = _TEXT.match(bare)
        if text:
            part = next((group for group in text.groups() if group), "")
            return (Target(component=part if part.startswith("text") else f"text_encoder{part and '_' + part}"),)
        bare = _HEAD.sub("", key, count=1).removeprefix(f"{self.component}.")
        processor = _PROCESSOR.fullmatch(bare)
        if processor:
            name = f"{processor['attn']}.{'to_out.0' if processor['to'] == 'to_out' else processor['to']}"
            return self._found([name], "A" if processor["side"] == "down" else "B")
        suffix = _SUFFIX.search(bare)
        if suffix is None:
            if not key.startswith("base_model.model."):
                return ()
            whole = re.sub(r"\.(modules_to_save(\.default)?|original_module|base_layer)(?=\.)", "", bare)
            return (Target(module=whole.rpartition(".")[0], tensor=whole),) if whole in self.names else ()
        # The output side's bias is trained beside the pair; it is an adapter on the module like the rest.
        side = "A" if suffix["a"] else "B" if suffix["b"] and suffix["last"] != ".bias" else None
        return self._found(self._readings(bare[: suffix.start()]), side)

    def _readings(self, stem: str) -> Iterator[str]:
        flat = _FLAT.match(stem)
        if flat:
            yield from sorted(self._flat.get(stem[flat.end() :], ()))
        yield stem
        if stem in self._compvis:
            yield self._compvis[stem]

    def _found(self, names: Iterator[str] | list[str], side: str | None) -> tuple[Target, ...]:
        return tuple(Target(module=name, side=side) for name in dict.fromkeys(names) if name in self.modules)


def _module_pairs(tensors: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Leaf modules and the containers whose inner names agree, as (ours, theirs)."""
    seen = set()
    for ours, theirs in tensors.items():
        a, b = ours.split("."), theirs.split(".")
        while len(a) > 1 and len(b) > 1 and a.pop() == b.pop():
            pair = (".".join(a), ".".join(b))
            if pair not in seen:
                seen.add(pair)
                yield pair
