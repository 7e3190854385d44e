"""Climb first: steps *up* a loss before the descent step (refresh, SAM, ASAM), as functions on lists of tensors.

Lists have one entry a parameter tensor. Nothing here reads a value back from the device, so a step does not
wait; the extremes of a preconditioner are 0-d tensors. Tensors that come in are left as they are, but for
:func:`climb_`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from unteach.errors import ModelError, NumericsError

Normalise = Literal["none", "global", "per-tensor"]
InverseForm = Literal["damped", "official"]

EPS = 1e-20  # keeps 0/0 out of a normalised direction; far below any gradient's norm


class Preconditioner(Protocol):
    """P, a fixed symmetric positive matrix over a list of tensors (refresh §2.4)."""

    def times(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """P x, in new tensors."""

    def root(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """P^(1/2) x, in new tensors: turns white noise into noise of covariance P."""

    def eigenvalues(self) -> list[Tensor]:
        """The eigenvalues of P, in tensors of any shape."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The eigenbasis of one layer's Kronecker-factored curvature A ⊗ G, and P's eigenvalues in it.

    Args:
        weight: position of the weight, (out, ...), in the list of tensors.
        bias: position of the bias, (out,), or None when A does not cover it.
        left: eigenvectors of G, (out, out).
        right: eigenvectors of A, (n, n); n is the weight's fan-in, plus 1 with a bias.
        values: eigenvalues of P, (out, n).
    """

    weight: int
    bias: int | None
    left: Tensor
    right: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """P for A ⊗ G a layer, damped exactly in the eigenbasis; tensors of no layer keep P = I."""

    layers: Sequence[Layer]

    def times(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """P x: U_G [values ∘ (U_Gᵀ x U_A)] U_Aᵀ a layer."""
        return self._scale(tensors, [layer.values for layer in self.layers])

    def root(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """P^(1/2) x, the symmetric root."""
        return self._scale(tensors, [layer.values.sqrt() for layer in self.layers])

    def eigenvalues(self) -> list[Tensor]:
        """Those of the layers; the ones of tensors without a layer are not listed."""
        return [layer.values for layer in self.layers]

    def _scale(self, tensors: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        out = [tensor.clone() for tensor in tensors]
        for layer, scale in zip(self.layers, scales, strict=True):
            weight = tensors[layer.weight]
            joint = weight.flatten(1)
            if layer.bias is not None:
                joint = torch.cat([joint, tensors[layer.bias].unsqueeze(1)], 1)
            left, right = layer.left, layer.right
            joint = left @ (scale * (left.T @ joint @ right)) @ right.T
            if layer.bias is not None:
                out[layer.bias] = joint[:, -1].clone()
                joint = joint[:, :-1]
            out[layer.weight] = joint.reshape(weight.shape)
        return out


def inverse(curvature: Tensor, damping: float, form: InverseForm = "damped") -> Tensor:
    """P from curvature F ≥ 0, elementwise: 1/(F + λ) (``damped``) or 1/(1 + λF) (``official``: never above 1)."""
    return 1 / (curvature + damping) if form == "damped" else 1 / (1 + damping * curvature)


@torch.no_grad()
def damped_inverse(
    factors: Mapping[str, tuple[Tensor, Tensor]],
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    damping: float,
    form: InverseForm = "damped",
) -> Eigenbasis:
    """P = (A ⊗ G + λI)⁻¹ a layer, exact: in the eigenbasis the curvature is the products of the eigenvalues.

    Args:
        factors: layer name to A, (n, n) over the layer's inputs (a last row and column of A, if n is one more
            than the weight's fan-in, belong to the bias), and G, (out, out) over its outputs.
        names: parameter names; ``layer.weight`` and ``layer.bias`` are looked up in them. A layer whose
            weight is not among them is left out.
        shapes: the parameters' shapes, same order.
        damping: λ.
        form: see :func:`inverse`.

    Raises:
        ModelError: factors that do not fit the weight.
        NumericsError: factors that are not finite.
    """
    places = {name: place for place, name in enumerate(names)}
    layers = []
    for name, (a, g) in factors.items():
        weight = places.get(f"{name}.weight")
        if weight is None:
            continue
        out = shapes[weight][0]
        fan_in = torch.Size(shapes[weight][1:]).numel()
        with_bias = a.shape[0] == fan_in + 1
        if g.shape != (out, out) or a.shape[0] not in (fan_in, fan_in + 1) or a.shape[0] != a.shape[1]:
            raise ModelError(
                f"the Kronecker factors of '{name}' do not fit its weight",
                found=f"A {tuple(a.shape)}, G {tuple(g.shape)}, weight {tuple(shapes[weight])}",
                fix="compute the factors from the same network",
            )
        bias = places.get(f"{name}.bias") if with_bias else None
        if with_bias and bias is None:  # the bias does not move: the block of the weight alone
            a = a[:-1, :-1]
        if not bool(torch.isfinite(a).all() and torch.isfinite(g).all()):
            raise NumericsError(f"the Kronecker factors of '{name}' are not finite", fix="lower the learning rate")
        (values_a, right), (values_g, left) = torch.linalg.eigh(a), torch.linalg.eigh(g)
        curvature = torch.outer(values_g.clamp(min=0), values_a.clamp(min=0))
        layers.append(Layer(weight, bias, left, right, inverse(curvature, damping, form)))
    return Eigenbasis(layers)


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, shape (); 0 for an empty list."""
    if not tensors:
        return torch.zeros(())
    parts = [part.to(tensors[0].device) for part in torch._foreach_norm(list(tensors))]
    length: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return length


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists, shape (); 0 for empty lists."""
    if not a:
        return torch.zeros(())
    products = torch._foreach_mul(list(a), list(b))
    return torch.stack([product.sum().to(products[0].device) for product in products]).sum()


def normalise(directions: Sequence[Tensor], params: Sequence[Tensor], how: Normalise, eps: float = EPS) -> list[Tensor]:
    """Directions of a set length, in new tensors (refresh §4.6).

    ``global``: d / (‖d‖ + ε), as in SAM. ``per-tensor``: ‖θ_l‖ d_l / (‖d_l‖ + ε), as in adversarial weight
    perturbation; a tensor of zeros then does not move. ``none``: d itself, the very tensors.
    """
    if how == "none" or not directions:
        return list(directions)
    if how == "global":
        return list(torch._foreach_mul(list(directions), 1 / (norm(directions) + eps)))
    lengths = torch._foreach_norm(list(directions))
    torch._foreach_add_(lengths, eps)
    scales = torch._foreach_div(torch._foreach_norm([param.detach() for param in params]), lengths)
    return list(torch._foreach_mul(list(directions), list(scales)))


def adaptive(gradients: Sequence[Tensor], params: Sequence[Tensor], eta: float, eps: float = EPS) -> list[Tensor]:
    """ASAM's direction of length 1 in the scaled space: T² g / (‖T g‖ + ε), T = |θ| + η (Kwon et al. 2021, eq. 11)."""
    if not gradients:
        return []
    scales = torch._foreach_abs([param.detach() for param in params])
    torch._foreach_add_(scales, eta)
    scaled = torch._foreach_mul(list(gradients), list(scales))
    direction = torch._foreach_mul(scaled, list(scales))
    return list(torch._foreach_mul(direction, 1 / (norm(scaled) + eps)))


@torch.no_grad()
def climb_(params: Sequence[Tensor], directions: Sequence[Tensor], size: float = 1.0) -> None:
    """θ ← θ + size · d, in place."""
    if params:
        torch._foreach_add_(list(params), list(directions), alpha=size)


class Noise:
    """White noise for a list of tensors out of one flat buffer, which every draw fills again."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        double = any(tensor.dtype == torch.float64 for tensor in like)
        self._like = list(like)
        self._sizes = [tensor.numel() for tensor in like]
        self._buffer = torch.empty(sum(self._sizes), dtype=torch.float64 if double else torch.float32)

    def draw(self, generator: torch.Generator) -> list[Tensor]:
        """ξ ~ N(0, I) from a CPU generator, in the tensors' shapes, dtypes and devices; valid until the next draw."""
        self._buffer.normal_(generator=generator)
        if not self._like:
            return []
        flat = self._buffer.to(self._like[0].device)
        parts = zip(torch.split(flat, self._sizes), self._like, strict=True)
        return [part.view(like.shape).to(device=like.device, dtype=like.dtype) for part, like in parts]
