"""Synthetic runs of continual learning, with metrics computed as the engine does."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from unteach.continual import metrics
from unteach.records.learning import Key, LearningRun, Seconds


def run(
    method: str = "er",
    plugin: str = "none",
    seed: int = 0,
    *,
    tasks: int = 3,
    start: float = 0.9,
    drop: float = 0.1,
    lift: float = 0.0,
    passes: int = 1000,
    noise: float = 0.0,
    stream: str = "digits",
    scenario: str = "class",
    diagnostics: Sequence[Mapping[str, float | None]] = (),
    warnings: Sequence[str] = (),
    **more: Any,
) -> LearningRun:
    """Every task is learned to ``start`` and loses ``drop`` with each later one; ``lift`` comes on top."""
    luck = random.Random(f"{method} {plugin} {seed}")
    shared = random.Random(seed).gauss(0, 0.01) if noise else 0.0

    def cell(t: int, i: int, up: float) -> float:
        raw = start - drop * (t - i) + lift + up + shared + luck.gauss(0, noise)
        return min(1.0, max(0.0, raw)) if t >= i else 0.0

    class_il = [[cell(t, i, 0.0) for i in range(tasks)] for t in range(tasks)]
    task_il = [[cell(t, i, 0.08) if t >= i else 0.5 for i in range(tasks)] for t in range(tasks)]
    matrices = {"class_il": class_il, "task_il": task_il, "class_il_all_heads": class_il}
    untrained = {"class_il_all_heads": [0.1] * tasks, "task_il": [0.5] * tasks}
    sizes, ece = [100] * tasks, [0.05] * tasks
    made = LearningRun(
        key=Key(
            stream=stream,
            scenario=scenario,
            method=method,
            plugin=plugin,
            seed=seed,
            network="small-conv",
            training={"lr": 0.1, "epochs": 1},
            method_settings={"buffer": 200},
            plugin_settings={} if plugin == "none" else {"gamma": 0.01},
        ),
        matrices={kind: tuple(tuple(row) for row in m) for kind, m in matrices.items()},
        untrained={kind: tuple(b) for kind, b in untrained.items()},
        task_names=tuple(f"task {t + 1}" for t in range(tasks)),
        test_sizes=tuple(sizes),
        metrics=metrics.summary(matrices, untrained, sizes, ece=ece),
        ece=tuple(ece),
        seconds=Seconds(train=(2.0,) * tasks, evaluate=(0.5,) * tasks),
        passes=passes,
        diagnostics=tuple(dict(d) for d in diagnostics),
        warnings=tuple(warnings),
        environment={"python": "3.11"},
        command=f"unteach learn --seed {seed}",
    )
    return dataclasses.replace(made, **more)


def with_value(of: LearningRun, metric: str, value: float | None) -> LearningRun:
    """The same run with one metric set by hand."""
    return dataclasses.replace(of, metrics={**of.metrics, metric: value})
