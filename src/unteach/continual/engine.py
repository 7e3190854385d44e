"""The engine: a network through a stream, under a method and a plug-in; the same call resumes bit for bit."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unteach.continual import networks
from unteach.continual.batch import Batch
from unteach.continual.evaluation import Evaluation, TaskRow, evaluate
from unteach.continual.learner import Learner, Training
from unteach.continual.methods import AnyMethod, Method, make
from unteach.continual.objective import Objective
from unteach.continual.plugins import Plugin, plugins
from unteach.continual.plugins.refresh import Refresh
from unteach.continual.step import StepContext
from unteach.continual.streams.base import Stream
from unteach.continual.view import View
from unteach.core import seeds
from unteach.core.events import SILENT, Events
from unteach.core.loop import Loop, Stateful, Step
from unteach.errors import ConfigError, NumericsError

__all__ = ["Outcome", "Trainer", "learn"]

LOG_EVERY = 50
"""Steps between lines of the log."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave.

    Attributes:
        model: the trained network (on its device).
        config: everything the run depended on, as plain data.
        rows: what was measured after each task that was trained on.
        untrained: what was measured before the first step.
        passes: forward passes with a gradient.
        learner: the run's last state; its memory.
        objective: the method's terms and rule, with their state.
    """

    model: nn.Module
    config: dict[str, Any]
    rows: tuple[TaskRow, ...]
    untrained: Evaluation
    passes: int
    learner: Learner
    objective: Objective

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the plug-in warned of, each once."""
        return tuple(dict.fromkeys(warning for row in self.rows for warning in row.warnings))


@dataclass(frozen=True)
class _Stage:
    index: int
    tasks: tuple[int, ...]
    samples: int
    first: int
    steps_an_epoch: int
    epochs: int

    @property
    def last(self) -> int:
        return self.first + self.steps_an_epoch * self.epochs - 1


@dataclass
class _Progress:
    """What was measured so far; saved with the run."""

    untrained: Evaluation | None = None
    rows: list[TaskRow] = field(default_factory=list)
    passes: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.untrained = Evaluation(**saved["untrained"]) if saved["untrained"] else None
        self.rows = [TaskRow(**row) for row in saved["rows"]]
        self.passes, self.seconds = saved["passes"], saved["seconds"]


def learn(
    stream: Stream,
    method: AnyMethod | str,
    *,
    network: str | nn.Module | Callable[..., nn.Module] = "small-conv",
    plugin: Plugin | str | None = None,
    training: Training | None = None,
    seed: int = 0,
    out: Path | None = None,
    save_every: int = 1000,
    device: torch.device | str | None = None,
    events: Events = SILENT,
    options: Mapping[str, Any] | None = None,
) -> Outcome:
    """Train a network on a stream of tasks.

    Args:
        stream: the tasks.
        method: a method, or the name of one, of a preset, or a combination ("der++ + online-ewc").
        network: name in :data:`unteach.continual.networks.networks`, a module, or a function that makes one.
        plugin: refresh, SAM, ...; None trains plainly.
        training: epochs, batches, learning rates.
        seed: root of all random draws.
        out: folder for checkpoints and the log; the same call goes on where it was stopped, bit for bit.
        save_every: steps between checkpoints.
        device: default: a GPU when there is one.
        events: told of each step; an exception from it stops the run.
        options: arguments of the network's builder.

    Returns:
        The trained network and everything measured.

    Raises:
        ConfigError, DataError, ModelError: what does not fit together, before anything is trained.
        NumericsError: training diverged.
        CheckpointError: ``out`` holds another run.
    """
    trainer = Trainer(
        stream, method, network=network, plugin=plugin, training=training, seed=seed, device=device, options=options
    )
    return trainer.run(out, save_every=save_every, events=events)


class Trainer:
    """One run, ready to begin: the network, the method's objective, the plug-in's state.

    Args and errors of :func:`learn`; making one refuses what does not fit together, and trains nothing.
    """

    def __init__(
        self,
        stream: Stream,
        method: AnyMethod | str,
        *,
        network: str | nn.Module | Callable[..., nn.Module] = "small-conv",
        plugin: Plugin | str | None = None,
        training: Training | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        method = make(method) if isinstance(method, str) else method
        plugin = plugins.make(plugin) if isinstance(plugin, str) else plugin
        training = training or Training()
        _fits(stream, method, training, plugin)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        net = networks.build(network, stream.shape, stream.classes, seed, **dict(options or {}))
        if plugin is not None:
            training = dataclasses.replace(training, learning_rate=training.learning_rate * plugin.lr_factor())
        learner = Learner(stream, net, training, seed, place, method.wrap)
        own = method.optimizer(learner)
        if own is not None:
            learner.optimizer, learner.own_optimizer = own, True
        learner.memory = method.memory(learner)
        self.method, self.plugin, self.learner = method, plugin, learner
        self.objective = Objective(method.terms(learner), method.rule(learner))
        if isinstance(plugin, Refresh) and plugin.gamma and plugin.loss == "memory" and not self.objective.has_memory:
            raise ConfigError(
                f"'{plugin.name}' with loss='memory' has nothing to unlearn",
                found=f"no term of '{method.label}' reads a memory",
                fix="use loss='current' or 'host', or a method with a memory term such as 'er'",
            )
        self.plugin_state = None if plugin is None else plugin.start(learner)
        self.stages = list(_stages(method, learner))
        learner.check_batches({stream.tasks[stage.tasks[-1]].name: stage.samples for stage in self.stages})
        self.config = {
            "stream": {"name": stream.name, "scenario": stream.scenario, "digest": stream.digest()},
            "method": method.to_dict(),
            "plug-in": None if plugin is None else plugin.to_dict(),
            "training": training.to_dict(),
            "network": network if isinstance(network, str) else type(net).__name__,
            "options": dict(options or {}),
            "parameters": sum(p.numel() for p in learner.params),
        }
        self.done = _Progress()
        self.entered = -1
        self.x = self.y = self.t = torch.empty(0)
        self.order: tuple[int, Tensor] = (-1, torch.empty(0))

    def run(self, out: Path | None = None, *, save_every: int = 1000, events: Events = SILENT) -> Outcome:
        """Train through the whole stream; see :func:`learn`."""
        learner, held = self.learner, dict[str, Stateful](learner=self, progress=self.done)
        if self.plugin_state is not None:
            held["plug-in"] = self.plugin_state
            for warning in self.plugin_state.warnings():
                log.warning("%s", warning)
        loop = Loop(
            steps=self.stages[-1].last + 1,
            seed=learner.seed,
            params=dict(zip(learner.names, learner.params, strict=True)),
            state=held,
            config=self.config,
            out=out,
            save_every=save_every,
            log_every=LOG_EVERY,
            events=events,
            label=f"{self.method.label}{'' if self.plugin is None else ' + ' + self.plugin.name}, seed {learner.seed}",
        )
        loop.run(self.step)
        learner.model.eval()
        assert self.done.untrained is not None
        return Outcome(
            learner.network,
            {**loop.config},
            tuple(self.done.rows),
            self.done.untrained,
            self.done.passes,
            learner,
            self.objective,
        )

    def step(self, step: Step) -> dict[str, Tensor | float]:
        """One step of training, with what happens at the ends of tasks."""
        learner, begin = self.learner, time.perf_counter()
        stage = next(stage for stage in self.stages if step.index <= stage.last)
        if self.entered != stage.index:
            self._enter(stage, anew=step.index == stage.first)
        batch, x = self._batch(stage, step.index)
        weight = 1.0 if self.plugin is None else self.plugin.data_weight(learner.lr)
        view = View(learner, batch, step.index, weight)
        context = StepContext(learner, self.objective, view)
        if self.plugin_state is None:
            context.update(context.gradient())
            found: Mapping[str, Tensor] = {}
        else:
            found = self.plugin_state.step(context)
        self.method.remember(view, x)
        self.done.passes += view.passes
        self.done.seconds += time.perf_counter() - begin
        if step.index == stage.last:
            self._leave(stage)
        if (step.index + 1) % LOG_EVERY and step.index + 1 < step.total:
            return {}
        losses = {} if context.loss is None else {"loss": context.loss}
        return {"task": float(stage.index), **losses, **found}

    def _enter(self, stage: _Stage, anew: bool) -> None:
        learner = self.learner
        if anew and stage.first == 0:
            self.done.untrained = evaluate(learner, self.method.scores)
        self.entered = stage.index
        self.x = torch.cat([learner.data[task][0] for task in stage.tasks])
        self.y = torch.cat([learner.data[task][1] for task in stage.tasks])
        self.t = torch.cat([torch.full_like(learner.data[task][1], task) for task in stage.tasks])
        self.order = (-1, torch.empty(0))
        learner.begin_stage(stage.tasks, anew=anew)
        if anew and learner.stream.boundaries:
            self.objective.begin_task(learner)

    def _batch(self, stage: _Stage, index: int) -> tuple[Batch, Tensor]:
        learner = self.learner
        epoch, position = divmod(index - stage.first, stage.steps_an_epoch)
        if self.order[0] != epoch:
            shuffled = learner.stream.boundaries
            order = seeds.permutation(stage.samples, learner.seed, "order", stage.index, epoch)
            self.order = (epoch, (order if shuffled else torch.arange(stage.samples)).to(learner.device))
        drops = sum(epoch >= milestone for milestone in learner.settings.milestones)
        learner.lr = learner.settings.learning_rate * learner.settings.lr_decay**drops
        if not learner.own_optimizer:
            for group in learner.optimizer.param_groups:
                group["lr"] = learner.lr
        first, size = position * learner.settings.batch_size, learner.sizes(stage.samples)[position]
        rows = self.order[1][first : first + size]
        x, y = self.x[rows], self.y[rows]
        if not learner.stream.boundaries:
            learner.seen[y] = True
        generator = learner.generator("views", index)
        return Batch(learner.views(x, generator), y, task=self.t[rows], current=len(rows)), x

    def _leave(self, stage: _Stage) -> None:
        learner, done = self.learner, self.done
        begin = time.perf_counter()
        if not all(bool(torch.isfinite(p).all()) for p in learner.params):
            raise NumericsError(
                f"the weights are not finite after task {stage.tasks[-1] + 1}",
                found=f"'{self.method.label}' at learning rate {learner.lr:g}",
                fix="lower the learning rate or the strength of the method, or clip the gradient",
            )
        if learner.stream.boundaries:
            self.objective.end_task(learner)
            self.method.end_task(learner)
            if self.objective.needs_old:
                learner.old = learner.snapshot()
            if self.plugin_state is not None:
                self.plugin_state.end_task(learner)
        train = done.seconds + time.perf_counter() - begin
        begin = time.perf_counter()
        measured = evaluate(learner, self.method.scores)
        learner.model.train()
        row = TaskRow(
            **vars(measured),
            task=stage.tasks[-1],
            seconds={"train": train, "evaluate": time.perf_counter() - begin},
            diagnostics={} if self.plugin_state is None else self.plugin_state.summary(),
            warnings=[] if self.plugin_state is None else self.plugin_state.warnings(),
        )
        done.rows.append(row)
        done.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves apart from the parameters, the plug-in's state and what was measured."""
        return {**self.learner.state_dict(), **self.objective.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self.learner.load_state_dict(state)
        self.objective.load_state_dict(state)


def _stages(method: AnyMethod, learner: Learner) -> Iterator[_Stage]:
    first = 0
    for index, tasks in enumerate(method.stages(len(learner.stream.tasks))):
        if not tasks:
            continue
        samples = sum(len(learner.data[task][1]) for task in tasks)
        steps = len(learner.sizes(samples))
        stage = _Stage(index, tuple(tasks), samples, first, steps, learner.settings.epochs)
        first = stage.last + 1
        yield stage


def _fits(stream: Stream, method: AnyMethod, training: Training, plugin: Plugin | None) -> None:
    """Refuse what cannot work before anything is trained."""
    problems = []
    if not stream.boundaries and method.boundaries:
        problems.append(
            f"'{method.name}' must be told where tasks end, and the stream '{stream.name}' has no boundaries"
        )
    if stream.scenario in ("online", "general") and training.epochs > 1:
        problems.append(f"a stream of scenario '{stream.scenario}' is seen once, found epochs = {training.epochs}")
    parts = [method] if isinstance(method, Method) else method.parts
    wrapped = any(type(part).wrap is not Method.wrap for part in parts)
    if wrapped and isinstance(plugin, Refresh) and plugin.gamma and plugin.preconditioner != "none":
        problems.append(
            f"'{method.name}' has no Fisher information of its weights for '{plugin.name}': use preconditioner='none'"
        )
    if problems:
        raise ConfigError.many(problems, where="the run")
