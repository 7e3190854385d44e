"""The rest of what Gaussians owe is in test_bregman, with that of every generator."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracle.generators import GaussianMean, GaussianNatural
from torch import Tensor

from unteach.core.bregman import Quadratic, gaussian_kl
from unteach.core.curvature import Diagonal
from unteach.errors import ConfigError

seeds = st.integers(0, 10**6)
widths = st.integers(1, 6)
scales = st.floats(0.1, 5)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(widths, scales, seeds)
def test_gaussian_is_the_kl_of_torch(width, scale, seed) -> None:
    m_a, m_b = scale * normal((3, width), seed), scale * normal((3, width), seed + 1)
    v_a, v_b = normal((3, width), seed + 2).exp(), normal((3, width), seed + 3).exp()
    q_a, q_b = (torch.distributions.Normal(m, v.sqrt()) for m, v in ((m_a, v_a), (m_b, v_b)))
    right = torch.distributions.kl_divergence(q_a, q_b)
    found = GaussianMean().divergence(GaussianMean.pack(m_a, v_a), GaussianMean.pack(m_b, v_b))
    torch.testing.assert_close(found, right.sum(-1), rtol=1e-9, atol=1e-9 * scale**2)
    torch.testing.assert_close(gaussian_kl(m_a, v_a, m_b, v_b), right.sum(), rtol=1e-12, atol=1e-13)
    split = [[t[0], t[1:]] for t in (m_a, v_a, m_b, v_b)]
    torch.testing.assert_close(gaussian_kl(*split), right.sum(), rtol=1e-12, atol=1e-13)
    # Φ is the negative entropy
    packed = GaussianMean.pack(m_a, v_a)
    torch.testing.assert_close(GaussianMean().value(packed), -q_a.entropy().sum(-1), rtol=1e-9, atol=1e-9 * scale**2)


@given(widths, seeds)
def test_equal_variances_are_ewc(width, seed) -> None:
    """refresh §1.3: with equal covariances VCL is ½ (m - m₀)ᵀ Σ₀⁻¹ (m - m₀)."""
    m, m_0, var = normal((width,), seed), normal((width,), seed + 1), normal((width,), seed + 2).exp()
    ewc = Quadratic(Diagonal([1 / var])).divergence([m], [m_0])
    torch.testing.assert_close(gaussian_kl(m, var, m_0, var), ewc)


def test_gaussian_extremes_and_errors() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    assert gaussian_kl(zero, one * 1e-20, zero, one).item() == pytest.approx(0.5 * (20 * math.log(10) - 1))
    assert gaussian_kl(zero.bfloat16(), one.bfloat16(), zero.bfloat16(), one.bfloat16()).dtype == torch.float32
    assert not gaussian_kl(zero, -one, zero, one).isfinite()
    with pytest.raises(ConfigError, match="number or shape"):
        gaussian_kl(zero, one, zero, torch.ones(2))
    with pytest.raises(ConfigError, match="number or shape"):
        gaussian_kl([], [], [], [])
    for phi in (GaussianMean(), GaussianNatural()):
        with pytest.raises(ConfigError, match="odd last dimension"):
            phi.value(torch.ones(3))


def test_small_divergences_keep_their_digits() -> None:
    m, v = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert gaussian_kl(m + 1e-6, v, m, v).item() == pytest.approx(0.5e-12, rel=1e-9)
    assert gaussian_kl(m + 1e4 + 1e-3, v, m + 1e4, v).item() == pytest.approx(0.5e-6, rel=1e-6)
