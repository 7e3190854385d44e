"""Faults of torch's own kernels: nothing here runs into them, on any processor (issue 9, item 7)."""

import os
import subprocess
import sys

import pytest
import torch
from tests import processes
from torch import nn

from unteach.continual import networks
from unteach.core import fisher
from unteach.core.kernels import channels_last_is_safe, fastest, is_channels_last, mend_group_norms
from unteach.errors import ModelError

# What crashed under ONEDNN_MAX_CPU_ISA=AVX2 (torch 2.13.0) beside what did not: see core/kernels.
CONVOLUTIONS = [
    (nn.Conv2d(2, 8, 1, stride=2), False),
    (nn.Conv2d(7, 8, 1, stride=2), False),
    (nn.Conv2d(4, 8, 1, stride=(2, 1)), False),
    (nn.Conv2d(1, 8, 1, stride=2), True),
    (nn.Conv2d(8, 8, 1, stride=2), True),
    (nn.Conv2d(16, 16, 1, stride=2, groups=4), True),
    (nn.Conv2d(4, 8, 1), True),
    (nn.Conv2d(4, 8, 3, stride=2, padding=1), True),
    (nn.Conv2d(4, 8, (1, 3), stride=2), True),
]

CHILD = """
import torch
from tests import processes
from torch import nn
from unteach.continual import networks
from unteach.continual.engine import learn
from unteach.continual.learner import Training
from unteach.continual.streams import Stream, split_classes
from unteach.core import fisher

g = torch.Generator().manual_seed(0)
x, y = torch.randint(0, 256, (32, 3, 16, 16), generator=g, dtype=torch.uint8), torch.arange(32) % 4
stream = Stream("mine", "class", split_classes(x, y, x, y, 2), 4, tuple("abcd"), (0.5,) * 3, (0.25,) * 3)
lower = Training(epochs=2, batch_size=8)
assert lower.channels_last
mine = networks.build("resnet18", (3, 16, 16), 4, 0, width=4).to(memory_format=torch.channels_last)
rows = [
    learn(stream, "er", network=network, options=options, training=training, seed=0).rows
    for network, options, training in [
        ("resnet18", {"width": 4}, lower),
        (mine, {}, lower),
        (mine, {}, Training(epochs=1, batch_size=8, channels_last=False)),
    ]
]
images = torch.randn(8, 3, 16, 16, generator=g).contiguous(memory_format=torch.channels_last)
for kind in ("exact", "sampled"):
    net = networks.build("resnet18", (3, 16, 16), 4, 0, width=4)
    found = fisher.fisher(net, [(images, y[:8])] * 3, kind=kind, generator=g)
    assert all(torch.isfinite(value).all() for value in found.values())
print("ended", len(rows))
"""


@pytest.mark.parametrize(("convolution", "safe"), CONVOLUTIONS, ids=[repr(c) for c, _ in CONVOLUTIONS])
def test_which_convolutions_are_safe(convolution: nn.Conv2d, safe: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), convolution)
    assert channels_last_is_safe(model) is safe
    assert fastest(model) is (torch.channels_last if safe else torch.contiguous_format)


def test_networks_that_ship() -> None:
    shape = (3, 16, 16)
    build = lambda name, **options: networks.build(name, shape, 4, 0, **options)  # noqa: E731
    assert channels_last_is_safe(build("resnet18")) and channels_last_is_safe(build("reduced-resnet18"))
    assert channels_last_is_safe(build("small-conv", width=4))
    assert channels_last_is_safe(build("resnet18", width=8)) and not channels_last_is_safe(build("resnet18", width=4))


def test_the_importance_of_a_network_that_is_channels_last_already() -> None:
    """Its gradients cannot be taken, so it is refused, with the way out; after that way they are those of before."""
    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    net = networks.build("resnet18", (3, 8, 8), 4, 0, width=4)
    before = fisher.fisher(net, batches)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert is_channels_last(net)
    with pytest.raises(ModelError, match="contiguous_format"):
        fisher.fisher(net, batches)
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert not is_channels_last(net)
    after = fisher.fisher(net, batches)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_narrow_resnet_trains_on_a_processor_without_avx512() -> None:
    """Without the rule the first of these ends in a signal: "corrupted double-linked list"."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    made = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True)
    assert (made.returncode, made.stdout) == (0, "ended 3\n"), made.stderr


def alone(trained: list[str], side: int) -> None:
    norm = nn.GroupNorm(4, 8)
    for name, parameter in norm.named_parameters():
        parameter.requires_grad_(name in trained)
    x = torch.randn(2, 8, side, side).contiguous(memory_format=torch.channels_last)
    mend_group_norms(norm)
    norm(x).square().sum().backward()


@pytest.mark.parametrize(("trained", "side"), [(["weight"], 8), (["weight", "bias"], 32)])
def test_a_group_norm_behind_frozen_layers_trains(trained: list[str], side: int) -> None:
    """Unmended, this child ends with a segmentation fault (torch 2.13.0)."""
    done = processes.run(alone, trained, side)
    assert done.returncode == 0, done.stderr


def test_a_mended_group_norm_gives_the_values_of_the_plain_layout() -> None:
    norm = nn.GroupNorm(2, 4)
    mend_group_norms(nn.Sequential(nn.Sequential(norm)))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    outs = [norm(x), norm(x.contiguous(memory_format=torch.channels_last))]
    grads = [torch.autograd.grad(out.square().sum(), list(norm.parameters())) for out in outs]
    assert torch.equal(*outs) and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_only_a_norm_that_would_crash_is_touched() -> None:
    norm = nn.GroupNorm(2, 4)
    mend_group_norms(norm)
    mend_group_norms(norm)
    assert len(norm._forward_pre_hooks) == 1
    seen: list[bool] = []
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    norm(x)
    with torch.no_grad():
        norm(x)
    norm(x.requires_grad_())
    assert seen == [True, False, False]
