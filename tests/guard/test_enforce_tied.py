"""Tied weights under ``enforce``: one tensor, one fate, in the optimizer, the averages and the whole mask."""

import copy

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from unteach.errors import ConfigError, ModelError
from unteach.guard.enforce import adapter_targets, check_adapters, enforce


class Tied(nn.Module):
    """A table that is also the last layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.table(x))))


@pytest.fixture
def model() -> Tied:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tied()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    x = torch.arange(5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x.flip(0)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["table.weight", "head.weight"])
def test_either_name_holds_the_tensor_under_both(model: Tied, name: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    train(model, optimizer, 1)
    average = EMAModel(copy.deepcopy(model).parameters(), decay=0.5)
    before = model.table.weight.detach().clone()
    with enforce(model, optimizer, frozen=[name], ema=average) as guard:
        assert guard.frozen.names == ("table.weight",) and guard.share.frozen_tensors == 1
        for _ in range(3):
            train(model, optimizer, 1)
            average.step(model.parameters())
        assert model.head.weight is model.table.weight and torch.equal(model.head.weight, before)
        assert model.table.weight.grad is None and model.table.weight not in optimizer.state
        average.copy_to(model.parameters())
        assert torch.equal(model.table.weight, before)
    assert {len(group["params"]) for group in optimizer.param_groups} == {2}


def test_adapters_on_either_owner_are_refused(model: Tied) -> None:
    for owner in ("head", "table"):
        assert adapter_targets(model, ["table.weight"], ["middle", owner]) == ["middle"]
    held = copy.deepcopy(model)
    held.head.lora_layer = nn.Linear(4, 5)
    with pytest.raises(ModelError, match="head"):
        check_adapters(held, ["table.weight"])


def test_a_mask_that_says_two_things_of_it_changes_nothing(model: Tied) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="one tied parameter"):
        enforce(model, optimizer, frozen={"table.weight": True, "head.weight": False})
    assert all(p.requires_grad for p in model.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
