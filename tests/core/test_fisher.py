import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from tests.oracle import fisher as oracle
from torch import Tensor, nn

from unteach.core import persample
from unteach.core.fisher import draw, fisher, kronecker, mas
from unteach.core.seeds import generator
from unteach.errors import ConfigError, DataError, ModelError, NumericsError

# torch's own, on the even kernel of convs()
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

KINDS = ("exact", "empirical", "official")
IMPLEMENTATIONS = ("hooks", "vmap", "loop")


class Residual(nn.Module):
    """Batch norm, functional and in-place ReLU, a stride, an added shortcut."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)), inplace=True)
        x = F.relu(self.bn2(self.conv(x)) + self.shortcut(x))
        return self.fc(x.mean((2, 3)))


class Tokens(nn.Module):
    """Linear and norm layers on (B, T, d)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(4, 6), nn.Linear(6, 6)
        self.norm, self.group = nn.LayerNorm(6), nn.GroupNorm(2, 6)
        self.fc = nn.Linear(6, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, (-1, 4))
        x = self.embed(x)
        x = x + self.mix(input=F.gelu(self.norm(x)))
        return self.fc(self.group(x.mT).mean(-1))


def convs(classes: int) -> nn.Module:
    """Groups, dilation, strides and paddings of all kinds, and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same", dilation=2, groups=3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(6, 4, (3, 2), padding=(1, 0), padding_mode="circular", groups=2, stride=(2, 1)),
        nn.ReLU(),
        nn.Conv2d(4, 4, (2, 2), padding="same"),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 3, 2, padding="valid", bias=False),
        nn.Flatten(),
        nn.Linear(3 * 2 * 4, classes),
    )


def mlp(classes: int) -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, classes))
    return nn.Sequential(*layers)


MODELS = {"mlp": mlp, "residual": Residual, "convs": convs, "tokens": Tokens}


def build(name: str, classes: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with weights of size one and batch-norm statistics that training has moved."""
    model = MODELS[name](classes)
    g = generator(0, name)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.4 * torch.randn(tensor.shape, generator=g))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=g))
            module.weight.data += 1
    return model.to(dtype)


def data(sizes: tuple[int, ...] = (4, 3), classes: int = 3, dtype: torch.dtype = torch.float32) -> oracle.Batches:
    g = generator(0, "data")
    draw = lambda n: torch.randn(n, 3, 6, 6, generator=g, dtype=dtype)  # noqa: E731
    return [(draw(n), torch.randint(classes, (n,), generator=g)) for n in sizes]


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5) -> None:
    """Same keys in the same order; every tensor to ``rtol`` of its largest value (and none all zero)."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        largest = float(value.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(found[name], value.to(found[name].dtype), rtol=rtol, atol=rtol * largest)


def reference(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval()


def doubled(batches: oracle.Batches) -> oracle.Batches:
    return [(x.double(), y) for x, y in batches]


# ---- against one sample and one class at a time ----


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_against_oracle(name: str, kind: str, implementation: str) -> None:
    model, batches, slow = build(name), data(), reference(build(name))
    expected = oracle.fisher(slow, doubled(batches), kind, parameters(slow))
    found = fisher(model, batches, kind=kind, implementation=implementation, chunk=3)
    assert_close(found, expected)
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_mas_against_oracle(name: str, implementation: str) -> None:
    model, batches, slow = build(name), data(), reference(build(name))
    expected = oracle.mas(slow, doubled(batches), parameters(slow))
    assert_close(mas(model, batches, implementation=implementation, chunk=2), expected)


@pytest.mark.parametrize("kind", [*KINDS, "sampled"])
def test_softmax_over_the_classes_seen(kind: str) -> None:
    model = build("mlp", 5)
    classes = torch.tensor([True, False, True, True, False])
    batches = [(x, torch.tensor([0, 2, 3])[y]) for x, y in data()]
    found = fisher(model, batches, kind=kind, classes=classes, generator=generator(0, "labels"))
    assert (found["4.bias"] == 0).tolist() == (~classes).tolist()
    if kind != "sampled":
        slow = reference(model)
        assert_close(found, oracle.fisher(slow, doubled(batches), kind, parameters(slow), [0, 2, 3]))


def test_linear_softmax_by_hand() -> None:
    """One sample, p = softmax(Wx): the diagonal of (diag p - p pᵀ) ⊗ x xᵀ."""
    model = nn.Linear(2, 3)
    model.weight.data = torch.tensor([[0.0, 0.0], [0.0, 0.0], [torch.log(torch.tensor(2.0)), 0.0]])
    model.bias.data.zero_()
    x = torch.tensor([[1.0, 3.0]])  # p = (1, 1, 2) / 4
    variance = torch.tensor([3 / 16, 3 / 16, 4 / 16])
    found = fisher(model, [(x, torch.tensor([2]))])
    torch.testing.assert_close(found["weight"], torch.outer(variance, torch.tensor([1.0, 9.0])))
    torch.testing.assert_close(found["bias"], variance)
    official = fisher(model, [(x, torch.tensor([2]))], kind="official")
    torch.testing.assert_close(official["bias"], 0.5 * torch.tensor([1 / 16, 1 / 16, 4 / 16]))


@pytest.mark.parametrize("kind", KINDS)
def test_scale_is_the_mean_over_samples_however_they_are_cut(kind: str) -> None:
    model, ((x, y),) = build("residual"), data((6,))
    whole = fisher(model, [(x, y)], kind=kind)
    parts = [(x[:1], y[:1]), (x[1:], y[1:])]
    assert_close(fisher(model, parts, kind=kind, chunk=2), whole)
    assert_close(fisher(model, parts * 3, kind=kind), whole)


# ---- one backward pass a batch ----


def test_sampled_is_the_square_of_the_gradient_at_drawn_labels() -> None:
    model, batches, slow = build("residual"), data((4, 3, 5)), reference(build("residual"))
    draws, everything = generator(0, "labels"), torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        labels = [draw(copy.deepcopy(model).eval()(x), everything, draws) for x, _ in batches]
    assert len(set(torch.cat(labels).tolist())) > 1
    found = fisher(model, batches, kind="sampled", generator=generator(0, "labels"))
    assert_close(found, oracle.of_batches(slow, doubled(batches), labels, parameters(slow), mean=False))
    again = fisher(model, batches, kind="sampled", generator=generator(0, "labels"))
    assert all(torch.equal(a, b) for a, b in zip(found.values(), again.values(), strict=True))
    other = fisher(model, batches, kind="sampled", generator=generator(1, "labels"))
    assert not any(torch.equal(a, b) for a, b in zip(found.values(), other.values(), strict=True))


def test_sampled_converges_to_exact() -> None:
    """1,000 batches: each entry has a relative error of about √(2 / 1000) = 4.5 %."""
    model, batches = build("mlp"), data((6, 4))
    flat = lambda found: torch.cat([value.flatten() for value in found.values()])  # noqa: E731
    exact = flat(fisher(model, batches, kind="exact"))
    sampled = flat(fisher(model, batches * 500, kind="sampled", generator=generator(0, "labels")))
    error = lambda other: float((other - exact).norm() / exact.norm())  # noqa: E731
    assert error(sampled) < 0.1
    assert error(flat(fisher(model, batches, kind="empirical"))) > 0.2


def test_draws_follow_the_softmax_over_the_allowed() -> None:
    logits = torch.tensor([0.0, 5.0, 1.0, -1.0, 9.0]).repeat(20_000, 1)
    allowed = torch.tensor([True, False, True, True, False])
    counts = torch.bincount(draw(logits, allowed, generator(0, "labels")), minlength=5)
    p = torch.softmax(torch.tensor([0.0, 1.0, -1.0]), 0)
    assert counts[~allowed].sum() == 0
    torch.testing.assert_close(counts[allowed] / 20_000, p, atol=0.01, rtol=0)


def test_batch_squares_the_mean_gradient() -> None:
    model, batches, slow = build("convs"), data((4, 3)), reference(build("convs"))
    expected = oracle.of_batches(slow, doubled(batches), [y for _, y in batches], parameters(slow), mean=True)
    assert_close(fisher(model, batches, kind="batch"), expected)
    ones = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    assert_close(fisher(model, ones, kind="batch"), fisher(model, ones, kind="empirical"))


# ---- what is handed back ----


@pytest.mark.parametrize("kind", [*KINDS, "sampled", "batch", "mas", "kronecker"])
def test_the_model_is_left_as_it_was(kind: str) -> None:
    model = build("convs").train()
    model[1].eval()
    model[7].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    batches = data()
    if kind == "mas":
        mas(model, batches)
    elif kind == "kronecker":
        kronecker(model, batches, layers=["6", "10"])
    else:
        fisher(model, batches, kind=kind, generator=generator(0, "labels"))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "1.running_mean" in before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_modes_come_back_after_an_error() -> None:
    model = build("mlp").train()
    model[2].eval()
    with pytest.raises(DataError):
        fisher(model, [*data(), (data()[0][0], torch.full((4,), 9))])
    assert [m.training for m in model] == [True, True, False, True, True]


def test_under_no_grad_and_without_effect_on_later_training() -> None:
    model = build("residual")
    with torch.no_grad():
        found = fisher(model, data())
    assert_close(found, fisher(model, data()))
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_chosen_parameters_in_their_order(implementation: str) -> None:
    model = build("residual")
    model.stem.weight.requires_grad_(False)
    everything = fisher(model, data(), implementation=implementation)
    assert list(everything) == [name for name, _ in model.named_parameters() if name != "stem.weight"]
    some = {"head": model.fc.weight, "first": model.bn1.bias, "conv.weight": model.conv.weight}
    found = fisher(model, data(), params=some, implementation=implementation)
    names = ("fc.weight", "bn1.bias", "conv.weight")
    assert_close(found, dict(zip(some, (everything[name] for name in names), strict=True)))


# ---- which implementation ----


class Wrapped(nn.Module):
    """A model in which layer hooks would be wrong, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Linear(108, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3)) if way == "own parameter" else 1.0
        if way == "shared":
            self.d = nn.Linear(4, 4)
            self.d.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.way == "reads a value":
            x = x * (1 + abs(float(x.sum())) * 1e-3)
        x = torch.tanh(self.a(x))
        if self.way == "positions first":  # (3, B, 4)
            return self.c(torch.tanh(self.b(torch.stack([x, 2 * x, x.square()]))).sum(0))
        h = self.b(x)
        if self.way == "called twice":
            h = self.b(torch.tanh(h))
        if self.way == "functional use":
            h = F.linear(torch.tanh(h), self.b.weight)
        if self.way == "shared":
            h = self.d(torch.tanh(h))
        return self.c(torch.tanh(h)) * self.scale


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", MODELS)
def test_auto_takes_hooks(name: str) -> None:
    model = build(name)
    with persample.evaluating(model):
        assert persample.choose(persample.target(model), data()[0][0]) is persample.hooks


@pytest.mark.parametrize(
    ("way", "reason", "chosen"),
    [
        ("own parameter", "no rule for Wrapped", "vmap"),
        ("called twice", "b is called 2 times", "vmap"),
        ("functional use", "b.weight is used 2 times", "vmap"),
        ("shared", "used 2 times", "vmap"),
        ("positions first", "the first dimension of b's input is not the batch", "vmap"),
        ("subclass", "no rule for Scaled", "vmap"),
        ("reads a value", "no rule for Scaled", "loop"),
    ],
)
def test_auto_falls_back_and_says_why(way: str, reason: str, chosen: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Wrapped(way)
    if way in ("subclass", "reads a value"):
        model.c = Scaled(4, 3)
    batches, slow = data(), reference(model)
    with caplog.at_level(logging.DEBUG, "unteach.core.persample"):
        found = fisher(model, batches)
    assert reason in caplog.text
    assert ("no vmap for" in caplog.text) == (chosen == "loop")
    assert_close(found, oracle.fisher(slow, doubled(batches), "exact", parameters(slow)))
    with pytest.raises(ModelError, match=reason):
        fisher(model, batches, implementation="hooks")


def test_vmap_that_cannot_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"vmap does not run this model.*'loop'"):
        fisher(Wrapped("reads a value"), data(), implementation="vmap")


def test_hooks_of_the_users_own_count() -> None:
    """A layer's own output, before and whatever other hooks make of it."""
    model = build("mlp")
    model[1].register_forward_hook(lambda module, args, output: 3 * output)
    model[4].register_forward_pre_hook(lambda module, args: (args[0].square(),))
    slow = reference(model)
    expected = oracle.fisher(slow, doubled(data()), "exact", parameters(slow))
    assert_close(fisher(model, data(), implementation="hooks"), expected)


def test_an_input_changed_in_place_is_not_missed() -> None:
    """Autograd itself refuses this; hooks on the first layer would not notice."""

    class Changed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            h = self[0](x := x.flatten(1) + 0)
            x.mul_(2)
            return self[1](h)

    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"0's input is changed in place afterwards"):
        fisher(Changed(nn.Linear(108, 4), nn.Linear(4, 3)), data(), implementation="hooks")


def test_a_model_that_needs_contiguous_activations() -> None:
    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 2, 3), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(len(x), -1))

    torch.manual_seed(0)
    model, batches, slow = View(), data(), reference(View())
    slow.load_state_dict(model.state_dict())
    assert not persample.channels_last(model, batches[0][0])
    assert persample.channels_last(build("convs"), batches[0][0])
    assert_close(fisher(model, batches), oracle.fisher(slow, doubled(batches), "exact", parameters(slow)))


def test_convolution_in_pieces_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of samples unfolded at a time changes nothing."""
    model, batches = build("convs"), data((7,))
    whole = fisher(model, batches)
    for entries in (0, 4000):
        monkeypatch.setattr(persample, "_ENTRIES", {True: entries})
        assert_close(fisher(model, batches), whole)


# ---- Kronecker factors ----


def blocks(factors: tuple[Tensor, Tensor]) -> Tensor:
    a, g = factors
    return torch.kron(g, a)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [None, (2, 3)])
def test_kronecker_is_exact_for_one_sample(kernel: tuple[int, int] | None, bias: bool) -> None:
    torch.manual_seed(0)
    if kernel is None:
        layer: nn.Linear | nn.Conv2d = nn.Linear(4, 3, bias)
        x = torch.randn(1, 4, dtype=torch.float64)
        model = nn.Sequential(layer)
    else:  # one position
        layer = nn.Conv2d(2, 3, kernel, bias=bias)
        x = torch.randn(1, 2, 2, 3, dtype=torch.float64)
        model = nn.Sequential(layer, nn.Flatten())
    model = model.double()
    batches = [(x, torch.tensor([0]))]
    factors = kronecker(model, batches)["0"]
    expected = oracle.block(model, batches, layer)
    torch.testing.assert_close(blocks(factors), expected)
    change = torch.randn(3, len(factors[0]), dtype=torch.float64)
    form = torch.trace(change.T @ factors[1] @ change @ factors[0])
    torch.testing.assert_close(form, change.flatten() @ expected @ change.flatten())


def test_kronecker_factors_are_means_over_samples() -> None:
    """At p = 1/3 everywhere G is one matrix for all samples, so that the factors are exact for any number."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3, dtype=torch.float64))
    for p in model.parameters():
        p.data.zero_()
    batches = doubled(data((5, 2)))
    torch.testing.assert_close(blocks(kronecker(model, batches)["1"]), oracle.block(model, batches, model[1]))


def test_kronecker_of_positions() -> None:
    """A 1 x 1 convolution over (C, 1, T) is a linear layer over (T, C); factors from their definition."""
    torch.manual_seed(0)
    linear, conv = nn.Linear(4, 5, dtype=torch.float64), nn.Conv2d(4, 5, 1, dtype=torch.float64)
    conv.weight.data, conv.bias.data = linear.weight.data[:, :, None, None].clone(), linear.bias.data.clone()
    x, y = torch.randn(6, 7, 4, dtype=torch.float64), torch.randint(5, (6,))

    class Over(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(self.layer, nn.Linear):
                return torch.tanh(self.layer(x)).sum(1)
            return torch.tanh(self.layer(x)).sum((2, 3))

    a, g = kronecker(Over(linear), [(x, y)], kind="empirical")["layer"]
    other = kronecker(Over(conv), [(x.mT.unsqueeze(2), y)], kind="empirical")["layer"]
    torch.testing.assert_close(other, (a, g))
    ones = torch.cat([x, torch.ones(6, 7, 1)], -1)
    torch.testing.assert_close(a, torch.einsum("bti,btj->ij", ones, ones) / 6)
    out = linear(x).detach().requires_grad_()
    (delta,) = torch.autograd.grad(-F.cross_entropy(torch.tanh(out).sum(1), y, reduction="sum"), out)
    torch.testing.assert_close(g, torch.einsum("bti,btj->ij", delta, delta) / (6 * 7))


def test_kronecker_kinds_and_layers() -> None:
    model, batches = build("residual"), data((4, 3))
    exact = kronecker(model, batches)
    assert list(exact) == ["stem", "conv", "shortcut", "fc"]
    assert [tuple(a.shape) for a, _ in exact.values()] == [(28, 28), (36, 36), (5, 5), (7, 7)]
    fc = kronecker(model, batches, layers=["fc"])
    assert list(fc) == ["fc"]
    torch.testing.assert_close(fc["fc"], exact["fc"])
    sampled = kronecker(model, batches * 300, kind="sampled", generator=generator(0, "labels"), layers=["fc"])
    torch.testing.assert_close(sampled["fc"][1], exact["fc"][1], atol=0.02, rtol=0)
    empirical = kronecker(model, batches, kind="empirical", layers=["fc"])
    assert not torch.allclose(empirical["fc"][1], exact["fc"][1], atol=0.02, rtol=0)
    torch.testing.assert_close(torch.diagonal(exact["fc"][1]), fisher(model, batches)["fc.bias"])


# ---- errors ----


def bad_model(change: str) -> nn.Module:
    model = build("mlp")
    if change == "frozen":
        model.requires_grad_(False)
    if change == "unused":
        model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    if change == "batch statistics":
        model[2] = nn.BatchNorm1d(8, track_running_stats=False)
    if change == "three dimensions":
        model.append(nn.Unflatten(1, (1, 3)))
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("frozen", "no parameter to take a gradient of"),
        ("unused", "do not depend on 'spare'"),
        ("batch statistics", "'2' normalises by the batch"),
        ("three dimensions", r"must map 2 samples to logits \(2, classes\).*\(2, 1, 3\)"),
    ],
)
@pytest.mark.parametrize("kind", ["exact", "batch"])
def test_models_that_have_no_fisher(change: str, message: str, kind: str) -> None:
    with pytest.raises(ModelError, match=message):
        fisher(bad_model(change), data(), kind=kind)


def test_parameters_that_have_no_fisher() -> None:
    model, other = build("mlp"), build("mlp")
    with pytest.raises(ModelError, match="params must be parameters of this Sequential; found: 'w'"):
        fisher(model, data(), params={"w": other[1].weight})
    model[1].weight.requires_grad_(False)
    with pytest.raises(ModelError, match="requires_grad is False for 'w'"):
        fisher(model, data(), params={"w": model[1].weight, "b": model[1].bias})


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batch was given"),
        ([(torch.zeros(0, 3, 6, 6), torch.zeros(0, dtype=torch.int64))], "no samples"),
        ([*data(), (torch.zeros(0, 3, 6, 6), torch.zeros(0, dtype=torch.int64))], "no samples"),
        ([(torch.zeros(2, 3, 6, 6), torch.tensor([0, 3]))], r"\[0, 3\).*labels from 0 to 3"),
        ([(torch.zeros(2, 3, 6, 6), torch.tensor([-1, 0]))], "labels from -1 to 0"),
        ([(torch.zeros(2, 3, 6, 6), torch.tensor([0]))], "one for each of the 2 samples"),
        ([(torch.zeros(2, 3, 6, 6), torch.tensor([0.0, 1.0]))], "float32"),
    ],
)
@pytest.mark.parametrize("kind", ["exact", "batch"])
def test_bad_batches(batches: oracle.Batches, message: str, kind: str) -> None:
    with pytest.raises(DataError, match=message):
        fisher(build("mlp"), batches, kind=kind)


def test_bad_settings() -> None:
    model, batches = build("mlp"), data()
    with pytest.raises(ConfigError) as error:
        fisher(model, batches, kind="exakt", implementation="hook", chunk=0)
    assert all(part in str(error.value) for part in ("3 mistakes", "'exact'", "'hooks'", "found 0"))
    with pytest.raises(ConfigError, match="needs a generator"):
        fisher(model, batches, kind="sampled")
    for classes in (torch.ones(4, dtype=torch.bool), torch.ones(3), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(ConfigError, match=r"bool tensor \(3,\)"):
            fisher(model, batches, classes=classes)
    with pytest.raises(DataError, match="restricted"):
        fisher(model, batches, classes=torch.tensor([True, False, False]))


def test_what_is_not_finite_is_refused() -> None:
    ((x, y),) = data((3,))
    x[1] = torch.inf
    with pytest.raises(NumericsError, match=r"importance of '1.weight' is not finite"):
        fisher(build("mlp"), [(x, y)])


def test_layers_that_have_no_kronecker_factors() -> None:
    with pytest.raises(ModelError, match="grouped convolution; found: '0' with 3 groups"):
        kronecker(build("convs"), data())
    with pytest.raises(ModelError, match="is called 'fcc'; to do: did you mean 'fc'"):
        kronecker(build("residual"), data(), layers=["fcc"])
    with pytest.raises(ModelError, match=r"'b' to be called once.*2 calls"):
        kronecker(Wrapped("called twice"), data())
