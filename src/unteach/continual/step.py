"""One training step of a method as plug-ins see it. The plain step is ``context.update(context.gradient())``."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unteach.continual.learner import Learner, frozen_statistics
from unteach.continual.objective import Objective
from unteach.continual.view import Loss, View
from unteach.core import seeds


class StepContext:
    """One step: made by the engine, forgotten after it.

    Attributes:
        params: the parameters that move, in the model's order; ``names`` beside them.
        lr: the optimizer's learning rate in this step, η.
        index: the step, counted over the whole run from 0.
        seed: the run's seed.
        task: the task, from 0.
        has_memory: a memory term is active in this step.
        loss: the objective's value at the last gradient of all of it, shape (), or None.
        objective: the method's terms and rule.
        view: what they see of the step.
    """

    def __init__(self, learner: Learner, objective: Objective, view: View) -> None:
        self._learner, self.objective, self.view = learner, objective, view
        self.params, self.names, self.lr = learner.params, learner.names, learner.lr
        self.index, self.seed, self.task = view.index, learner.seed, learner.task
        memory = learner.memory
        self.has_memory = objective.has_memory and memory is not None and len(memory) > 0
        self.loss: Tensor | None = None

    def gradient(self, loss: Loss = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
        """The gradient at the parameters as they are now, in tensors that the caller may keep or change.

        All calls in one step see the same batch and the same draws from the memory. With ``frozen_stats`` the
        running statistics of batch norm are left alone.
        """
        self.view.moved()
        if frozen_stats:
            with frozen_statistics(self._learner.model):
                return self._gradient(loss)
        return self._gradient(loss)

    def _gradient(self, loss: Loss) -> list[Tensor | None]:
        objective = self.objective
        if self._learner.random:  # dropout and the like: equal draws for every pass of a step
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds.integer(self.seed, "network", self.index))
                value = objective.loss(self.view, loss)
        else:
            value = objective.loss(self.view, loss)
        if value is None or not value.requires_grad:
            return [None] * len(self.params)
        found: list[Tensor | None] = list(torch.autograd.grad(value, self.params, allow_unused=True))
        if loss == "host":
            self.loss = value.detach()
            if objective.rule is not None:
                found = objective.rule.apply(self.view, found)
        return found

    def update(self, gradients: Sequence[Tensor | None]) -> None:
        """The optimizer's step (with its clipping) at the parameters as they are now."""
        learner, watchers = self._learner, self.objective.watchers
        before = [p.detach().clone() for p in self.params] if watchers else []
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient
        if learner.settings.clip:
            if watchers:  # they see the gradients, not what clipping leaves of them
                gradients = [None if g is None else g.clone() for g in gradients]
            nn.utils.clip_grad_norm_(self.params, learner.settings.clip)
        learner.optimizer.step()
        for param in self.params:
            param.grad = None
        for term in watchers:
            term.updated(self.view, gradients, before)

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on (seed, purpose, step) alone."""
        return seeds.generator(self.seed, purpose, self.index)
