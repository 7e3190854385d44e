import pytest
import torch
from tests.oracle.refresh import dense_kronecker
from torch import Tensor

from unteach.core import ascent
from unteach.core.curvature import Diagonal
from unteach.core.seeds import generator
from unteach.errors import ModelError, NumericsError


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "tests ascent"), dtype=dtype)


def spd(n: int, seed: int) -> Tensor:
    root = normal(n, n, seed=seed)
    return root @ root.T / n


def test_pinned_directions() -> None:
    d, theta = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([6.0, 8.0]), torch.tensor([0.0])]
    assert ascent.normalise(d, theta, "none") == d
    for got, want in zip(ascent.normalise(d, theta, "global"), ([0.6, 0.0], [0.8]), strict=True):
        torch.testing.assert_close(got, torch.tensor(want))
    for got, want in zip(ascent.normalise(d, theta, "per-tensor"), ([10.0, 0.0], [0.0]), strict=True):
        torch.testing.assert_close(got, torch.tensor(want))


def test_a_zero_gradient_stays_zero() -> None:
    d, theta = [torch.zeros(3)], [torch.ones(3)]
    for how in ("global", "per-tensor"):
        assert torch.equal(ascent.normalise(d, theta, how)[0], torch.zeros(3))
    assert torch.equal(ascent.adaptive(d, theta, 0.01)[0], torch.zeros(3))


def test_adaptive_is_scaled_twice() -> None:
    # T = (2, 1), T g = (6, 4·1): length √52; T² g = (12, 4).
    (got,) = ascent.adaptive([torch.tensor([3.0, 4.0])], [torch.tensor([-1.5, 0.5])], 0.5)
    torch.testing.assert_close(got, torch.tensor([12.0, 4.0]) / 52**0.5)


def test_inputs_are_left_alone() -> None:
    d, theta = [normal(3, 2), normal(2, seed=1)], [normal(3, 2, seed=2), normal(2, seed=3)]
    kept = [t.clone() for t in (*d, *theta)]
    ascent.normalise(d, theta, "global")
    ascent.normalise(d, theta, "per-tensor")
    ascent.adaptive(d, theta, 0.1)
    diagonal = Diagonal([t.abs() for t in theta])
    diagonal.times(d)
    assert all(torch.equal(a, b) for a, b in zip((*d, *theta), kept, strict=True))


def test_climb() -> None:
    theta = [torch.ones(2), torch.zeros(1)]
    ascent.climb_(theta, [torch.tensor([1.0, 2.0]), torch.tensor([3.0])], 0.5)
    assert [t.tolist() for t in theta] == [[1.5, 2.0], [1.5]]
    ascent.climb_([], [])


def test_norm_and_dot() -> None:
    a, b = [torch.tensor([3.0]), torch.tensor([[4.0, 0.0]])], [torch.tensor([2.0]), torch.tensor([[1.0, 9.0]])]
    assert float(ascent.norm(a)) == 5
    assert float(ascent.dot(a, b)) == 10
    assert float(ascent.norm([])) == float(ascent.dot([], [])) == 0


def test_forms_of_the_inverse() -> None:
    f = torch.tensor([0.0, 3.0])
    assert ascent.inverse(f, 1.0).tolist() == [1.0, 0.25]
    assert ascent.inverse(f, 0.5).tolist() == pytest.approx([2.0, 1 / 3.5])
    assert ascent.inverse(f, 1e-3, "official").tolist() == pytest.approx([1.0, 1 / 1.003])


def test_a_root_applied_twice_is_p() -> None:
    x = [normal(4, 3, seed=4), normal(4, seed=5), normal(2, seed=6)]
    diagonal, shapes = Diagonal([t.abs() + 0.1 for t in x]), [t.shape for t in x]
    kron = ascent.damped_inverse({"l": (spd(4, 1), spd(4, 2))}, ["l.weight", "l.bias", "other"], shapes, 0.1)
    for p in (diagonal, kron):
        for twice, once in zip(p.root(p.root(x)), p.times(x), strict=True):
            torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_kronecker_is_the_dense_inverse(shape: tuple[int, ...], with_bias: bool) -> None:
    fan_in = torch.Size(shape[1:]).numel()
    a, g = spd(fan_in + with_bias, 1), spd(shape[0], 2)
    w, b = normal(*shape, seed=3), normal(shape[0], seed=4)
    p = ascent.damped_inverse({"l": (a, g)}, ["l.weight", "l.bias"], [w.shape, b.shape], 0.3)
    joint = torch.cat([w.flatten(1), b[:, None]], 1) if with_bias else w.flatten(1)
    expected = (dense_kronecker(a, g, 0.3) @ joint.reshape(-1)).view_as(joint)
    got_w, got_b = p.times([w, b])
    torch.testing.assert_close(got_w.flatten(1), expected[:, :fan_in])
    torch.testing.assert_close(got_b, expected[:, -1] if with_bias else b)  # without a factor: P = I
    eigenvalues = torch.linalg.eigvalsh(dense_kronecker(a, g, 0.3))
    torch.testing.assert_close(torch.cat([v.reshape(-1) for v in p.eigenvalues()]).sort().values, eigenvalues)


def test_a_bias_that_does_not_move_leaves_the_block_of_the_weight() -> None:
    a, g, w = spd(4, 1), spd(2, 2), normal(2, 3, seed=3)
    (got,) = ascent.damped_inverse({"l": (a, g)}, ["l.weight"], [w.shape], 0.3).times([w])
    torch.testing.assert_close(got.reshape(-1), dense_kronecker(a[:3, :3], g, 0.3) @ w.reshape(-1))


def test_factors_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match=r"'l' do not fit.*A \(7, 7\)"):
        ascent.damped_inverse({"l": (spd(7, 1), spd(2, 2))}, ["l.weight"], [(2, 3)], 1.0)
    with pytest.raises(NumericsError, match="not finite"):
        ascent.damped_inverse({"l": (spd(3, 1) * torch.nan, spd(2, 2))}, ["l.weight"], [(2, 3)], 1.0)
    assert not ascent.damped_inverse({"elsewhere": (spd(7, 1), spd(2, 2))}, ["l.weight"], [(2, 3)], 1.0).layers


def test_noise_is_one_stream_in_the_tensors_shapes() -> None:
    like = [torch.zeros(3, 2), torch.zeros(5, dtype=torch.bfloat16)]
    noise = ascent.Noise(like)
    first = [t.clone() for t in noise.draw(generator(0, "a"))]
    assert [(t.shape, t.dtype) for t in first] == [(t.shape, t.dtype) for t in like]
    flat = torch.randn(11, generator=generator(0, "a"))
    assert torch.equal(first[0].reshape(-1), flat[:6])
    assert torch.equal(first[1], flat[6:].bfloat16())
    assert not torch.equal(noise.draw(generator(0, "b"))[0], first[0])
    assert torch.equal(noise.draw(generator(0, "a"))[0], first[0])
    assert ascent.Noise([]).draw(generator(0, "a")) == []
