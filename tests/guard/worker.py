"""Guarded training in several processes. Not a test."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HELD = ("1.weight", "3.0.bias", "3.2.weight")


def network() -> nn.Module:
    """Eight numbers in, three out, with a block in the middle that is wrapped on its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(8, 6),
            nn.Linear(6, 6),
            nn.Tanh(),
            nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)),
            nn.Linear(6, 3),
        )


def data(rank: int, step: int) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * step + rank))


def train(model: Any, optimizer: Any, rank: int, steps: int = 4) -> list[str]:
    """Returns the names of frozen-to-be tensors that got a gradient, should there be any."""
    got = []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model(data(rank, step)).square().mean().backward()
        got += [name for name, p in model.named_parameters() if p.grad is not None and not p.requires_grad]
        optimizer.step()
    return got


def member(kind: str, out: Path) -> None:
    """Train guarded as one of several processes; each saves the whole weights and what it saw."""
    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    import torch.distributed as dist

    from unteach.core.freeze import whole
    from unteach.errors import ConfigError, ModelError
    from unteach.guard.enforce import enforce

    if kind != "accelerate":
        dist.init_process_group("gloo", rank=rank, world_size=world)
    model: Any = network()
    facts: dict[str, Any] = {}
    if kind == "flat":
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

        model = FSDP(model, use_orig_params=False, device_id=torch.device("cpu"))
        try:
            enforce(model, torch.optim.AdamW(model.parameters()), frozen=HELD)
        except ConfigError as error:
            facts["refused"] = str(error)
    elif kind == "late":
        model = nn.parallel.DistributedDataParallel(model)
        try:
            enforce(model, torch.optim.AdamW(model.parameters()), frozen=HELD)
        except ConfigError as error:
            facts["refused"] = str(error)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
        guard = enforce(model, optimizer, frozen=HELD)
        inner = model
        if kind == "fsdp":
            from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
            from torch.distributed.fsdp.wrap import ModuleWrapPolicy

            policy = ModuleWrapPolicy({nn.Sequential})
            model = FSDP(model, use_orig_params=True, auto_wrap_policy=policy, device_id=torch.device("cpu"))
        elif kind == "fsdp2":
            from torch.distributed.fsdp import fully_shard

            fully_shard(model[3])
            fully_shard(model)
            optimizer = torch.optim.AdamW(guard.trainable(), lr=0.05, weight_decay=0.1)
        elif kind == "accelerate":
            from accelerate import Accelerator

            model, optimizer = Accelerator(cpu=True).prepare(model, optimizer)
            assert isinstance(model, nn.parallel.DistributedDataParallel)
        facts["gradients"] = train(model, optimizer, rank)
        facts["state"] = len(optimizer.state)
        guard.verify(model)
        if kind == "fsdp":
            try:
                guard.verify(inner)
            except ModelError as error:
                facts["inner"] = str(error)
        with whole(model):
            facts["weights"] = {
                name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
                for name, p in model.named_parameters()
            }
    torch.save(facts, out / f"{kind}-{rank}.pt")
    dist.destroy_process_group()
