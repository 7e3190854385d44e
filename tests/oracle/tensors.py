"""Lists of tensors to draw, and exact ways to compare them."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8}
SCOPES = ("per_tensor", "global")
FORMULAS = ("orthogonal", "official_cosine")

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)
dtypes = st.sampled_from(list(TOLERANCE))


def normal(shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Gaussian tensors whose scales differ by up to 10^±3."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(shape) * 10 ** draw(()).clamp(-3, 3)).to(dtype) for shape in shapes]


def inner(a: list[Tensor], b: list[Tensor]) -> float:
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def norm(a: list[Tensor]) -> float:
    return math.sqrt(inner(a, a))


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit, so that -0.0 is not 0.0; also the dtypes."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype
        and x.shape == y.shape
        and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )


def close(a: list[Tensor], b: list[Tensor], scale: float, dtype: torch.dtype) -> bool:
    return norm([x.double() - y.double() for x, y in zip(a, b, strict=True)]) <= TOLERANCE[dtype] * scale
