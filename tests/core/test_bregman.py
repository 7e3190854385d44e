import json
import math
from inspect import isabstract

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracle import bregman as oracle
from tests.oracle.generators import (
    BinaryNegEntropy,
    GaussianMean,
    GaussianNatural,
    QuarterSquare,
    conjugate,
    definition,
)
from torch import Tensor

from unteach.core import bregman
from unteach.core.bregman import (
    Generator,
    LogSumExp,
    MeanSquare,
    NegEntropy,
    Softplus,
    Square,
    labels,
)
from unteach.errors import ConfigError

CASES = [
    Square(),
    Square(half=True),
    MeanSquare(),
    QuarterSquare(),
    QuarterSquare(times_width=True),
    NegEntropy(),
    NegEntropy(mass=2.5),
    LogSumExp(),
    LogSumExp(temperature=2.5),
    Softplus(),
    BinaryNegEntropy(),
    GaussianMean(),
    GaussianNatural(),
]
each_case = pytest.mark.parametrize("phi", CASES, ids=repr)
few = settings(max_examples=20)  # each generator has as many
seeds = st.integers(0, 10**6)
widths = st.integers(1, 6)
scales = st.floats(0.1, 5)


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inside(phi: Generator, u: Tensor) -> Tensor:
    """A point of the generator's domain, (..., C or 2C), for any real u (..., C)."""
    if isinstance(phi, NegEntropy):
        return phi.mass * u.softmax(-1)
    if isinstance(phi, BinaryNegEntropy):
        return u.sigmoid()
    if isinstance(phi, GaussianMean):
        return GaussianMean.pack(u, (0.5 * u.flip(-1)).exp())
    if isinstance(phi, GaussianNatural):
        return torch.cat([u, -u.flip(-1).exp()], -1)
    return u


def pair(phi: Generator, width: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    # 1 - σ(u) and m² + σ² - m² lose digits for large u, in the tests' own inputs
    bound = {Softplus: 6, BinaryNegEntropy: 6, GaussianMean: 3, GaussianNatural: 3}.get(type(phi), 100)
    points = (scale * normal((2, 3, width), seed + i) for i in range(2))
    a, b = (inside(phi, bound * (u / bound).tanh()) for u in points)
    return a, b


def size(phi: Generator, a: Tensor, b: Tensor) -> Tensor:
    """Of the terms that the definition subtracts from each other."""
    return phi.value(a).abs() + phi.value(b).abs() + (phi.gradient(b) * (a - b)).abs().sum(-1) + 1e-3


# ---- every generator ----


def test_every_generator_has_a_case() -> None:
    known = {each for each in vars(bregman).values() if isinstance(each, type) and issubclass(each, Generator)}
    assert {each for each in known if not isabstract(each)} <= {type(phi) for phi in CASES}
    assert len({phi.name for phi in CASES}) == len({type(phi) for phi in CASES})


@each_case
@few
@given(widths, scales, seeds)
def test_closed_form_is_the_definition(phi, width, scale, seed) -> None:
    a, b = pair(phi, width, scale, seed)
    found, right = phi.divergence(a, b), definition(phi, a, b)
    assert found.shape == (2, 3)
    assert bool(((found - right).abs() <= 1e-9 * right.abs() + 1e-13 * size(phi, a, b)).all())


@each_case
@few
@given(widths, scales, seeds)
def test_not_negative_and_zero_at_the_target(phi, width, scale, seed) -> None:
    a, b = pair(phi, width, scale, seed)
    assert bool((phi.divergence(a, b) >= -1e-13 * size(phi, a, b)).all())
    assert bool((phi.divergence(a, a).abs() <= 1e-14 * size(phi, a, a)).all())
    if width > 1 or not isinstance(phi, NegEntropy | LogSumExp):  # one class has one distribution
        assert bool((phi.divergence(a, b) > 0).all())


@each_case
@few
@given(widths, scales, seeds)
def test_gradient_is_the_difference_of_gradients(phi, width, scale, seed) -> None:
    a, b = pair(phi, width, scale, seed)
    a.requires_grad_()
    (found,) = torch.autograd.grad(phi.divergence(a, b).sum(), a)
    with torch.no_grad():
        ends = phi.gradient(a), phi.gradient(b)
    room = 1e-9 * (ends[0].abs() + ends[1].abs()).amax(-1, keepdim=True)
    assert bool(((found - (ends[0] - ends[1])).abs() <= room + 1e-12).all())


@each_case
@few
@given(widths, scales, seeds)
def test_gradient_is_that_of_the_value(phi, width, scale, seed) -> None:
    a, _ = pair(phi, width, scale, seed)
    a.requires_grad_()
    (found,) = torch.autograd.grad(phi.value(a).sum(), a)
    torch.testing.assert_close(found, phi.gradient(a).detach(), rtol=1e-9, atol=1e-12)


@each_case
@few
@given(widths, scales, seeds)
def test_conjugate_swap(phi, width, scale, seed) -> None:
    """refresh §1.1: D_Φ(p, q) = D_Φ*(∇Φ(q), ∇Φ(p)); and Φ** has the divergence of Φ."""
    p, q = pair(phi, width, scale, seed)
    star = conjugate(phi)
    found = star.divergence(phi.gradient(q), phi.gradient(p))
    # a distribution of mean parameters is less well conditioned than one of logits
    torch.testing.assert_close(found, phi.divergence(p, q), rtol=1e-9, atol=1e-11 * size(phi, p, q).max().item())
    torch.testing.assert_close(conjugate(star).divergence(p, q), phi.divergence(p, q))


@each_case
@few
@given(widths, scales, seeds)
def test_fenchel_equality(phi, width, scale, seed) -> None:
    """Φ(p) + Φ*(∇Φ(p)) = <p, ∇Φ(p)>: the conjugate's constant is right, too."""
    p, _ = pair(phi, width, scale, seed)
    slope = phi.gradient(p)
    torch.testing.assert_close(
        phi.value(p) + conjugate(phi).value(slope),
        (p * slope).sum(-1),
        rtol=1e-9,
        atol=1e-12 * size(phi, p, p).max().item(),
    )


@each_case
def test_config_round_trip(phi: Generator) -> None:
    plain = json.loads(json.dumps(phi.to_dict()))
    assert plain.pop("generator") == phi.name
    assert type(phi).build(plain) == phi


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(phi: Generator, dtype: torch.dtype) -> None:
    a, b = (u.to(dtype) for u in pair(phi, 4, 1.0, 0))
    found = phi.divergence(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, phi.divergence(a.float(), b.float()))
    assert torch.equal(phi.divergence(a, b.float()), found)


@each_case
def test_wrong_inputs(phi: Generator) -> None:
    u = inside(phi, normal((3, 4), 0))
    with pytest.raises(ConfigError, match=r"differ in shape; found: \(3, \d\) and \(1, \d\)"):
        phi.divergence(u, u[:1])
    with pytest.raises(ConfigError, match="int64"):
        phi.divergence(u, torch.zeros(u.shape, dtype=torch.int64))
    with pytest.raises(ConfigError, match="at least one dimension"):
        phi.value(torch.tensor(1.0))


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="temperature must be above 0"):
        LogSumExp(temperature=0.0)
    with pytest.raises(ConfigError, match="mass must be above 0"):
        NegEntropy(mass=-1.0)


# ---- what each is ----


@given(widths, scales, seeds)
def test_squares(width, scale, seed) -> None:
    a, b = scale * normal((3, width), seed), scale * normal((3, width), seed + 1)
    error = F.mse_loss(a, b, reduction="none")
    torch.testing.assert_close(Square().divergence(a, b), error.sum(-1))
    torch.testing.assert_close(Square(half=True).divergence(a, b), 0.5 * error.sum(-1))
    torch.testing.assert_close(MeanSquare().divergence(a, b), error.mean(-1))


@given(widths, scales, seeds)
def test_categorical(width, scale, seed) -> None:
    """Which way round each KL is: negent KL(a ‖ b), log-sum-exp KL(softmax b ‖ softmax a)."""
    a, b = scale * normal((3, width), seed), scale * normal((3, width), seed + 1)
    p, q = a.softmax(-1), b.softmax(-1)
    torch.testing.assert_close(NegEntropy().divergence(p, q), oracle.kl(p, q), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(LogSumExp().divergence(a, b), oracle.kl(q, p), rtol=1e-9, atol=1e-13)
    moved = LogSumExp().divergence(a + 3, b - 5)
    torch.testing.assert_close(moved, oracle.kl(q, p), rtol=1e-9, atol=1e-12)


@given(widths, scales, st.floats(0.3, 6), seeds)
def test_temperature(width, scale, temperature, seed) -> None:
    a, b = scale * normal((3, width), seed), scale * normal((3, width), seed + 1)
    softened = oracle.kl((b / temperature).softmax(-1), (a / temperature).softmax(-1))
    found = LogSumExp(temperature=temperature).divergence(a, b)
    torch.testing.assert_close(found, temperature**2 * softened, rtol=1e-9, atol=1e-12)


def test_temperature_one_is_plain() -> None:
    u = normal((5, 7), 0)
    assert torch.equal(LogSumExp().value(u), torch.logsumexp(u, -1))
    assert torch.equal(LogSumExp().gradient(u), u.softmax(-1))


@given(widths, scales, seeds)
def test_cross_entropy_is_the_limit_of_scaled_labels(width, scale, seed) -> None:
    """refresh §1.3, ER: at s = 40 the error is below 1e-9; the limit itself is cross-entropy bit for bit."""
    a = scale * normal((4, width), seed).clamp(-3, 3)
    y = torch.arange(4) % width
    entropy = F.cross_entropy(a, y, reduction="none")
    assert torch.equal(LogSumExp().to_label(a, y), entropy)
    found = LogSumExp().divergence(a, labels(y, width, dtype=torch.float64))
    assert bool(((found - entropy).abs() < 1e-9).all())
    if width > 1:
        assert not bool(((LogSumExp().divergence(a, labels(y, width, scale=5.0)) - entropy).abs() < 1e-9).all())


def test_to_label_with_a_temperature_and_more_dimensions() -> None:
    a, y = normal((2, 3, 5), 0), torch.tensor([[0, 1, 4], [2, 2, 3]])
    found = LogSumExp(temperature=2.0).to_label(a, y)
    torch.testing.assert_close(found, 4 * F.cross_entropy((a / 2).movedim(-1, 1), y, reduction="none"))
    limit = LogSumExp(temperature=2.0).divergence(a, labels(y, 5, scale=100.0, dtype=torch.float64))
    torch.testing.assert_close(found, limit)


def test_wrong_labels() -> None:
    a = normal((3, 4), 0)
    with pytest.raises(ConfigError, match="labels do not fit"):
        LogSumExp().to_label(a, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="labels do not fit"):
        LogSumExp().to_label(a, torch.zeros(3))
    with pytest.raises((RuntimeError, IndexError)):  # -100 is not "ignore": no sample goes missing silently
        LogSumExp().to_label(a, torch.tensor([0, -100, 1]))
    with pytest.raises(ConfigError, match=r"int64 in \[0, 4\); found: torch.int64 in \[0, 4\]"):
        labels(torch.tensor([0, 4]), 4)
    with pytest.raises(ConfigError, match="float32"):
        labels(torch.tensor([0.0]), 4)
    assert labels(torch.zeros(0, dtype=torch.int64), 4).shape == (0, 4)
    assert labels(torch.tensor([[1]]), 3).tolist() == [[[0, 40, 0]]]


@given(widths, scales, seeds)
def test_uniform_target_is_the_entropy(width, scale, seed) -> None:
    """refresh §1.3, CPR: D(p, uniform) = log C - H(p)."""
    p = (scale * normal((3, width), seed)).softmax(-1)
    entropy = -oracle.kl(p, torch.ones_like(p))
    found = NegEntropy().divergence(p, torch.full_like(p, 1 / width))
    torch.testing.assert_close(found, math.log(width) - entropy, rtol=1e-9, atol=1e-12)
    # the other order is label smoothing's term
    z = torch.zeros_like(p)
    other = LogSumExp().divergence(p.log(), z)
    torch.testing.assert_close(other, -p.log().mean(-1) - math.log(width), rtol=1e-9, atol=1e-12)


def test_zeros_of_the_simplex() -> None:
    p = torch.tensor([[0.0, 0.25, 0.75], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    q = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    found = NegEntropy().divergence(p, q)
    torch.testing.assert_close(found, oracle.kl(p, q))
    assert math.isinf(found[1]) and found[2] == pytest.approx(math.log(2))
    torch.testing.assert_close(NegEntropy().value(p), oracle.kl(p, torch.ones(3, 3)))
    assert NegEntropy().divergence(torch.tensor([-0.5, 1.5]), torch.tensor([0.5, 0.5])).isnan()  # logits by mistake
    coins = BinaryNegEntropy().divergence(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))
    assert coins.item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("target", [[0.25] * 4, [0.0, 0.5, 0.5, 0.0]])
def test_a_softmax_that_underflows_has_a_finite_gradient(target: list[float]) -> None:
    u = torch.tensor([-200.0, 1.0, 0.0, -math.inf], requires_grad=True)
    p = u.softmax(-1)
    assert p[0] == p[3] == 0
    loss = NegEntropy().divergence(p, torch.tensor(target))
    (grad,) = torch.autograd.grad(loss, u)
    assert bool(loss.isfinite()) and bool(grad.isfinite().all()) and grad[0] == grad[3] == 0
    # what is left is the gradient on the classes that count
    v = torch.tensor([1.0, 0.0], requires_grad=True)
    (right,) = torch.autograd.grad(NegEntropy().divergence(v.softmax(-1), torch.tensor(target[1:3])), v)
    torch.testing.assert_close(grad[1:3], right)


def test_masked_logits_add_nothing() -> None:
    a, b = normal((2, 5), 0), normal((2, 5), 1)
    mask = torch.tensor([True, True, False, True, False])
    cut = [u.masked_fill(~mask, -math.inf).requires_grad_() for u in (a, b)]
    found = LogSumExp().divergence(*cut)
    torch.testing.assert_close(found, LogSumExp().divergence(a[:, mask], b[:, mask]))
    for grad in torch.autograd.grad(found.sum(), cut):
        assert bool(grad.isfinite().all())
    # a target that the model rules out costs infinitely much
    assert bool(LogSumExp().divergence(cut[0].detach(), b).isinf().all())


@given(widths, scales, seeds)
def test_softplus_is_binary_kl(width, scale, seed) -> None:
    a, b = scale * normal((3, width), seed), scale * normal((3, width), seed + 1)
    found = Softplus().divergence(a, b)
    torch.testing.assert_close(found, oracle.binary_kl(b.sigmoid(), a.sigmoid()), rtol=1e-9, atol=1e-12)
    # iCaRL's loss is this plus a constant
    q = b.sigmoid()
    loss = F.binary_cross_entropy_with_logits(a, q, reduction="none").sum(-1)
    constant = F.binary_cross_entropy_with_logits(b, q, reduction="none").sum(-1)
    torch.testing.assert_close(found, loss - constant, rtol=1e-9, atol=1e-12)


def test_softplus_is_exact_for_large_logits() -> None:
    """torch's own is linear above 20, which is off by 2e-9."""
    u = torch.tensor([21.0], dtype=torch.float64)
    assert Softplus().value(u).item() - 21 == pytest.approx(math.exp(-21), rel=1e-5)


@pytest.mark.parametrize("phi", [Square(), MeanSquare(), LogSumExp(), LogSumExp(temperature=2.0), Softplus()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_logits_stay_finite(phi: Generator, dtype: torch.dtype) -> None:
    a = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    b = torch.tensor([[-1e4, 1e4, 1.0], [-1e4, 0.0, 1e4]], dtype=dtype)
    found = phi.divergence(a, b)
    (grad,) = torch.autograd.grad(found.sum(), a)
    assert bool(found.isfinite().all()) and bool(grad.isfinite().all()) and bool(phi.value(a).isfinite().all())
    assert bool((found > 0).all())
    assert phi.divergence(a, a.detach()).abs().max() == 0


def test_small_divergences_keep_their_digits() -> None:
    """Near the target the definition is noise; the closed form is ½ <d, ∇²Φ d>."""
    b = normal((1, 5), 0)
    d = 1e-7 * normal((1, 5), 1)
    p = b.softmax(-1)
    curved = 0.5 * ((p * d.square()).sum(-1) - (p * d).sum(-1).square())
    assert LogSumExp().divergence(b + d, b).item() == pytest.approx(curved.item(), rel=1e-2)
