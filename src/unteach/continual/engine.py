"""The engine: a network through a stream, under a method and a plug-in; the same call resumes bit for bit."""

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unteach.continual import methods, networks, plugins, refresh
from unteach.continual.evaluation import Evaluation, evaluate
from unteach.continual.learner import Learner, Training, frozen_statistics
from unteach.continual.method import AnyMethod, Method, make
from unteach.continual.objective import Batch, Loss, View
from unteach.continual.plugin import Plugin, Running, make_plugin
from unteach.continual.refresh import Refresh
from unteach.continual.stream import Stream
from unteach.core import seeds, state
from unteach.core.events import SILENT, Events
from unteach.core.loop import Loop, Step
from unteach.errors import ConfigError, NumericsError

__all__ = ["Outcome", "learn", "learn_seeds", "methods", "plugins", "refresh"]  # importing these registers them


log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave.

    Attributes:
        model: the trained network (on its device).
        config: everything the run depended on, as plain data.
        record: what was measured (see :mod:`unteach.continual.evaluation`), as plain data.
        learner: the run's last state; its memory and terms.
    """

    model: nn.Module
    config: dict[str, Any]
    record: dict[str, Any]
    learner: Learner


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


class _Host:
    """One step as plug-ins see it (:class:`unteach.continual.plugin.Host`)."""

    def __init__(self, learner: Learner, view: View, index: int) -> None:
        self._learner, self._view = learner, view
        self.params, self.names, self.lr = learner.params, learner.names, learner.lr
        self.index, self.seed, self.task = index, learner.seed, learner.task
        memory = learner.memory
        self.has_memory = learner.objective.has_memory and memory is not None and len(memory) > 0
        self.passes = 0
        self.loss: Tensor | None = None

    def gradient(self, loss: Loss = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
        """See :class:`~unteach.continual.plugin.Host`."""
        self._view.moved()
        if frozen_stats:
            with frozen_statistics(self._learner.model):
                return self._gradient(loss)
        return self._gradient(loss)

    def _gradient(self, loss: Loss) -> list[Tensor | None]:
        learner = self._learner
        if learner.random:  # dropout and the like: equal draws for every pass of a step
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds.integer(self.seed, "network", self.index))
                value = learner.objective.loss(self._view, loss)
        else:
            value = learner.objective.loss(self._view, loss)
        if value is None or not value.requires_grad:
            return [None] * len(self.params)
        found: list[Tensor | None] = list(torch.autograd.grad(value, self.params, allow_unused=True))
        if loss == "host":
            self.loss = value.detach()
            if learner.rule is not None:
                found = learner.rule.apply(self._view, found)
        return found

    def update(self, gradients: Sequence[Tensor | None]) -> None:
        """See :class:`~unteach.continual.plugin.Host`."""
        learner = self._learner
        before = [p.detach().clone() for p in self.params] if learner.watchers else []
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient
        if learner.settings.clip:
            if learner.watchers:  # they are told the gradients, not what is left of them
                gradients = [None if g is None else g.clone() for g in gradients]
            nn.utils.clip_grad_norm_(self.params, learner.settings.clip)
        learner.optimizer.step()
        for param in self.params:
            param.grad = None
        for term in learner.watchers:
            term.updated(self._view, gradients, before)

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers of this step for one purpose."""
        return seeds.generator(self.seed, purpose, self.index)


class _Progress:
    """What was measured so far; saved with the run."""

    def __init__(self) -> None:
        self.untrained: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.passes = 0
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"untrained": self.untrained, "rows": self.rows, "passes": self.passes, "seconds": self.seconds}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.untrained, self.rows = dict(saved["untrained"]), list(saved["rows"])
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
        training: epochs, batches, rates.
        seed: root of all random draws.
        out: folder for checkpoints and the log; the same call goes on where it was stopped, bit for bit.
        save_every: steps between checkpoints.
        device: default: a GPU when there is one.
        events: told of each step; an exception from it stops the run.
        options: of the network.

    Returns:
        The trained network and everything measured.

    Raises:
        ConfigError, DataError, ModelError: what does not fit together, before anything is trained.
        NumericsError: training diverged.
        CheckpointError: ``out`` holds another run.
    """
    method = make(method) if isinstance(method, str) else method
    plugin = make_plugin(plugin) if isinstance(plugin, str) else plugin
    training = training or Training()
    _fits(stream, method, training, plugin)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = networks.build(network, stream.shape, stream.classes, seed, **dict(options or {}))
    if plugin is not None:
        training = dataclasses.replace(training, lr=training.lr * plugin.lr_factor())
    learner = Learner(stream, method, net, training, seed, place)
    if isinstance(plugin, Refresh) and plugin.gamma and plugin.loss == "memory" and not learner.objective.has_memory:
        raise ConfigError(
            f"'{plugin.name}' with loss='memory' has nothing to unlearn",
            found=f"no term of '{method.label}' reads a memory",
            fix="use loss='current' or 'host', or a method with a memory term such as 'er'",
        )
    running = plugin.start(learner) if plugin is not None else None
    if running is not None:
        for warning in running.warnings():
            log.warning("%s", warning)
    stages = list(_stages(learner))
    learner.check_batches({stream.tasks[stage.tasks[-1]].name: stage.samples for stage in stages})
    config = {
        "stream": {"name": stream.name, "scenario": stream.scenario, "digest": stream.digest()},
        "method": method.to_dict(),
        "plug-in": None if plugin is None else plugin.to_dict(),
        "training": training.to_dict(),
        "network": network if isinstance(network, str) else type(net).__name__,
        "options": dict(options or {}),
        "parameters": sum(p.numel() for p in learner.params),
    }
    done = _Progress()
    held: dict[str, Any] = {"learner": learner, "progress": done}
    if running is not None:
        held["plug-in"] = running
    loop = Loop(
        steps=stages[-1].last + 1,
        seed=seed,
        params=dict(zip(learner.names, learner.params, strict=True)),
        state=held,
        config=config,
        out=out,
        save_every=save_every,
        log_every=50,
        events=events,
        label=f"{method.label}{'' if plugin is None else ' + ' + plugin.name}, seed {seed}",
    )
    run = _Run(learner, plugin, running, stages, done)
    loop.run(run.step)
    learner.model.eval()
    record = {
        "rows": done.rows,
        "untrained": done.untrained,
        "passes": done.passes,
        "warnings": list(dict.fromkeys(w for row in done.rows for w in row["warnings"])),
        "test_sizes": [len(task.test_y) for task in stream.tasks],
        "task_names": [task.name for task in stream.tasks],
    }
    return Outcome(learner.network, {**loop.config}, record, learner)


def learn_seeds(stream: Stream, method: AnyMethod | str, seeds: Sequence[int], **arguments: Any) -> list[Outcome]:
    """:func:`learn` for several seeds; with ``out``, each in its own folder ``out/SEED``.

    A network that is given as a module is copied for each seed and left as it was.
    """
    if not seeds:
        raise ConfigError("no seeds were given", fix="give at least one, such as [0, 1, 2]")
    out, network = arguments.pop("out", None), arguments.pop("network", "small-conv")
    outcomes = []
    for seed in seeds:
        own = copy.deepcopy(network) if isinstance(network, nn.Module) else network
        folder = None if out is None else Path(out) / str(seed)
        outcomes.append(learn(stream, method, network=own, seed=seed, out=folder, **arguments))
    return outcomes


class _Run:
    """The step function of the loop."""

    def __init__(
        self, learner: Learner, plugin: Plugin | None, running: Running | None, stages: list[_Stage], done: _Progress
    ) -> None:
        self.learner, self.plugin, self.running, self.stages, self.done = learner, plugin, running, stages, done
        self.entered = -1
        self.x: Tensor = torch.empty(0)
        self.y: Tensor = torch.empty(0)
        self.t: Tensor = torch.empty(0)
        self.order: tuple[int, Tensor] = (-1, torch.empty(0))

    def step(self, step: Step) -> dict[str, Tensor | float]:
        """One step of training, with what happens at the ends of tasks."""
        learner, begin = self.learner, time.perf_counter()
        stage = next(stage for stage in self.stages if step.index <= stage.last)
        if self.entered != stage.index:
            self._enter(stage, anew=step.index == stage.first)
        batch, x = self._batch(stage, step.index)
        weight = 1.0 if self.plugin is None else self.plugin.data_weight(learner.lr)
        view = View(learner, batch, step.index, weight)
        host = _Host(learner, view, step.index)
        if self.running is None:
            host.update(host.gradient())
            found: Mapping[str, Tensor] = {}
        else:
            found = self.running.step(host)
        learner.method.remember(view, x)
        self.done.passes += view.passes
        self.done.seconds += time.perf_counter() - begin
        if step.index == stage.last:
            self._leave(stage)
        if (step.index + 1) % 50 and step.index + 1 < step.total:
            return {}
        losses = {} if host.loss is None else {"loss": host.loss}
        return {"task": float(stage.index), **losses, **found}

    def _enter(self, stage: _Stage, anew: bool) -> None:
        learner = self.learner
        if anew and stage.first == 0:
            self.done.untrained = dataclasses.asdict(evaluate(learner))
            learner.model.train()
        self.entered = stage.index
        learner.task, learner.stage_tasks = stage.tasks[-1], list(stage.tasks)
        self.x = torch.cat([learner.data[task][0] for task in stage.tasks])
        self.y = torch.cat([learner.data[task][1] for task in stage.tasks])
        self.t = torch.cat([torch.full_like(learner.data[task][1], task) for task in stage.tasks])
        self.order = (-1, torch.empty(0))
        learner.model.train()
        if anew:
            learner.begin_task()
        else:
            learner.current = learner.task_columns[learner.stage_tasks].any(0)

    def _batch(self, stage: _Stage, index: int) -> tuple[Batch, Tensor]:
        learner = self.learner
        epoch, position = divmod(index - stage.first, stage.steps_an_epoch)
        if self.order[0] != epoch:
            shuffled = learner.stream.boundaries
            order = seeds.permutation(stage.samples, learner.seed, "order", stage.index, epoch)
            self.order = (epoch, (order if shuffled else torch.arange(stage.samples)).to(learner.device))
        drops = sum(epoch >= milestone for milestone in learner.settings.milestones)
        learner.lr = learner.settings.lr * learner.settings.lr_decay**drops
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
                found=f"'{learner.method.label}' at learning rate {learner.lr:g}",
                fix="lower the learning rate or the strength of the method, or clip the gradient",
            )
        if learner.stream.boundaries:
            learner.end_task()
            if self.running is not None:
                self.running.end_task(learner)
        train = done.seconds + time.perf_counter() - begin
        begin = time.perf_counter()
        measured: Evaluation = evaluate(learner)
        learner.model.train()
        done.rows.append(
            {
                "task": stage.tasks[-1],
                **dataclasses.asdict(measured),
                "seconds": {"train": train, "evaluate": time.perf_counter() - begin},
                "diagnostics": {} if self.running is None else self.running.summary(),
                "warnings": [] if self.running is None else self.running.warnings(),
            }
        )
        done.seconds = 0.0


def _stages(learner: Learner) -> Iterator[_Stage]:
    first = 0
    for index, tasks in enumerate(learner.method.stages(len(learner.stream.tasks))):
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


def save_outcome(outcome: Outcome, path: Path) -> Path:
    """Write the trained weights with the run's configuration in the header (safetensors)."""
    tensors = {name: value.detach() for name, value in outcome.model.state_dict().items()}
    return state.save(path, tensors, {"config": outcome.config})
