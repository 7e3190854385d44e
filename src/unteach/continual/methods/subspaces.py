"""OGD and GPM: no step in a stored subspace, the limit β → ∞ of a quadratic with its projector (refresh.md §1.3)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unteach.continual.learner import Learner
from unteach.continual.methods.base import Form, Method, methods, setting
from unteach.continual.terms import Rule
from unteach.continual.view import View
from unteach.core.vectors import flat, shaped


class _OGD(Rule):
    """Orthonormal basis (P, k) of the gradients of true-class logits at the end of each task."""

    saved = ("basis",)

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        self.basis: Tensor | None = None

    def apply(self, view: View, gradients: list[Tensor | None]) -> list[Tensor | None]:
        if self.basis is None:
            return gradients
        g = flat(gradients, view.learner.params)
        return shaped(g - self.basis @ (self.basis.T @ g), gradients, view.learner.params)

    def end_task(self, learner: Learner) -> None:
        learner.model.eval()
        columns = []
        for batch in learner.batches("ogd", limit=self.vectors):
            out = learner.forward(batch.x)
            for value in out.gather(1, batch.y[:, None])[:, 0]:
                found = torch.autograd.grad(value, learner.params, retain_graph=True, allow_unused=True)
                columns.append(flat(list(found), learner.params))
        learner.model.train()
        new = torch.stack(columns, 1)
        least = 1e-5 * torch.linalg.vector_norm(new, dim=0).max()
        known = new[:, :0] if self.basis is None else self.basis
        for _ in range(2):  # twice is enough against rounding
            new = new - known @ (known.T @ new)
        q, r = torch.linalg.qr(new)
        u, size, _ = torch.linalg.svd(r)  # columns of q alone would not do: later gradients may need a dependent one's
        self.basis = torch.cat([known, q @ u[:, size > least]], 1)


@methods.add("ogd")
@dataclass(frozen=True, kw_only=True)
class OGD(Method):
    """Orthogonal gradient descent, true-class logits (Farajtabar et al. 2020).

    Keeps ``vectors`` gradients a task: memory of (parameters × vectors × tasks) numbers.

    Args:
        vectors: gradients kept a task.
    """

    form: ClassVar[Form] = "limit"
    boundaries: ClassVar[bool] = True

    vectors: int = setting(40, low=1)

    def rule(self, learner: Learner) -> Rule:
        """Project off the stored gradients."""
        return _OGD(self.vectors)


class _GPM(Rule):
    """Per layer an orthonormal basis (inputs, k) of the inputs it has seen."""

    saved = ("bases",)

    def __init__(self, threshold: float, samples: int) -> None:
        self.threshold, self.samples = threshold, samples
        self.bases: dict[str, Tensor] = {}

    def apply(self, view: View, gradients: list[Tensor | None]) -> list[Tensor | None]:
        if not self.bases:
            return gradients
        edited: list[Tensor | None] = []
        for name, g in zip(view.learner.names, gradients, strict=True):
            basis = self.bases.get(name)
            if g is None:
                edited.append(None)
            elif basis is None:
                edited.append(torch.zeros_like(g))
            else:
                wide = g.flatten(1)
                edited.append((wide - (wide @ basis) @ basis.T).view_as(g))
        return edited

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        for name, inputs in layer_inputs(learner, self.samples).items():
            self.bases[name] = extended(self.bases.get(name), inputs, self.threshold)


def extended(basis: Tensor | None, inputs: Tensor, threshold: float) -> Tensor:
    """The basis with as many new directions as hold ``threshold`` of the inputs' energy together with it (GPM, eq. 9).

    Args:
        basis: (d, k), orthonormal, or None.
        inputs: (d, n), columns.
        threshold: share of the energy, in (0, 1].
    """
    total = inputs.square().sum()
    known = inputs[:, :0] if basis is None else basis
    rest = inputs - known @ (known.T @ inputs)
    have = total - rest.square().sum()
    u, s, _ = torch.linalg.svd(rest, full_matrices=False)
    energy = have + s.square().cumsum(0)
    need = 0 if have >= threshold * total else int((energy < threshold * total).sum()) + 1
    rank = int((s > 1e-5 * total.sqrt()).sum())  # directions without energy need not be orthogonal to the known
    return torch.cat([known, u[:, : min(need, rank)]], 1)


def layer_inputs(learner: Learner, samples: int) -> dict[str, Tensor]:
    """Inputs of every linear and convolutional layer on the task's data: weight's name to (inputs, columns)."""
    found: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in learner.model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):

            def keep(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                x = args[0]
                if isinstance(module, nn.Conv2d):
                    kernel, stride = module.kernel_size, module.stride
                    padding, dilation = module.padding, module.dilation
                    assert not isinstance(padding, str)
                    if module.groups > 1:
                        return
                    columns = F.unfold(x, kernel, dilation, padding, stride).transpose(0, 1).flatten(1)
                    step = max(1, columns.shape[1] // (samples * 8))
                    columns = columns[:, ::step]
                else:
                    columns = x.flatten(0, -2).T
                found.setdefault(f"{name}.weight", []).append(columns)

            handles.append(module.register_forward_pre_hook(keep))
    learner.model.eval()
    for batch in learner.batches("gpm", limit=samples):
        learner.model(batch.x)
    learner.model.train()
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts, 1) for name, parts in found.items() if name in learner.names}


@methods.add("gpm")
@dataclass(frozen=True, kw_only=True)
class GPM(Method):
    """Gradient projection memory (Saha et al. 2021): no change of a layer on the inputs it has seen.

    After the first task biases, normalisation layers and grouped convolutions stay as they are (the paper has
    none that move).

    Args:
        threshold: share of the inputs' energy that is protected.
        samples: samples of a task, for the inputs.
    """

    form: ClassVar[Form] = "limit"
    boundaries: ClassVar[bool] = True

    threshold: float = setting(0.97, above=0, high=1)
    samples: int = setting(128, low=1)

    def rule(self, learner: Learner) -> Rule:
        """Project off the stored inputs."""
        return _GPM(self.threshold, self.samples)
