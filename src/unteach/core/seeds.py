"""Random draws as a function of (seed, purpose, indices): no random state to save, so none can be lost.

Every item of a batch has its own generator, keyed by its *global* index in the batch. The draws of a run
therefore do not depend on the number of processes, on the batch that an item shares, or on where a run was
interrupted. (Of a 63-bit key torch's CPU generator takes the low 32 bits: two keys share a stream once in
four billion pairs.)
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Index = int | str


def integer(seed: int, purpose: str, *index: Index) -> int:
    """A 63-bit integer that depends on all arguments and on nothing else."""
    # NumPy integers and the like count as the plain integer, whose repr they do not share.
    plain = (part if isinstance(part, str) else int(part) for part in index)
    key = repr((int(seed), purpose, *plain)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *index: Index) -> torch.Generator:
    """A CPU generator for one purpose; equal arguments give equal streams on every machine."""
    return torch.Generator().manual_seed(integer(seed, purpose, *index))


def randn(
    shape: Sequence[int],
    seed: int,
    purpose: str,
    step: int,
    items: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise, shape ``(len(items), *shape)``; row i depends on ``items[i]`` alone."""
    rows = [torch.randn(tuple(shape), generator=generator(seed, purpose, step, item), dtype=dtype) for item in items]
    return torch.stack(rows) if rows else torch.empty(0, *shape, dtype=dtype)


def rand(shape: Sequence[int], seed: int, purpose: str, step: int, items: Sequence[int]) -> Tensor:
    """Uniform draws in [0, 1), shape ``(len(items), *shape)``; row i depends on ``items[i]`` alone."""
    rows = [torch.rand(tuple(shape), generator=generator(seed, purpose, step, item)) for item in items]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def randint(high: int, seed: int, purpose: str, step: int, items: Sequence[int]) -> Tensor:
    """Integers in [0, high), shape ``(len(items),)``, int64; entry i depends on ``items[i]`` alone."""
    values = [integer(seed, purpose, step, item) % high for item in items]
    return torch.tensor(values, dtype=torch.int64)


def permutation(n: int, seed: int, purpose: str, *index: Index) -> Tensor:
    """A random permutation of ``range(n)``, int64."""
    return torch.randperm(n, generator=generator(seed, purpose, *index))
