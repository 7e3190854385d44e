"""The running Fisher information of the tasks that have ended, and the preconditioner P made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from unteach.continual.learner import Learner
from unteach.core.ascent import InverseForm, Preconditioner, damped_inverse, inverse
from unteach.core.curvature import Diagonal
from unteach.core.fisher import fisher
from unteach.core.fisher import kronecker as factors_of
from unteach.errors import CheckpointError, NumericsError

FisherKind = Literal["none", "exact", "empirical", "sampled", "official", "kronecker"]


@dataclass(eq=False)
class RunningFisher:
    """F ← τF + F_task at the end of a task (of the Kronecker factors: each for itself), and P = 1/(F + λ).

    The kinds of F are those of :func:`unteach.core.fisher.fisher`, always with batch norm in evaluation mode
    (the released code runs it in training mode, one image at a time). Until a task has ended P is the identity,
    which :attr:`preconditioner` gives as None.
    """

    names: Sequence[str]
    params: Sequence[nn.Parameter]
    kind: FisherKind
    damping: float
    form: InverseForm
    tau: float
    samples: int | None
    augment: bool
    preconditioner: Preconditioner | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """F: parameter name to diagonal, or "A:layer" and "G:layer" to Kronecker factors."""

    def take(self, learner: Learner) -> None:
        """Add the Fisher information of the task that has just ended.

        Raises:
            NumericsError: it is not finite.
        """
        if self.kind == "none":
            return
        new = self._measure(learner)
        self.tensors = {n: value + self.tau * self.tensors[n] if self.tensors else value for n, value in new.items()}
        self._invert()

    def _measure(self, learner: Learner) -> dict[str, Tensor]:
        batches = learner.batches("refresh-fisher", augment=self.augment, limit=self.samples)
        pairs = ((batch.x, batch.y) for batch in batches)
        generator = learner.generator("refresh-fisher", learner.task)
        if self.kind == "kronecker":
            factors = factors_of(learner.model, pairs, generator=generator)
            return {f"{side}:{n}": m for n, both in factors.items() for side, m in zip("AG", both, strict=True)}
        params = dict(zip(self.names, self.params, strict=True))
        kind = "exact" if self.kind == "none" else self.kind
        return fisher(learner.model, pairs, kind=kind, params=params, generator=generator)

    def _invert(self) -> None:
        for name, value in self.tensors.items():
            if not bool(torch.isfinite(value).all()):
                fix = "lower the learning rate or gamma"
                raise NumericsError(f"the Fisher information of '{name}' is not finite", fix=fix)
        self.preconditioner = None
        if self.tensors and self.kind == "kronecker":
            layers = [name[2:] for name in self.tensors if name.startswith("A:")]
            factors = {layer: (self.tensors[f"A:{layer}"], self.tensors[f"G:{layer}"]) for layer in layers}
            shapes = [param.shape for param in self.params]
            self.preconditioner = damped_inverse(factors, self.names, shapes, self.damping, self.form)
        elif self.tensors:
            self.preconditioner = Diagonal(
                [
                    inverse(self.tensors[n], self.damping, self.form).to(p.dtype)
                    for n, p in zip(self.names, self.params, strict=True)
                ]
            )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over :attr:`tensors` of a checkpoint.

        Raises:
            CheckpointError: they do not fit the network.
        """
        shapes = {name: param.shape for name, param in zip(self.names, self.params, strict=True)}
        found = {name: value.shape for name, value in tensors.items()}
        if found and (self.kind == "none" or (self.kind != "kronecker" and found != shapes)):
            raise CheckpointError(
                "the checkpoint's Fisher information does not fit the run",
                found=f"{len(found)} tensors, other names or shapes than the {len(shapes)} parameters'",
                fix="resume with the settings and the network that the run was started with",
            )
        self.tensors = {name: value.to(self.params[0].device) for name, value in tensors.items()}
        self._invert()
