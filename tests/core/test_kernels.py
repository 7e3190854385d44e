"""Faults of torch's own kernels, met in child processes: a segmentation fault ends no test run."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from unteach.core.kernels import keep_group_norms_contiguous, partly_trained

ALONE = """
import torch
from torch import nn
from unteach.core.kernels import partly_trained

norm = nn.GroupNorm(4, 8)
trained = {trained}
for name, parameter in norm.named_parameters():
    parameter.requires_grad_(name in trained)
x = torch.randn(2, 8, {side}, {side}).contiguous(memory_format=torch.channels_last).requires_grad_({wanted})
with partly_trained(norm):
    out = norm(x)
    torch.autograd.grad(out.square().sum(), [norm.get_parameter(name) for name in trained])
"""


@pytest.mark.parametrize(
    ("trained", "side", "wanted"), [(["weight"], 8, False), (["bias"], 4, False), (["weight", "bias"], 32, True)]
)
def test_a_group_norm_behind_frozen_layers_trains(trained: list[str], side: int, wanted: bool) -> None:
    """Without the block this child ends with a segmentation fault in torch 2.13."""
    script = ALONE.format(trained=trained, side=side, wanted=wanted)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_values_and_gradients_are_those_of_the_plain_layout() -> None:
    norm = nn.GroupNorm(2, 4)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = norm(x)
    wanted = torch.autograd.grad(plain.square().sum(), list(norm.parameters()))
    with partly_trained(norm):
        out = norm(x.contiguous(memory_format=torch.channels_last))
        found = torch.autograd.grad(out.square().sum(), list(norm.parameters()))
    assert torch.equal(out, plain) and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_it_ends_with_the_block_and_leaves_sampling_alone() -> None:
    norm = nn.GroupNorm(2, 4)
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    seen: list[bool] = []
    with partly_trained(norm):
        norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
        norm(x)
        with torch.no_grad():
            norm(x)
    norm(x)
    assert seen == [True, False, False]
    assert len(keep_group_norms_contiguous(nn.Sequential(norm, nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4)))) == 2
