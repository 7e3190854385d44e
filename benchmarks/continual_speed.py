"""How fast the engine is beside a literal textbook loop (benchmarks/textbook.py): CPU time of one thread, in turns.

    python benchmarks/continual_speed.py

Writes benchmarks/results/continual_speed.json. Each figure is a ratio of the textbook's CPU time to ours (or of two
of our own arms), the median over rounds with the smallest and largest; both sides run in turns in one process, on the
same small convolutional network, the same number of passes and samples, random images of 3 x 32 x 32.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import textbook
import torch

from unteach.continual import networks
from unteach.continual.engine import learn
from unteach.continual.learner import Training
from unteach.continual.memory.buffer import Memory
from unteach.continual.methods import make
from unteach.continual.plugins import plugins
from unteach.continual.streams import Stream, Task
from unteach.core import state
from unteach.core.fisher import fisher
from unteach.records import environment

OUT = Path(__file__).parent / "results" / "continual_speed.json"
ROUNDS = 5
SAMPLES = 640
CLASSES = 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def images(seed: int, count: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return x, torch.arange(count) % CLASSES


def stream() -> Stream:
    x, y = images(0)
    task = Task("images", x, y, x[:20], y[:20])
    return Stream("speed", "class", (task,), CLASSES, tuple(map(str, range(CLASSES))), MEAN, STD, "crop-flip")


def cpu(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def compare(slow: Callable[[], float], fast: Callable[[], float]) -> dict[str, object]:
    """Ratio slow/fast over rounds, in turns; the first round warms up and does not count."""
    ratios = []
    for round_ in range(ROUNDS + 1):
        a, b = (slow(), fast()) if round_ % 2 else tuple(reversed((fast(), slow())))
        if round_:
            ratios.append(a / b)
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "ratios": ratios}


def epoch_ours(plugin: str | None = None, width: int = 16, **settings: object) -> float:
    """CPU seconds of the training steps of two epochs of DER++ (the second has a filled memory)."""
    made = None if plugin is None else plugins.make(plugin, **settings)
    begin = time.process_time()
    learn(
        stream(),
        make("der++", buffer_size=200, alpha=0.1, beta=0.5),
        training=Training(epochs=2, learning_rate=0.03),
        plugin=made,
        options={"width": width},
    )
    return time.process_time() - begin


def epoch_textbook(width: int = 16) -> float:
    x, y = images(0)
    pixels, labels = x.permute(0, 2, 3, 1).contiguous().numpy(), y.numpy()
    model = networks.build("small-conv", (3, 32, 32), CLASSES, 0, width=width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    buffer, rng = textbook.Buffer(200), random.Random(0)
    mean, std = np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)

    def two() -> None:
        for _ in range(2):
            textbook.epoch_of_derpp(model, optimizer, pixels, labels, buffer, rng, mean, std)

    return cpu(two)


def fisher_pair() -> tuple[Callable[[], float], Callable[[], float]]:
    x, y = images(1, 256)
    model = networks.build("small-conv", (3, 32, 32), CLASSES, 0)
    floats = x.float() / 255

    def fast() -> float:
        batches = [(floats[k : k + 32], y[k : k + 32]) for k in range(0, len(y), 32)]
        return cpu(lambda: fisher(model, batches, kind="empirical"))

    slow_result = textbook.fisher(model, floats[:32], y[:32])
    ours = fisher(model, [(floats[:32], y[:32])], kind="empirical")
    for a, b in zip(slow_result, ours.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-8)
    return (lambda: cpu(lambda: textbook.fisher(model, floats, y))), fast


def fisher_sampled() -> float:
    x, y = images(1, 256)
    model = networks.build("small-conv", (3, 32, 32), CLASSES, 0)
    floats = x.float() / 255
    batches = [(floats[k : k + 32], y[k : k + 32]) for k in range(0, len(y), 32)]
    return cpu(lambda: fisher(model, batches, kind="sampled", generator=torch.Generator().manual_seed(0)))


def insert_pair(capacity: int, batches: int) -> tuple[Callable[[], float], Callable[[], float]]:
    x, y = images(2, 32)
    pixels, logits = list(x.permute(0, 2, 3, 1).contiguous().numpy()), torch.randn(32, CLASSES)

    def slow() -> float:
        buffer, rng = textbook.Buffer(capacity), random.Random(0)
        return cpu(lambda: [buffer.add(pixels, y, logits, rng) for _ in range(batches)])

    def fast() -> float:
        memory = Memory(capacity, (3, 32, 32), classes=CLASSES, logits=True)
        return cpu(lambda: [memory.insert(x, y, task=0, logits=logits, step=k) for k in range(batches)])

    return slow, fast


def growth() -> dict[str, object]:
    """CPU seconds of 200 inserts and draws after 1 task and after 20, as a ratio."""
    x, y = images(3, 32)
    ratios = []
    for _ in range(ROUNDS):
        memory = Memory(500, (3, 32, 32), classes=CLASSES, logits=True)
        times = []
        for task in range(20):

            def work(task: int = task, memory: Memory = memory) -> None:
                for k in range(200):
                    memory.insert(x, y, task=task, logits=torch.zeros(32, CLASSES), step=task * 200 + k)
                    memory.draw(32, torch.Generator().manual_seed(k))

            times.append(cpu(work))
        ratios.append(statistics.mean(times[-3:]) / statistics.mean(times[1:4]))
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "ratios": ratios}


def main() -> None:
    torch.set_num_threads(1)
    slow, fast = fisher_pair()
    fill, fill_ours = insert_pair(3200, 100)
    full, full_ours = insert_pair(200, 200)
    current = {"gamma": 0.01, "preconditioner": "none", "loss": "current"}
    found = {
        "epoch of DER++, width 16": compare(epoch_textbook, epoch_ours),
        "epoch of DER++, width 8": compare(lambda: epoch_textbook(8), lambda: epoch_ours(width=8)),
        "Fisher information, batch-1 loop / per sample in batches": compare(slow, fast),
        "Fisher information, batch-1 loop / sampled": compare(slow, fisher_sampled),
        "insert while the buffer fills": compare(fill, fill_ours),
        "insert of 200 batches into 200 rows": compare(full, full_ours),
        "refresh of the current batch / DER++": compare(lambda: epoch_ours("refresh", **current), epoch_ours),
        "buffer after 20 tasks / after 2": growth(),
    }
    for name, value in found.items():
        print(f"{name}: {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})")
    config = {"rounds": ROUNDS, "samples": SAMPLES, "threads": 1, "timing": "CPU time of the process"}
    machine = json.loads(state.canonical(vars(environment.collect())))
    record = {"config": config, "ratios": found, "environment": machine}
    state.write_json(OUT, {**record, "command": "python benchmarks/continual_speed.py"})


if __name__ == "__main__":
    main()
