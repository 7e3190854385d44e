"""Networks for streams: a registry, and how to reach the last layer and its input.

A network maps (B, *shape) float32 to logits (B, classes) with one head over all classes of the stream. The ones
here (but "vit", which is transformers') are plain Conv2d, BatchNorm2d or GroupNorm, ReLU that is not in place, and
Linear, so that hooks for per-sample gradients work; weights start from torch's own initialisation.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unteach.core import seeds
from unteach.core.registry import Registry
from unteach.errors import ConfigError, ModelError

__all__ = ["Builder", "build", "check", "features", "head", "networks"]

Shape = tuple[int, ...]
Norm = Literal["batch", "group", "none"]
Pool = Literal["average", "flatten"]
Builder = Callable[..., nn.Module]
"""``builder(shape, classes, **options)``; register one with ``@networks.add("name")``."""

networks: Registry[Builder] = Registry("network")


def build(network: str | Builder | nn.Module, shape: Shape, classes: int, seed: int, **options: Any) -> nn.Module:
    """A network with logits (B, classes) for inputs (B, *shape), in training mode, on the CPU.

    Args:
        network: a registered name, a builder of your own, or a module, which is taken as it is.
        shape: shape of one input: (C, H, W), or (features,).
        classes: number of classes of the whole stream.
        seed: the weights are a function of it; torch's global generator is left as it was.
        options: arguments of the builder.

    Raises:
        ConfigError: an unknown name, option or value.
        ModelError: what was built does not map (B, *shape) to (B, classes).
    """
    shape = tuple(shape)
    if isinstance(network, nn.Module):
        if options:
            raise ConfigError("a module that is made already takes no options", found=sorted(options), fix="drop them")
        check(network, shape, classes)
        return network
    name = network if isinstance(network, str) else getattr(network, "__name__", "of your own")
    builder = networks[network] if isinstance(network, str) else network
    try:
        inspect.signature(builder).bind(shape, classes, **options)
    except TypeError as error:
        known = list(inspect.signature(builder).parameters)[2:]
        raise ConfigError(
            f"the network '{name}' does not take these options", found=error, fix=f"known: {', '.join(known) or 'none'}"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds.integer(seed, "network"))
        model = builder(shape, classes, **options)
    check(model, shape, classes)
    return model


def head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the last Linear in the model's order.

    Raises:
        ModelError: there is none.
    """
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(
            "this network has no last Linear layer to take features from",
            found=type(model).__name__,
            fix="end the network in an nn.Linear, or use a method that needs no features",
        )
    return linear[-1]


def features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) and features (B, d), the input of :func:`head`, of one forward pass.

    Raises:
        ModelError: there is no Linear, or the forward pass does not go through the last one.
    """
    name, last = head(model)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = last.register_forward_pre_hook(keep)
    try:
        logits = model(x)
    finally:
        handle.remove()
    if not seen:
        raise ModelError(
            "the forward pass does not go through the network's last Linear layer",
            found=name,
            fix="define the layer that gives the logits after all others, and call it as a module",
        )
    return logits, seen[-1]


def check(model: nn.Module, shape: Shape, classes: int) -> None:
    """Run two zero inputs through the network in evaluation mode; it is afterwards as it was before.

    Raises:
        ModelError: the network is no module, fails on inputs (2, *shape), or does not give logits (2, classes).
    """
    if not isinstance(model, nn.Module):
        raise ModelError("a network must be an nn.Module", found=type(model).__name__, fix="let the builder return one")
    modes = [(module, module.training) for module in model.modules()]
    where = next(model.parameters(), torch.zeros(0)).device
    try:
        with torch.no_grad():
            out = model.eval()(torch.zeros(2, *shape, device=where))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ModelError(
            f"this network does not take inputs of the stream's shape {tuple(shape)}",
            found=f"{type(error).__name__}: {error}",
            fix="choose a network for such inputs",
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(out, Tensor):
        raise ModelError("a network must return its logits", found=type(out).__name__, fix="return the tensor alone")
    if out.shape != (2, classes) or not out.is_floating_point():
        raise ModelError(
            f"this network does not give logits for {classes} classes",
            found=f"{tuple(out.shape)} {out.dtype} for 2 inputs, wanted (2, {classes})",
            fix="give it one output for each class of the whole stream",
        )


def _images(name: str, shape: Shape, least: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < least:
        raise ModelError(
            f"the network '{name}' takes images (C, H, W) of at least {least}x{least} pixels",
            found=tuple(shape),
            fix="use 'mlp', which takes any shape",
        )
    return shape[0], shape[1], shape[2]


def _positive(**values: int) -> None:
    wrong = [f"{name} must be a whole number above 0, found {v!r}" for name, v in values.items() if not _whole(v)]
    if wrong:
        raise ConfigError.many(wrong, where="the network")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@networks.add("mlp")
def mlp(shape: Shape, classes: int, *, hidden: Sequence[int] = (100, 100)) -> nn.Module:
    """Flatten, then Linear and ReLU for each of ``hidden``, then Linear; () makes it a linear classifier."""
    if not isinstance(hidden, list | tuple):
        raise ConfigError("the network: hidden must be a list of widths", found=hidden, fix="e.g. [100, 100]")
    _positive(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
    layers: list[nn.Module] = [nn.Flatten()]
    width = int(torch.Size(shape).numel())
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, classes))


@networks.add("small-conv")
def small_conv(
    shape: Shape,
    classes: int,
    *,
    width: int = 16,
    norm: Norm = "batch",
    pool: Pool = "average",
) -> nn.Module:
    """Three times 3x3 convolution, norm, ReLU, 2x2 max-pooling, of ``width``, 2 and 4 times that; then Linear.

    ``pool`` says what comes before the Linear: the average over positions, or all positions. Sides of 8 or more.
    """
    channels, height, wide = _images("small-conv", shape, 8)
    _positive(width=width)
    if pool not in ("average", "flatten"):
        raise ConfigError("the network: pool must be 'average' or 'flatten'", found=repr(pool))
    layers: list[nn.Module] = []
    for out in (width, 2 * width, 4 * width):
        layers += [
            nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none"), _norm(norm, out), nn.ReLU(), nn.MaxPool2d(2)
        ]  # fmt: skip
        channels = out
    if pool == "average":
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (height // 8) * (wide // 8), classes))


@networks.add("small-conv-gn")
def small_conv_gn(shape: Shape, classes: int, *, width: int = 16, pool: Pool = "average") -> nn.Module:
    """``small-conv`` with group norm: no running statistics, and each sample's output depends on it alone."""
    return small_conv(shape, classes, width=width, norm="group", pool=pool)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(next(n for n in (8, 4, 2, 1) if channels % n == 0), channels)
    if kind == "none":
        return nn.Identity()
    raise ConfigError("the network: norm must be 'batch', 'group' or 'none'", found=repr(kind))


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 5 left; projection where the shape changes)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        same = stride == 1 and channels == out
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))


def _resnet18(shape: Shape, classes: int, width: int, name: str) -> nn.Module:
    channels, _, _ = _images(name, shape, 1)
    _positive(width=width)
    stem = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks, channels = [], width
    for stage in range(4):
        out = width * 2**stage
        blocks += [_Block(channels, out, 1 if stage == 0 else 2), _Block(out, out, 1)]
        channels = out
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@networks.add("resnet18")
def resnet18(shape: Shape, classes: int, *, width: int = 64) -> nn.Module:
    """ResNet-18 with the stem for small images: 3x3 convolution of stride 1, no pooling; 11.2 M parameters."""
    return _resnet18(shape, classes, width, "resnet18")


@networks.add("reduced-resnet18")
def reduced_resnet18(shape: Shape, classes: int, *, width: int = 20) -> nn.Module:
    """``resnet18`` with 20 filters instead of 64, as in GEM; 1.1 M parameters."""
    return _resnet18(shape, classes, width, "reduced-resnet18")


class _ViT(nn.Module):
    """A transformers image classifier that returns logits, its inputs brought to the size it was made for."""

    def __init__(self, vit: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.vit, self.size = vit, size

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        logits: Tensor = self.vit(pixel_values=x).logits
        return logits


def _pretrained_vit(path: str, classes: int) -> nn.Module:
    from transformers import ViTForImageClassification
    from transformers.utils import logging

    bars: Any = logging  # its functions are not typed
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        loaded: Any = ViTForImageClassification.from_pretrained(
            path, num_labels=classes, ignore_mismatched_sizes=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"no vision transformer could be loaded from '{path}'",
            found=error,
            fix="give a folder with config.json and model.safetensors of a ViT",
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    model, info = loaded
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    absent = [key for key in [*info["missing_keys"], *mismatched] if not key.startswith("classifier.")]
    if absent:
        raise ModelError(
            f"'{path}' is not a whole vision transformer",
            found=f"no fitting weights for {', '.join(sorted(absent)[:3])} ({len(absent)} tensors)",
            fix="give a folder with config.json and model.safetensors of a ViT",
        )
    size = model.config.image_size
    return _ViT(model, (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))).train()


@networks.add("vit")
def vit(
    shape: Shape,
    classes: int,
    *,
    path: str | None = None,
    patch: int | None = None,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
) -> nn.Module:
    """A vision transformer (transformers' ViTForImageClassification) with a new head.

    Args:
        shape: (C, H, W).
        classes: number of classes of the stream.
        path: folder or hub name of a pretrained ViT (safetensors alone); inputs are resized to what it was
            trained with, and the other options are not used. Without it the weights are random.
        patch: side of a patch, 1/8 of the shorter side unless given.
        width: size of the hidden states, a multiple of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.

    Raises:
        ModelError: transformers is missing, or no ViT is at ``path``.
        ConfigError: options that do not fit.
    """
    channels, height, wide = _images("vit", shape, 1)
    try:
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError as error:
        raise ModelError("the network 'vit' needs transformers", found=error, fix="pip install transformers") from error
    if path is not None:
        return _pretrained_vit(path, classes)
    patch = max(1, min(height, wide) // 8) if patch is None else patch
    _positive(patch=patch, width=width, depth=depth, heads=heads)
    if width % heads or height % patch or wide % patch:
        raise ConfigError(
            "the network 'vit': heads must divide width, and patch both sides of the image",
            found=f"width {width}, heads {heads}, patch {patch}, image {height}x{wide}",
            fix="choose numbers that divide",
        )
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=(height, wide),
        patch_size=patch,
        num_channels=channels,
    )
    config.num_labels = classes
    return _ViT(ViTForImageClassification(config), (height, wide)).train()
