"""The simulated user whose moments are on disk: the same updates to the bit, the memory of SGD, nothing left behind."""

import gc
from typing import Any

import pytest
import torch
from tests.guard import sets
from tests.oracle.guard import adam
from torch import Tensor

from unteach.core import seeds
from unteach.diffusion import Model
from unteach.guard.data import GuardData
from unteach.guard.methods.freezeasguard import FreezeAsGuard
from unteach.guard.methods.learner import MaskLearner, learn
from unteach.guard.methods.user import User

QUICK: dict[str, Any] = {
    "relearned": "last",
    "steps": 8,
    "relearn_steps": 3,
    "relearn_rate": 1e-3,
    "batch_size": 4,
    "reset_every": 4,
}
SHAPES = {"a.weight": (6, 4, 3, 3), "a.bias": (6,), "b.weight": (5, 7), "scale": ()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tiny: Model) -> GuardData:
    return sets.guard_data(tiny)


def gradient(name: str, step: int) -> Tensor:
    return torch.randn(SHAPES[name], generator=seeds.generator(0, name, step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 2])
def test_on_disk_every_update_is_the_same_to_the_bit(rank: int, dtype: torch.dtype) -> None:
    users = [
        User(FreezeAsGuard(user_rates=[1e-2], user_ranks=[rank], moments=where), 0) for where in ("memory", "disk")
    ]
    for life in range(2):  # a new user has no moments
        for user in users:
            user.begin(life)
        for step in range(4):
            names = list(SHAPES)[:: 1 if step % 2 else -1]  # whatever the order of the backward pass
            for name in names[1:] if step == 0 else names:  # one comes later
                found = [user.update(name, gradient(name, step).to(dtype)) for user in users]
                assert torch.equal(*found) and found[0].dtype == dtype, (life, step, name)
            for user in users:
                user.count += 1
    assert users[0].moments and not users[1].moments


def test_on_disk_it_is_adam() -> None:
    user = User(FreezeAsGuard(user_rates=[1e-2], moments="disk"), 0)
    gradients = [gradient("a.weight", step) for step in range(5)]
    for g, expected in zip(gradients, adam(gradients, 1e-2), strict=True):
        user.update("b.weight", gradient("b.weight", 0))  # a neighbour in the file
        assert torch.allclose(user.update("a.weight", g), expected, atol=1e-7)
        user.count += 1


def test_the_file_goes_with_the_user() -> None:
    user = User(FreezeAsGuard(moments="disk"), 0)
    user.update("b.weight", gradient("b.weight", 0))
    file = user._file
    assert file is not None and not file.closed
    del user
    gc.collect()
    assert file.closed
    assert (
        User(FreezeAsGuard(moments="memory"), 0)._file
        is User(FreezeAsGuard(user="sgd", moments="disk"), 0)._file
        is None
    )


def test_learning_is_the_same_and_holds_two_weight_sets(
    tiny: Model, data: GuardData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of all live tensors of a parameter's shape, in weights, after each user step."""
    plain = learn(tiny, data, FreezeAsGuard(**QUICK))
    shapes = {tuple(p.shape) for p in tiny.denoiser.parameters() if p.numel() > 64}
    weights = sum(p.nbytes for p in tiny.denoiser.parameters() if p.numel() > 64)
    inside = {p.data_ptr() for p in tiny.denoiser.parameters()}
    gc.collect()
    others = {t.data_ptr() for t in gc.get_objects() if type(t) in (Tensor, torch.nn.Parameter)} - inside
    seen: list[float] = []
    step = MaskLearner.user

    def watched(self: MaskLearner, *args: Any) -> float:
        value = step(self, *args)
        alive = {t.data_ptr(): t.nbytes for t in gc.get_objects() if type(t) in (Tensor, torch.nn.Parameter)
                 and tuple(t.shape) in shapes and t.data_ptr() not in others}  # fmt: skip
        seen.append(sum(alive.values()) / weights)
        return value

    monkeypatch.setattr(MaskLearner, "user", watched)
    found = learn(tiny, data, FreezeAsGuard(moments="disk", **QUICK))
    assert found.scores == plain.scores and found.frozen == plain.frozen and found.log == plain.log
    assert len(seen) == 4 and 1.9 <= min(seen) <= max(seen) <= 2.2, seen
