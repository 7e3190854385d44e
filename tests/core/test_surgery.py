import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracle import surgery as oracle
from tests.oracle.tensors import (
    FORMULAS,
    SCOPES,
    TOLERANCE,
    close,
    dtypes,
    equal,
    inner,
    norm,
    normal,
    shapes,
)
from torch import Tensor, nn

from unteach.core.surgery import pcgrad, project
from unteach.errors import ConfigError

# ---- pinned values ----


@pytest.mark.parametrize(
    ("strength", "formula", "expected"),
    [
        (1.0, "orthogonal", [0.0, 4.0]),  # u = (-3, 4), b̂ = (1, 0): all of -3 goes
        (0.5, "orthogonal", [-1.5, 4.0]),
        (2.0, "orthogonal", [3.0, 4.0]),
        (1.0, "official_cosine", [-2.4, 4.0]),  # cosθ = -0.6: the factor ‖u‖ = 5 is missing
        (0.5, "official_cosine", [-2.7, 4.0]),
    ],
)
def test_pinned(strength: float, formula: str, expected: list[float]) -> None:
    u, r = torch.tensor([-3.0, 4.0]), torch.tensor([2.0, 0.0])
    (g,), stats = project([u], [r], strength=strength, formula=formula)
    torch.testing.assert_close(g, torch.tensor(expected))
    removed = abs(expected[0] + 3)
    log = stats.as_log("surgery/")
    assert log == pytest.approx(
        {
            "surgery/conflict_share": 1.0,
            "surgery/conflict_cosine": -0.6,
            "surgery/removed_norm": removed,
            "surgery/removed_share": removed / 5,
        }
    )


def test_statistics_of_several_tensors() -> None:
    g_u = [torch.tensor([-3.0, 4.0]), torch.tensor([1.0]), torch.tensor([0.0, -2.0]), torch.tensor([7.0])]
    g_r = [torch.tensor([1.0, 0.0]), torch.tensor([5.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0])]
    _, stats = project(g_u, g_r)
    assert stats.conflicting.tolist() == [True, False, True, False]
    torch.testing.assert_close(stats.cosine, torch.tensor([-0.6, 1.0, -1.0, 0.0]))
    torch.testing.assert_close(stats.removed, torch.tensor([3.0, 0.0, 2.0, 0.0]))
    torch.testing.assert_close(stats.norm, torch.tensor([5.0, 1.0, 2.0, 7.0]))
    assert float(stats.share) == 0.5
    assert float(stats.mean_cosine) == pytest.approx(-0.15)
    assert stats.as_log()["removed_share"] == pytest.approx(math.sqrt(13 / 79))


def test_scopes_differ() -> None:
    """The first tensor conflicts, the second agrees more strongly: overall there is no conflict."""
    g_u, g_r = [torch.tensor([-1.0]), torch.tensor([2.0])], [torch.tensor([1.0]), torch.tensor([2.0])]
    assert [t.item() for t in project(g_u, g_r, scope="per_tensor")[0]] == [0.0, 2.0]
    assert equal(project(g_u, g_r, scope="global")[0], g_u)
    # and the other way round: the global test also edits a tensor that agrees
    g_r = [torch.tensor([4.0]), torch.tensor([1.0])]
    edited, stats = project(g_u, g_r, scope="global")
    torch.testing.assert_close(torch.cat(edited), torch.tensor([-1 + 8 / 17, 2 + 2 / 17]))
    assert stats.conflicting.tolist() == [True]


def test_the_official_formula_turns_small_gradients_towards_the_retain_gradient() -> None:
    """doco §2: at cosθ = -0.2 and ‖g_u‖ = 0.1 the edited norm is 0.20 and its cosine with g_r +0.88."""
    r = torch.tensor([1.0, 0.0], dtype=torch.float64)
    u = torch.tensor([-0.2, math.sqrt(1 - 0.04)], dtype=torch.float64)
    (g,), _ = project([0.1 * u], [r], formula="official_cosine")
    assert g.norm().item() == pytest.approx(0.20, abs=0.01)
    assert (g[0] / g.norm()).item() == pytest.approx(0.88, abs=0.005)
    (unit,), _ = project([u], [r], formula="official_cosine")
    torch.testing.assert_close(unit, project([u], [r])[0][0], atol=1e-7, rtol=0)


# ---- properties ----


@given(shapes, st.integers(0, 10**6), dtypes, st.floats(0.01, 1), st.sampled_from(SCOPES))
def test_orthogonal_property(shapes, seed, dtype, strength, scope) -> None:
    """doco §6.5: <g, b̂> = (1 - λ) <g_u, b̂> where they conflict, g = g_u bit for bit elsewhere."""
    g_u, g_r = normal(shapes, seed, dtype), normal(shapes, seed + 1, dtype)
    edited, _ = project(g_u, g_r, strength=strength, scope=scope)
    members = [[i] for i in range(len(shapes))] if scope == "per_tensor" else [list(range(len(shapes)))]
    for group in members:
        u, r, g = ([each[i] for i in group] for each in (g_u, g_r, edited))
        along = inner(u, r) / norm(r)
        if along >= 0:
            if along > 1e-6 * norm(u):
                assert equal(g, u)
        else:
            assert inner(g, r) / norm(r) == pytest.approx((1 - strength) * along, abs=TOLERANCE[dtype] * norm(u))
            # nothing changes across r
            across = [
                x.double() - y.double() - strength * -along / norm(r) * z.double()
                for x, y, z in zip(g, u, r, strict=True)
            ]
            assert norm(across) <= TOLERANCE[dtype] * norm(u)


@given(shapes, st.integers(0, 10**6), st.floats(0.01, 1), st.sampled_from(SCOPES))
def test_official_property(shapes, seed, strength, scope) -> None:
    """doco §6.5: <g, b̂> = |cosθ| (λ - ‖g_u‖) where they conflict."""
    g_u, g_r = normal(shapes, seed), normal(shapes, seed + 1)
    edited, stats = project(g_u, g_r, strength=strength, scope=scope, formula="official_cosine", eps=0.0)
    members = [[i] for i in range(len(shapes))] if scope == "per_tensor" else [list(range(len(shapes)))]
    for k, group in enumerate(members):
        u, r, g = ([each[i] for i in group] for each in (g_u, g_r, edited))
        cosine = inner(u, r) / norm(u) / norm(r)
        assert stats.conflicting[k].item() == (cosine < 0)
        if cosine < 0:
            expected = abs(cosine) * (strength - norm(u))
            assert inner(g, r) / norm(r) == pytest.approx(expected, abs=1e-12 * max(1, norm(u)))
        else:
            assert equal(g, u)


@given(
    shapes,
    st.integers(0, 10**6),
    dtypes,
    st.floats(0, 2),
    st.sampled_from(SCOPES),
    st.sampled_from(FORMULAS),
    st.data(),
)
def test_project_is_the_oracle(shapes, seed, dtype, strength, scope, formula, data) -> None:
    g_u, g_r = normal(shapes, seed, dtype), normal(shapes, seed + 1, dtype)
    for i in range(len(shapes)):  # some tensors are missing or zero
        case = data.draw(st.sampled_from(("both",) * 6 + ("no u", "no r", "zero u", "zero r")))
        side, make = (g_u if case.endswith("u") else g_r), {"n": lambda t: None, "z": torch.zeros_like}
        if case != "both":
            side[i] = make[case[0]](side[i])
    edited, stats = project(g_u, g_r, strength=strength, scope=scope, formula=formula)
    expected, wanted = oracle.project(g_u, g_r, strength=strength, scope=scope, formula=formula)
    assert [g is None for g in edited] == [u is None for u in g_u] == [g is None for g in expected]
    assert [g.dtype for g in edited if g is not None] == [dtype] * sum(u is not None for u in g_u)
    present = [(g, e, u) for g, e, u in zip(edited, expected, g_u, strict=True) if g is not None]
    scale = norm([u for _, _, u in present]) + strength
    assert close([g for g, _, _ in present], [e for _, e, _ in present], scale, dtype)
    loose = max(TOLERANCE[dtype], 2e-6) if dtype != torch.float64 else 1e-12
    for name in ("cosine", "removed", "norm"):
        found, right = getattr(stats, name).double(), getattr(wanted, name)
        torch.testing.assert_close(found, right, atol=loose * max(1, scale), rtol=loose)
    clear = wanted.cosine.abs() > 1e-5
    assert torch.equal(stats.conflicting[clear], wanted.conflicting[clear])


@given(shapes, st.integers(0, 10**6), dtypes, st.sampled_from(SCOPES), st.sampled_from(FORMULAS))
def test_strength_zero_hands_back_the_same_tensors(shapes, seed, dtype, scope, formula) -> None:
    g_u, g_r = normal(shapes, seed, dtype), normal(shapes, seed + 1, dtype)
    edited, stats = project(g_u, g_r, strength=0.0, scope=scope, formula=formula)
    assert all(g is u for g, u in zip(edited, g_u, strict=True))
    log = stats.as_log()
    assert log["removed_norm"] == log["removed_share"] == 0
    assert torch.equal(stats.conflicting, project(g_u, g_r, scope=scope)[1].conflicting)


@given(shapes, st.integers(0, 10**6), st.sampled_from(FORMULAS), st.integers(-8, 8))
def test_only_the_direction_of_the_retain_gradient_counts(shapes, seed, formula, exponent) -> None:
    g_u, g_r = normal(shapes, seed), normal(shapes, seed + 1)
    scaled = [r * 2.0**exponent for r in g_r]
    one, other = (project(g_u, each, formula=formula, eps=0.0)[0] for each in (g_r, scaled))
    assert close(one, other, norm(g_u) + 1, torch.float64)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("formula", FORMULAS)
def test_no_conflict_keeps_every_bit(scope: str, formula: str) -> None:
    """Also the sign of zero, which u + 0·r would lose."""
    g_u = [torch.tensor([-0.0, 1.0, -0.0]), torch.tensor([2.0])]
    g_r = [torch.tensor([-1.0, 3.0, 1.0]), torch.tensor([1.0])]
    assert equal(project(g_u, g_r, scope=scope, formula=formula)[0], g_u)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_zero_retain_gradient_never_conflicts(dtype: torch.dtype, formula: str, scope: str) -> None:
    g_u = normal([(3, 2), (4,)], 0, dtype)
    zeros = [torch.zeros_like(u) for u in g_u]
    edited, stats = project(g_u, zeros, formula=formula, scope=scope)
    assert equal(edited, g_u)
    assert stats.as_log() == {
        "conflict_share": 0,
        "conflict_cosine": 0,
        "removed_norm": 0,
        "removed_share": 0,
    }
    edited, stats = project(zeros, g_u, formula=formula, scope=scope)
    assert equal(edited, zeros)
    assert stats.as_log()["removed_share"] == 0


def test_a_retain_gradient_too_small_to_square_counts_as_zero() -> None:
    g_u, g_r = [torch.tensor([-1.0, 2.0])], [torch.tensor([1e-30, 0.0])]
    edited, stats = project(g_u, g_r)
    assert equal(edited, g_u)
    assert not stats.conflicting.any()
    found = pcgrad([g_u, g_r], generator=torch.Generator())
    assert equal(found, [g_u[0] + g_r[0]])


def test_missing_gradients_take_no_part() -> None:
    u, r = torch.tensor([-3.0, 4.0]), torch.tensor([2.0, 0.0])
    other = torch.tensor([9.0])
    for scope in SCOPES:
        edited, stats = project([None, u, other], [other, r, None], scope=scope)
        assert edited[0] is None
        assert edited[2] is other
        torch.testing.assert_close(edited[1], torch.tensor([0.0, 4.0]))
        assert stats.cosine.tolist() == pytest.approx([-0.6])
    edited, stats = project([None, u], [r, None])
    assert edited[0] is None
    assert edited[1] is u
    assert set(stats.as_log().values()) == {0.0}
    assert project([], [])[0] == []


def test_a_broken_gradient_shows_in_the_update() -> None:
    """Taking NaN for "no conflict" would let the unlearning gradient through unguarded."""
    for scope in SCOPES:
        for formula in FORMULAS:
            (g,), stats = project([torch.ones(2)], [torch.tensor([1.0, math.nan])], scope=scope, formula=formula)
            assert g.isnan().all()
            assert math.isnan(stats.as_log()["conflict_cosine"])


def test_inputs_are_not_changed_and_no_graph_is_kept() -> None:
    u, r = torch.tensor([-3.0, 4.0], requires_grad=True), torch.tensor([2.0, 0.0], requires_grad=True)
    (g,), _ = project([u], [r])
    assert not g.requires_grad
    assert u.tolist() == [-3.0, 4.0]
    g.zero_()
    assert u.tolist() == [-3.0, 4.0]


def test_memory_layout_does_not_matter() -> None:
    g_u = normal([(2, 3, 4, 5)], 0)
    g_r = [-g_u[0] + r for r in normal([(2, 3, 4, 5)], 1)]
    last = [u.contiguous(memory_format=torch.channels_last) for u in g_u]
    expected = project(g_u, g_r)[0]
    torch.testing.assert_close(project(last, g_r)[0], expected)
    assert not torch.equal(expected[0], g_u[0])


def test_long_tensors_keep_their_digits() -> None:
    """One fp32 dot product of this length is off by so much that a conflict would stay behind."""
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(3_000_001, generator=generator).abs()
    u = -r + torch.randn(3_000_001, generator=generator)
    (g,), stats = project([u], [r])
    exact = float(torch.nn.functional.cosine_similarity(u.double(), r.double(), dim=0))
    assert stats.cosine.item() == pytest.approx(exact, abs=1e-5)
    assert abs(inner([g], [r])) / norm([r]) <= 1e-5 * norm([u])


def test_bfloat16_accumulates_in_float32() -> None:
    """The sum of 4096 ones sticks at 256 in bf16."""
    u = torch.cat([torch.full((4096,), -1.0), torch.full((4096,), 1.0)]).bfloat16()
    r = torch.cat([torch.ones(4096), torch.zeros(4096)]).bfloat16()
    (g,), stats = project([u], [r])
    assert g.float().tolist() == [0.0] * 4096 + [1.0] * 4096
    assert stats.removed.item() == 64
    assert stats.cosine.item() == pytest.approx(-math.sqrt(0.5), rel=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_on_a_network_spares_the_retain_loss(scope: str) -> None:
    """Real gradients: a small step against g_u raises the retain loss, the same step against g does not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x, y = torch.randn(16, 3).double(), torch.randn(16, 2).double()
    parameters = list(net.parameters())

    def retain() -> Tensor:
        return (net(x) - y).square().mean()

    g_r = torch.autograd.grad(retain(), parameters)
    g_u = torch.autograd.grad((net(x) + y).square().mean(), parameters)
    assert inner(g_u, g_r) < 0
    edited, stats = project(g_u, g_r, scope=scope)
    assert stats.conflicting.any()
    before = retain().item()

    def after(step: list[Tensor]) -> float:
        with torch.no_grad():
            for p, g in zip(parameters, step, strict=True):
                p -= 1e-5 * g
            value = retain().item()
            for p, g in zip(parameters, step, strict=True):
                p += 1e-5 * g
        return value

    harm = after(list(g_u)) - before
    assert harm > 0
    assert after(edited) - before < 1e-3 * harm


# ---- errors ----


def test_lists_must_match() -> None:
    t = torch.ones(2)
    with pytest.raises(ConfigError, match="1 in g_u, 2 in g_r"):
        project([t], [t, t])
    with pytest.raises(ConfigError, match=r"gradient 1 has two shapes.*\(2,\) in g_u, \(3,\) in g_r"):
        project([t, t], [t, torch.ones(3)])
    with pytest.raises(ConfigError, match=r"gradient 0 of g_r must be .*int64"):
        project([t], [torch.ones(2, dtype=torch.int64)])
    with pytest.raises(ConfigError, match="gradient 0 of g_u must be a dense"):
        project([t.to_sparse()], [t])
    with pytest.raises(ConfigError, match="at least one task"):
        pcgrad([], generator=torch.Generator())
    with pytest.raises(ConfigError, match=r"gradient 0 has two shapes.*task 2"):
        pcgrad([[None], [t], [torch.ones(3)]], generator=torch.Generator())


def test_settings_are_checked_all_at_once() -> None:
    t = torch.ones(2)
    with pytest.raises(ConfigError, match="4 mistakes") as caught:
        project([t], [t], strength=-1, scope="globl", formula="orthogonl", eps=math.inf)
    for part in ("found -1", "did you mean 'global'?", "did you mean 'orthogonal'?", "found inf"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="strength"):
        project([t], [t], strength=math.nan)
    with pytest.raises(ConfigError, match="no scope is called 'tensor'"):
        pcgrad([[t]], generator=torch.Generator(), scope="tensor")
