"""Freezing: who is frozen, what is remembered, what an optimizer forgets."""

import copy
import hashlib

import pytest
import torch
from torch import Tensor, nn

from unteach.core.freeze import drop, freeze, mark, named, share
from unteach.errors import ConfigError, ModelError


class Tied(nn.Module):
    """An embedding whose table is also the last layer's, and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.table(x))))


def tied() -> Tied:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tied()


def loss(model: nn.Module, step: int = 0) -> Tensor:
    x = torch.arange(5).roll(step)
    return nn.functional.cross_entropy(model(x), x.flip(0))


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True, foreach=False),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.5, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            value = loss(model, step)
            value.backward()
            return value

        optimizer.step(closure)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_tensors_keep_every_bit_and_the_rest_trains_as_if_alone(kind: str) -> None:
    """Also when the optimizer has momentum of them already."""
    model = tied()
    optimizer = OPTIMIZERS[kind](model.parameters())
    if kind != "lbfgs":  # one state for all
        train(model, optimizer)
        assert len(optimizer.state) == 4
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    frozen = freeze(model, ["head.weight", "middle.bias"])
    assert drop(optimizer, frozen.find(model).values()) is optimizer
    # The slow, obvious twin: an optimizer that never knew the frozen ones, with the others' state copied.
    for name in ("table.weight", "middle.bias"):
        twin.get_parameter(name).requires_grad_(False)
    free = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    other = OPTIMIZERS[kind](free.values())
    for name, p in free.items():
        if model.get_parameter(name) in optimizer.state:
            other.state[p] = copy.deepcopy(optimizer.state[model.get_parameter(name)])
    train(model, optimizer)
    train(twin, other)
    for name, p in model.named_parameters():
        held = name in ("table.weight", "middle.bias")
        assert torch.equal(p, before[name]) == held, name
        assert torch.equal(p, twin.get_parameter(name)), name
        assert (p.grad is None) == held and (p in optimizer.state) <= (not held)
    frozen.verify(model)


def test_without_dropping_decay_and_momentum_move_a_frozen_tensor() -> None:
    """The control: a zero gradient, or none after some steps, is not enough."""
    model = tied()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    frozen = freeze(model, ["middle.weight"])
    loss(model).backward()
    model.middle.weight.grad = torch.zeros_like(model.middle.weight)
    optimizer.step()
    assert frozen.moved(model) == {"middle.weight": "values changed"}
    with pytest.raises(ModelError, match=r"1 of 1 frozen tensors .* middle\.weight: values changed"):
        frozen.verify(model)


def test_one_flipped_bit_is_seen_and_so_is_minus_zero() -> None:
    model = tied()
    model.middle.bias.data[1] = 0.0
    frozen = freeze(model, ["middle.bias", "head.weight"])
    assert frozen.moved(model) == {}
    model.middle.bias.data.view(torch.int32)[3] ^= 1
    assert list(frozen.moved(model)) == ["middle.bias"]
    model.middle.bias.data.view(torch.int32)[3] ^= 1
    assert frozen.moved(model) == {}
    model.middle.bias.data[1] = -0.0
    assert list(frozen.moved(model)) == ["middle.bias"]
    model.half()
    assert frozen.moved(model) == {
        "table.weight": "torch.float32 became torch.float16",
        "middle.bias": "torch.float32 became torch.float16",
    }
    model.float().head.weight = nn.Parameter(torch.zeros(5, 3))
    model.table.weight = model.head.weight
    assert frozen.moved(model)["table.weight"] == "shape (5, 4) became (5, 3)"
    del model.middle
    with pytest.raises(ModelError, match=r"middle\.bias"):
        frozen.moved(model)


def test_marks_do_not_depend_on_layout_and_do_on_content() -> None:
    x = torch.arange(48, dtype=torch.float32).reshape(1, 4, 3, 4)
    assert mark(x) == mark(x.to(memory_format=torch.channels_last))
    assert mark(x).digest != mark(x + 1).digest
    assert mark(x) != mark(x.reshape(4, 12)) and mark(x).digest == mark(x.reshape(4, 12)).digest
    assert mark(torch.zeros(())).shape == () and mark(torch.zeros(0)).shape == (0,)
    assert mark(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    big = torch.zeros(3 << 22, dtype=torch.uint8)  # the digest of pieces is that of the whole
    assert mark(big).digest == hashlib.sha256(bytes(3 << 22)).hexdigest()
    big.untyped_storage().resize_(0)  # looking at it has not pinned it
    with pytest.raises(ModelError, match="meta device"):
        mark(torch.zeros(2, device="meta"))


@pytest.mark.parametrize("name", ["table.weight", "head.weight"])
def test_any_name_of_a_tied_tensor_freezes_it(name: str) -> None:
    model = tied()
    frozen = freeze(model, [name])
    assert frozen.names == ("table.weight",)
    assert not model.head.weight.requires_grad and not model.table.weight.requires_grad
    assert set(frozen.trainable(model)) == {"middle.weight", "middle.bias", "head.bias"}
    assert share(model, [name]) == share(model, ["table.weight", "head.weight"])


def test_share_counts_a_tied_tensor_once() -> None:
    counted = share(tied(), {"head.weight": True, "head.bias": True, "middle.bias": False})
    assert (counted.frozen_tensors, counted.tensors) == (2, 4)
    assert (counted.frozen_parameters, counted.parameters) == (25, 45)
    assert counted.of_tensors == 0.5 and counted.of_parameters == 25 / 45
    assert share(nn.Identity(), []).of_tensors == 0


def test_contradictions_and_shared_memory_are_refused_and_change_nothing() -> None:
    model = tied()
    with pytest.raises(ConfigError, match=r"'head\.weight' and 'table\.weight' are one tied parameter"):
        freeze(model, {"table.weight": True, "head.weight": False})
    freeze(model, {"table.weight": False, "head.weight": False})
    whole = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    model.middle.weight = nn.Parameter(whole[0:4])
    model.head = nn.Linear(4, 5)
    model.head.weight = nn.Parameter(whole[4:9])  # neighbours
    freeze(model, ["middle.weight"]).release(model)
    model.head.weight = nn.Parameter(whole[3:8])  # one row in common
    with pytest.raises(ConfigError, match=r"share memory.*'middle\.weight' and 'head\.weight'"):
        freeze(model, ["middle.weight"])
    assert all(p.requires_grad for p in model.parameters())
    freeze(model, ["middle.weight", "head.weight"])


@pytest.mark.parametrize("names", [["midle.weight"], ["middle.weight", "nothing"]])
def test_unknown_names_are_listed_with_near_ones(names: list[str]) -> None:
    model = tied()
    with pytest.raises(ModelError, match=rf"{names[-1]}.*the model has '"):
        freeze(model, names)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="a list or a mask"):
        freeze(model, "middle.weight")


def test_names_survive_wrappers() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    frozen = freeze(model, ["1.weight"])
    averaged = torch.optim.swa_utils.AveragedModel(model)
    compiled = torch.compile(model, backend="eager")
    for wrapped in (averaged, compiled, torch.compile(averaged, backend="eager")):
        assert set(named(wrapped)) == {"0.weight", "0.bias", "1.weight", "1.bias"}
        frozen.verify(wrapped)
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model[1] = checkpoint_wrapper(model[1])
    frozen.verify(model)
    assert freeze(model, ["1._checkpoint_wrapped_module.bias"]).names == ("1.bias",)

    class Holder(nn.Module):  # a model's own 'module' is a name like any other
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert freeze(Holder(), ["module.weight"]).names == ("module.weight",)


def test_release_gives_the_old_flags_back_and_nothing_frozen_is_plain_training() -> None:
    model, plain = tied(), tied()
    model.middle.bias.requires_grad_(False)
    frozen = freeze(model, ["middle.weight", "middle.bias"])
    frozen.release(model)
    assert model.middle.weight.requires_grad and not model.middle.bias.requires_grad

    model = tied()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    frozen = freeze(model, [])
    drop(optimizer, frozen.find(model).values())
    train(model, optimizer)
    train(plain, OPTIMIZERS["adamw"](plain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert frozen.names == () and frozen.moved(model) == {}


def test_groups_stay_with_their_options_and_names() -> None:
    model = tied()
    parts = list(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": parts[:1], "lr": 1.0}, {"params": parts[1:], "lr": 2.0}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    held = freeze(model, ["table.weight", "middle.bias"]).find(model).values()
    drop(optimizer, held)
    assert [group["param_names"] for group in optimizer.param_groups] == [[], ["middle.weight", "head.bias"]]
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]
    train(model, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    again = drop(torch.optim.AdamW([{"params": parts[:1]}, {"params": parts[1:]}]), held)
    again.load_state_dict(optimizer.state_dict())
    assert len(again.state) == 2


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k != "lbfgs"])
def test_everything_frozen_changes_nothing(kind: str) -> None:
    model = tied()
    optimizer = OPTIMIZERS[kind](model.parameters())
    frozen = freeze(model, list(named(model)))
    drop(optimizer, frozen.find(model).values())
    optimizer.step()
    frozen.verify(model)
    assert frozen.trainable(model) == {} and not optimizer.state
