import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracle import bregman as oracle
from tests.oracle.curvature import Dense, LowRank
from torch import Tensor, nn

from unteach.core.bregman import Quadratic
from unteach.core.curvature import Curvature, Diagonal, Identity, Kronecker, collapse, differences
from unteach.errors import ConfigError, NumericsError

SHAPES: list[tuple[int, ...]] = [(3, 2), (3,), (2, 3, 2, 1), (2,), (), (4,)]  # two layers with biases, and others
D = sum(math.prod(shape) for shape in SHAPES)
KINDS = [
    "identity",
    "diagonal",
    "low-rank",
    "low-rank pieces",
    "low-rank + diagonal",
    "kronecker",
    "kronecker joined",
    "dense",
]
each_kind = pytest.mark.parametrize("kind", KINDS)
seeds = st.integers(0, 10**6)
few = settings(max_examples=20)  # each kind has as many


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(seed: int) -> list[Tensor]:
    return [draw(shape, seed + i) for i, shape in enumerate(SHAPES)]


def positive(n: int, seed: int, rank: int | None = None) -> Tensor:
    """A random symmetric matrix ⪰ 0, (n, n)."""
    root = draw((n, rank or n), seed)
    return root @ root.T


def importances(seed: int) -> list[Tensor]:
    return [t.square() for t in normal(seed)]


def build(kind: str, seed: int) -> tuple[Curvature, Tensor]:
    """A curvature, and its matrix written out in full."""
    f, u, root = importances(seed), draw((D, 3), seed), draw((D, D), seed)
    sizes = [math.prod(shape) for shape in SHAPES]
    diagonal = torch.diag(oracle.flat(f))
    if kind == "identity":
        return Identity(), torch.eye(D, dtype=torch.float64)
    if kind == "diagonal":
        return Diagonal(f), diagonal
    if kind == "low-rank":
        return LowRank(u), u @ u.T
    if kind == "low-rank pieces":
        return LowRank(u.split(sizes)), u @ u.T
    if kind == "low-rank + diagonal":
        return LowRank(u, f), u @ u.T + diagonal
    if kind == "dense":
        return Dense(root @ root.T), root @ root.T
    (a_1, g_1), (a_2, g_2) = (positive(2, seed), positive(3, seed + 1)), (positive(6, seed + 2), positive(2, seed + 3))
    if kind == "kronecker":
        blocks = [torch.kron(g_1, a_1), g_1 * 0.5, torch.kron(g_2, a_2), g_2 * 2.0, f[4].view(1, 1)]
        half, two = (torch.full((1, 1), each, dtype=torch.float64) for each in (0.5, 2.0))
        factors = [(a_1, g_1), (half, g_1), (a_2, g_2), (two, g_2), None, None]
        return Kronecker(factors, [None] * 4 + [f[4], None]), _padded(blocks)
    assert kind == "kronecker joined"
    a_1, a_2 = positive(3, seed), positive(7, seed + 2)
    blocks = [_weight_first(torch.kron(g_1, a_1), 3, 2), _weight_first(torch.kron(g_2, a_2), 2, 6)]
    return Kronecker([(a_1, g_1), None, (a_2, g_2), None, None, None]), _padded(blocks)


def _padded(blocks: list[Tensor]) -> Tensor:
    """Block-diagonal (D, D), zero after the last block."""
    used = torch.block_diag(*blocks)
    return torch.block_diag(used, torch.zeros(D - len(used), D - len(used), dtype=torch.float64))


def _weight_first(block: Tensor, out: int, inputs: int) -> Tensor:
    """From rows [w, b] one after the other to all of the weight and then all of the bias."""
    place = torch.arange(out * (inputs + 1)).view(out, inputs + 1)
    order = torch.cat([place[:, :-1].reshape(-1), place[:, -1]])
    return block[order][:, order]


# ---- every curvature ----


@each_kind
@few
@given(seeds)
def test_is_the_matrix_written_out(kind, seed) -> None:
    curvature, matrix = build(kind, seed)
    delta = normal(seed + 100)
    right = oracle.quadratic(matrix, delta)
    torch.testing.assert_close(curvature.quadratic(delta), right, rtol=1e-9, atol=1e-10)
    product = curvature.times(delta)
    assert [p.shape for p in product] == [d.shape for d in delta]
    torch.testing.assert_close(oracle.flat(product), matrix @ oracle.flat(delta), rtol=1e-9, atol=1e-10)
    assert curvature.quadratic(delta) >= 0


@each_kind
@few
@given(seeds)
def test_divergence(kind, seed) -> None:
    """½(a-b)ᵀA(a-b); the definition; zero at the anchor; gradient A(a-b); symmetric."""
    curvature, matrix = build(kind, seed)
    psi = Quadratic(curvature)
    a, b = [t.requires_grad_() for t in normal(seed + 100)], normal(seed + 200)
    found = psi.divergence(a, b)
    assert found.shape == ()
    torch.testing.assert_close(found.detach(), 0.5 * oracle.quadratic(matrix, differences(a, b)).detach())
    torch.testing.assert_close(found, oracle.definition(psi, a, b), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, psi.divergence(b, a), rtol=1e-12, atol=1e-12)
    assert psi.divergence(b, b) == 0
    grads = torch.autograd.grad(found, a)
    with torch.no_grad():
        slope = curvature.times(differences(a, b))
        ends = torch._foreach_sub(curvature.times(a), curvature.times(b))
    for grad, right, difference in zip(grads, slope, ends, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, difference, rtol=1e-9, atol=1e-9)


@each_kind
def test_second_derivatives(kind: str) -> None:
    curvature, _ = build(kind, 0)
    delta = tuple(t.requires_grad_() for t in normal(1))
    assert torch.autograd.gradcheck(lambda *d: curvature.quadratic(d), delta)
    assert torch.autograd.gradgradcheck(lambda *d: curvature.quadratic(d), delta)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(kind: str, dtype: torch.dtype) -> None:
    """Parameters in any precision against a curvature in fp64 or fp32; half precision is computed in fp32."""
    curvature, matrix = build(kind, 0)
    a, b = ([t.to(dtype).requires_grad_() for t in normal(seed)] for seed in (1, 2))
    found = Quadratic(curvature).divergence(a, b)
    exact = [x.detach().double() - y.detach().double() for x, y in zip(a, b, strict=True)]
    assert found.item() == pytest.approx(0.5 * oracle.quadratic(matrix, exact).item(), rel=1e-5)
    assert [g.dtype for g in torch.autograd.grad(found, a)] == [dtype] * len(a)


@each_kind
def test_tensors_that_do_not_fit(kind: str) -> None:
    psi = Quadratic(build(kind, 0)[0])
    a = normal(1)
    with pytest.raises(ConfigError, match=r"number or shape; found: 6 \[\(3, 2\), .*\] and 5 \["):
        psi.divergence(a, a[:-1])
    with pytest.raises(ConfigError, match="number or shape"):
        psi.divergence(a, [a[0].T, *a[1:]])
    if kind != "identity":
        with pytest.raises(ConfigError, match=r"fit|shape"):
            psi.value(a[:-1])
        with pytest.raises(ConfigError, match=r"fit|shape"):
            psi.curvature.times([draw((5, 2), 0), *a[1:]])


def test_curvatures_are_constants() -> None:
    f = [t.requires_grad_() for t in importances(0)]
    assert not any(t.requires_grad for t in Diagonal(f).times(normal(1)))


# ---- Diagonal: EWC and its relatives ----


def test_ewc_by_hand() -> None:
    a, b, f = [torch.tensor([1.0, 2.0]), torch.tensor(3.0)], [torch.tensor([0.0, 4.0]), torch.tensor(0.0)], [2.0, 1.0]
    psi = Quadratic(Diagonal([torch.tensor(f), torch.tensor(0.5)]))
    assert psi.divergence(a, b).item() == 0.5 * (2 * 1 + 1 * 4 + 0.5 * 9)
    assert Quadratic(Identity()).divergence(a, b).item() == 0.5 * (1 + 4 + 9)


@pytest.mark.parametrize("kind", ["low-rank", "kronecker", "diagonal"])
def test_a_singular_curvature_is_degenerate(kind: str) -> None:
    """refresh §1.2: zero for some a ≠ b."""
    curvature = Diagonal([torch.zeros(s) for s in SHAPES]) if kind == "diagonal" else build(kind, 0)[0]
    matrix = torch.zeros(D, D, dtype=torch.float64) if kind == "diagonal" else build(kind, 0)[1]
    null = torch.linalg.eigh(matrix)[1][:, 0]
    parts = null.split([math.prod(s) for s in SHAPES])
    delta = [part.view(shape) for part, shape in zip(parts, SHAPES, strict=True)]
    assert null.norm().item() == pytest.approx(1)
    assert abs(curvature.quadratic(delta).item()) < 1e-20


@given(st.integers(1, 4), seeds, st.booleans())
def test_many_anchors_collapse(k, seed, holes) -> None:
    """refresh §1.3: Σ_k quad_{F_k} around θ_k = quad_{ΣF_k} around (ΣF_k)⁻¹ ΣF_kθ_k + constant."""
    diagonals = [importances(seed + 10 * i) for i in range(k)]
    anchors = [normal(seed + 500 + 10 * i) for i in range(k)]
    if holes:  # a parameter that no task needs
        for diagonal in diagonals:
            diagonal[0][1] = 0
    curvature, anchor = collapse(diagonals, anchors)
    many = [Quadratic(Diagonal(f)) for f in diagonals]
    gaps = []
    for probe in range(3):
        a = [t.requires_grad_() for t in normal(seed + 900 + 10 * probe)]
        sum_of_all = torch.stack([psi.divergence(a, t) for psi, t in zip(many, anchors, strict=True)]).sum()
        one = Quadratic(curvature).divergence(a, anchor)
        gaps.append((sum_of_all - one).item())
        for x, y in zip(torch.autograd.grad(sum_of_all, a), torch.autograd.grad(one, a), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
    assert gaps == pytest.approx([gaps[0]] * 3, rel=1e-9, abs=1e-9)
    if k == 1:
        assert gaps[0] == 0 and all(torch.equal(x, y) for x, y in zip(anchor, anchors[0], strict=True))
    else:
        assert gaps[0] > 0
        assert not torch.allclose(anchor[0], anchors[-1][0])
    if holes:
        assert torch.equal(anchor[0][1], anchors[-1][0][1])


def test_collapse_refuses() -> None:
    f, theta = importances(0), normal(1)
    with pytest.raises(ConfigError, match="0 diagonals and 0 anchors"):
        collapse([], [])
    with pytest.raises(ConfigError, match="1 diagonals and 2 anchors"):
        collapse([f], [theta, theta])
    with pytest.raises(ConfigError, match="number or shape"):
        collapse([f, f[:-1]], [theta, theta])


# ---- Kronecker ----


def test_kronecker_of_a_real_layer() -> None:
    """With one sample, A = x̃x̃ᵀ and G = δδᵀ are the exact outer product of that sample's gradient."""
    layer = nn.Linear(3, 2, dtype=torch.float64)
    x = draw((1, 3), 0)
    grads = torch.autograd.grad(layer(x)[0, 0] * 2 - layer(x)[0, 1], list(layer.parameters()))
    back = torch.tensor([2.0, -1.0], dtype=torch.float64)
    inputs = torch.cat([x[0], torch.ones(1, dtype=torch.float64)])
    curvature = Kronecker([(torch.outer(inputs, inputs), torch.outer(back, back)), None])
    delta = [draw((2, 3), 1), draw((2,), 2)]
    right = oracle.flat(list(grads)).dot(oracle.flat(delta)).square()
    torch.testing.assert_close(curvature.quadratic(delta), right)


def test_kronecker_refuses() -> None:
    a, g = torch.eye(3), torch.eye(2)
    weight, bias = torch.ones(2, 2), torch.ones(2)
    assert Kronecker([(a, g), None]).quadratic([weight, bias]).item() == 6
    assert Kronecker([(torch.eye(2), g), None]).quadratic([weight, bias]).item() == 4  # the bias is free
    with pytest.raises(ConfigError, match="parameter 0 do not fit"):  # no bias follows
        Kronecker([(a, g), None]).quadratic([weight, torch.ones(5)])
    with pytest.raises(ConfigError, match="parameter 0 do not fit"):  # it has its own diagonal
        Kronecker([(a, g), None], [None, bias]).quadratic([weight, bias])
    with pytest.raises(ConfigError, match="parameter 0 do not fit"):
        Kronecker([(torch.eye(2), torch.eye(4))]).quadratic([weight])
    with pytest.raises(ConfigError, match=r"both for the parameters \[0\]"):
        Kronecker([(a, g), None], [weight, None])
    with pytest.raises(ConfigError, match="2 factors, 1 diagonals"):
        Kronecker([(a, g), None], [None])
    with pytest.raises(ConfigError, match="1 tensors and 2 entries"):
        Kronecker([(a, g), None]).times([weight])


# ---- what is no curvature ----


@pytest.mark.parametrize(
    "make",
    [
        lambda: Diagonal([torch.ones(2), torch.tensor([0.0, -1e-3])]),
        lambda: LowRank(torch.ones(2, 1), [torch.tensor([1.0, -1.0])]),
        lambda: Kronecker([(torch.eye(2), -torch.eye(2))]),
        lambda: Kronecker([None], [torch.tensor([-1.0])]),
        lambda: Dense(torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
        lambda: collapse([[torch.tensor([-1.0])]], [[torch.tensor([0.0])]]),
    ],
)
def test_negative_directions_are_refused(make) -> None:
    with pytest.raises(ConfigError, match=r"no Bregman divergence; found: .* of -.*; to do: clamp"):
        make()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_entries_that_are_not_finite_are_refused(bad: float) -> None:
    for make in (
        lambda t: Diagonal([torch.ones(2), t]),
        lambda t: LowRank(t.view(2, 1)),
        lambda t: Dense(torch.diag(t)),
        lambda t: Kronecker([(torch.eye(2), torch.diag(t))]),
    ):
        with pytest.raises(NumericsError, match="NaN or infinity in tensor"):
            make(torch.tensor([1.0, bad]))


def test_matrices_of_the_wrong_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="symmetric"):
        Dense(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ConfigError, match="square"):
        Dense(torch.ones(2, 3))
    with pytest.raises(ConfigError, match="same number of columns"):
        LowRank([torch.ones(2, 3), torch.ones(2, 2)])
    with pytest.raises(ConfigError, match="an empty list"):
        Diagonal([])
    # rounding is no asymmetry, and rank-deficient is no negative eigenvalue
    matrix = positive(6, 0, rank=2).float()
    matrix[0, 1] *= 1 + 1e-6
    assert torch.equal(Dense(matrix).matrix, Dense(matrix).matrix.T)
