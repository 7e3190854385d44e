"""What a freeze mask saves its user, and what learning one costs its publisher: CPU time and memory, resumable.

    python benchmarks/guard_costs.py --work FOLDER

Savings: one training step (AdamW, fp32) with a share of the U-Net frozen by ``enforce`` beside full fine-tuning, in
turns in one process on one thread; also LoRA of rank 4 on the attention projections. Each figure is the mean ratio over
rounds of CPU time with its 95 % t-interval, for the whole step and for its two passes alone, without the optimizer's
update: that is what the bounds phi/3 and phi/4 of freezeasguard §2 are about (phi: the frozen share of *parameters*).

Memory of mask learning: ``learn`` itself runs, one process a cell, and in one publisher and one user step is measured

- ``held``: bytes of all tensors that are alive when the step begins (those from before ``learn`` left out, but for the
  U-Net), and ``peak``: those and the most that is allocated above them inside the step, by torch's allocator records;
- ``activations``: the same peak of a plain forward and backward pass of a batch of the same size whose gradients are
  dropped as they come, above the weights;
- ``weights``: peak less activations, in weight sets: what the claim "2.2 times the weights plus activations" is about.

Allocator records count every tensor exactly and give the same number on every machine; scratch memory that oneDNN takes
past the allocator is in none of them. ``resident`` is the same difference from the kernel's peak of resident memory, as
a check on all that the allocator does not see; it is noisy on a small model.

Two U-Nets: the bundled one, and one of Stable Diffusion's layout (686 tensors) with random weights.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from diffusers import UNet2DConditionModel
from guard_savings import count
from peft import LoraConfig
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from unteach.canvas import model_path
from unteach.core import masks, seeds, state
from unteach.core.freeze import share
from unteach.core.loop import Step
from unteach.diffusion.examples import Examples
from unteach.diffusion.model import Model, load
from unteach.guard.data import GuardData, draw, losses
from unteach.guard.enforce import enforce
from unteach.guard.methods import guards
from unteach.guard.methods import learner as learning
from unteach.guard.methods import relearn as relearning
from unteach.records import environment
from unteach.records.stats import t_mean

OUT = Path(__file__).parent / "results" / "guard_costs.json"
MODELS = ("bundled", "large")
BATCH = {"bundled": 16, "large": 1}  # of savings
ROUNDS = {"bundled": 24, "large": 6}
LEARN_BATCH = {"bundled": 16, "large": 2}
RHOS = (0.1, 0.3, 0.5, 0.7)
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
USERS: dict[str, dict[str, Any]] = {
    "sgd": {"user": "sgd"},
    "sgd, bf16 difference": {"user": "sgd", "difference": "bf16"},
    "adamw": {},
    "adamw, bf16 difference": {"difference": "bf16"},
    "adamw, moments on disk": {"moments": "disk"},
    "adamw, moments on disk, bf16 difference": {"moments": "disk", "difference": "bf16"},
    "adamw, moments on disk, unrolled": {"moments": "disk", "unrolled": True},
}
LARGE_USERS = ("sgd", "adamw", "adamw, moments on disk")


def network(name: str) -> Model:
    """The bundled model, or the same pipeline around a larger U-Net with random weights."""
    model = load(model_path())
    if name == "bundled":
        return model
    own = model.pipe.unet.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.pipe.unet = UNet2DConditionModel(
            sample_size=32, in_channels=own.in_channels, out_channels=own.out_channels,
            block_out_channels=(128, 256, 384, 384), layers_per_block=2, attention_head_dim=8,
            cross_attention_dim=own.cross_attention_dim,
        )  # fmt: skip
    return Model(model.pipe)


def peak(work: Callable[[], object]) -> int:
    """Most bytes allocated at a time above what was there, from the allocator's records."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    todo, events = list(found.profiler.kineto_results.experimental_event_tree()), []
    while todo:
        event = todo.pop()
        todo.extend(event.children)
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, size in sorted(events, key=lambda e: e[0]):
        now += size
        most = max(most, now)
    return most


# ------------------------------------------------------------------------------------------------ savings


def mask(unet: torch.nn.Module, kind: str, rho: float, seed: int = 0) -> set[str]:
    """Random tensors, in a random order up to the share of tensors or of parameters."""
    sizes = {name: value.numel() for name, value in unet.named_parameters()}
    order = seeds.permutation(len(sizes), seed, "costs mask").tolist()
    scores = dict(zip(sizes, map(float, order), strict=True))
    measure: masks.Measure = "tensors" if kind == "tensors" else "parameters"
    costs = dict.fromkeys(sizes, 1) if kind == "tensors" else sizes
    return masks.by_score(scores, costs, rho, measure)


class Arm:
    """A U-Net, an optimizer and what is frozen; every arm sees the same batches."""

    def __init__(self, name: str, checkpointing: bool, frozen: set[str] | None = None, rank: int = 0) -> None:
        self.unet = network(name).pipe.unet
        self.unet.requires_grad_(True)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        if rank:
            self.unet.requires_grad_(False)
            self.unet.add_adapter(LoraConfig(r=rank, target_modules=ATTENTION))
        trained = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)
        self.guard = None if frozen is None else enforce(self.unet, self.optimizer, frozen=frozen)
        c = self.unet.config
        shape = (BATCH[name], c.in_channels, c.sample_size, c.sample_size)
        self.x = torch.randn(shape, generator=seeds.generator(0, "x"))
        self.text = torch.randn(BATCH[name], 77, c.cross_attention_dim, generator=seeds.generator(0, "text"))

    def loss(self, unet: Any) -> Tensor:
        t = torch.arange(len(self.x)) * 50 + 100
        value: Tensor = (unet(self.x, t, self.text).sample - self.x).square().mean()
        return value

    def passes(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.unet).backward()

    def step(self) -> tuple[float, float]:
        """CPU seconds of the two passes, and of the whole step."""
        begin = time.process_time()
        self.passes()
        middle = time.process_time()
        self.optimizer.step()
        return middle - begin, time.process_time() - begin

    def bytes(self) -> dict[str, int]:
        cost = count(self.unet, self.optimizer, self.loss)
        self.optimizer.zero_grad(set_to_none=True)
        most = cost.weights + cost.state + peak(lambda: self.step())
        keys = ("trained", "weights", "gradients", "state", "static", "activations")
        return {key: getattr(cost, key) for key in keys} | {"peak": most}


def savings(name: str, checkpointing: bool, kind: str, rho: float) -> dict[str, Any]:
    """One way to train beside full fine-tuning."""
    full = Arm(name, checkpointing)
    frozen = None if kind == "lora" else mask(full.unet, kind, rho)
    other = Arm(name, checkpointing, frozen, rank=4 if kind == "lora" else 0)
    sizes = [arm.bytes() for arm in (full, other)]
    passes, steps = [], []
    for k in range(ROUNDS[name] + 1):
        arms = (full, other) if k % 2 else (other, full)
        times = {id(arm): arm.step() for arm in arms}
        if k:
            (a, b), (c, d) = times[id(other)], times[id(full)]
            passes.append(a / c)
            steps.append(b / d)
    held = share(full.unet, frozen or ())
    phi = held.of_parameters
    range_ = None
    if kind == "tensors":  # what other random masks of as many tensors would freeze
        shares = sorted(share(full.unet, mask(full.unet, kind, rho, seed)).of_parameters for seed in range(100))
        range_ = [shares[5], shares[94]]
    if other.guard is not None:
        other.guard.verify()
    return {
        "tensors": held.of_tensors,
        "phi": phi,
        "phi of random masks, 5 to 95 %": range_,
        "step": {**vars(t_mean(steps)), "median": statistics.median(steps)},
        "passes": {**vars(t_mean(passes)), "median": statistics.median(passes)},
        "passes, bound": None if kind == "lora" else 1 - phi / (4 if checkpointing else 3),
        "static": sizes[1]["static"] / sizes[0]["static"],
        "static, bound": None if kind == "lora" else 1 - 0.75 * phi,
        "peak": sizes[1]["peak"] / sizes[0]["peak"],
        "bytes": {"full": sizes[0], kind: sizes[1]},
        "rounds": {"step": steps, "passes": passes},
    }


def savings_cells() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = []
    for model in MODELS:
        for checkpointing in (False, True):
            pairs = [("tensors", rho) for rho in RHOS] + [("parameters", rho) for rho in RHOS]
            if checkpointing:
                pairs = [(kind, rho) for kind, rho in pairs if rho in (0.3, 0.7)]
            for kind, rho in [("tensors", 0.0), *pairs, ("lora", 0.0)]:
                if not (checkpointing and kind == "tensors" and rho == 0):
                    cells.append({"model": model, "checkpointing": checkpointing, "kind": kind, "rho": rho})
    return cells


# ------------------------------------------------------------------------------------------------ mask learning


def examples(model: Model, name: str) -> Examples:
    latents = torch.randn(8, *model.latent_shape, generator=seeds.generator(0, "latents", name))
    ids = tuple(f"{name} {k}" for k in range(8))
    return Examples(name, latents, model.encode([f"a {name.split()[0]}"] * 8), ids, ids)


def resident(what: str) -> int:
    """VmHWM or VmRSS of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak() -> None:
    """Begin the kernel's peak anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def alive(before: set[int]) -> int:
    """Bytes of all tensors that are alive, but for the addresses in ``before``."""
    found = {}
    for value in gc.get_objects():
        if issubclass(type(value), Tensor) and value.device.type == "cpu":
            storage = value.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in before:
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def memory(name: str, user: str) -> dict[str, Any]:
    """Run ``learn`` for six steps and measure; in this process nothing else has run."""
    model = network(name)
    weights = sum(p.numel() * p.element_size() for p in model.denoiser.parameters())
    parts = [examples(model, f"{kind} {level}") for kind in ("red", "blue") for level in ("user", "publisher")]
    data = GuardData([parts[0]], [parts[1]], [parts[2]], [parts[3]])
    before_steps = 3 if user == "relearning" else 1
    settings = {
        "steps": 6,
        "interval": 2,
        "reset_every": 0,
        "relearn_steps": before_steps,
        "batch_size": LEARN_BATCH[name],
    }
    c = guards.make("freezeasguard", **settings, **USERS.get(user, {}), scale="raw")
    half = c.batch_size // 2

    bare = learning.MaskLearner.__new__(learning.MaskLearner)  # its way through the backward pass alone
    bare.params = dict(model.denoiser.named_parameters())

    def plain() -> None:
        step = Step(0, 1, 0)
        batches = [draw(side, step, "plain", half) for side in (data.illegal_user, data.innocent_user)]
        with bare._each(lambda name, gradient: None):
            torch.autograd.backward(torch.cat(losses(model, batches, step, "plain")).mean())

    plain()
    forget_peak()
    plain()
    plain_resident = resident("VmHWM")
    activations = peak(plain)
    gc.collect()
    inside = {p.untyped_storage().data_ptr() for p in model.denoiser.parameters()}
    before = {t.untyped_storage().data_ptr() for t in gc.get_objects() if issubclass(type(t), Tensor)} - inside
    found: dict[str, dict[str, Any]] = {}

    def record(phase: str, held: int, most: int) -> None:
        whole = held + most
        sets = {"held": held / weights, "peak": whole / weights, "weights": (whole - activations) / weights}
        found.setdefault(phase, {}).update(sets)

    def watched(phase: str, work: Callable[..., float]) -> Callable[..., float]:
        calls = 0

        def call(*args: Any) -> float:
            nonlocal calls
            calls += 1
            if calls == 2:
                gc.collect()
                forget_peak()
                begin = time.process_time()
                value = work(*args)
                seconds = time.process_time() - begin
                over = resident("VmHWM") - plain_resident
                found.setdefault(phase, {}).update({"resident": 1 + over / weights, "seconds": seconds})
                return value
            if calls == 3:
                held, kept = alive(before), []
                most = peak(lambda: kept.append(work(*args)))
                record(phase, held, most)
                return float(kept[0])
            return work(*args)

        return call

    if user == "relearning":
        tune = relearning.finetune

        def tuned(*args: Any, **more: Any) -> Any:
            held, kept = alive(before), []
            record("relearning", held, peak(lambda: kept.append(tune(*args, **more))))
            return kept[0]

        relearning.finetune = tuned
    else:
        for phase in ("publisher", "user"):
            step = watched(phase, getattr(learning.MaskLearner, phase))
            setattr(learning.MaskLearner, phase, lambda self, *args, step=step: step(self, *args))
    # learn() syncs its files, which is slow on some disks and not what is measured; the moments are in TMPDIR
    fast = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        learning.learn(model, data, c, out=Path(folder))
    return {
        "weights, bytes": weights,
        "activations, bytes": activations,
        "batch": c.batch_size,
        "phases": found,
        "weights": max(phase["weights"] for phase in found.values()),
    }


# ------------------------------------------------------------------------------------------------ all


def path_of(work: Path, cell: dict[str, Any]) -> Path:
    words = " ".join(str(value) for value in cell.values())
    return work / "cells" / f"{'memory' if 'user' in cell else 'savings'} {words}.json"


def run(cell: dict[str, Any], path: Path) -> None:
    torch.set_num_threads(1)
    found = (
        memory(**cell) if "user" in cell else savings(cell["model"], cell["checkpointing"], cell["kind"], cell["rho"])
    )
    state.write_json(path, {"cell": cell, "result": found, "environment": vars(environment.collect())})


def show(cell: dict[str, Any], result: dict[str, Any]) -> str:
    if "user" in cell:
        phases = ", ".join(
            f"{phase} {row['weights']:.2f} (resident {row.get('resident', float('nan')):.2f})"
            for phase, row in result["phases"].items()
        )
        return f"memory {cell['name']:8} {cell['user']:42} {result['weights']:.2f} weight sets: {phases}"
    step, passes, bound = result["step"], result["passes"], result["passes, bound"]
    limit = "" if bound is None else f" (bound {bound:.3f})"
    return (
        f"{cell['model']:8} {'checkpointing ' if cell['checkpointing'] else ''}{cell['kind']} {cell['rho']}: "
        f"phi {result['phi']:.3f}, step {step['mean']:.3f} [{step['low']:.3f}, {step['high']:.3f}], "
        f"passes {passes['mean']:.3f} [{passes['low']:.3f}, {passes['high']:.3f}]{limit}, "
        f"static {result['static']:.3f}, peak {result['peak']:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="what freezing saves and mask learning costs")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cell", help="one cell as JSON, in this process")
    given = parser.parse_args()
    if given.cell:
        cell = json.loads(given.cell)
        run(cell, path_of(given.work, cell))
        return
    users = {"bundled": [*USERS, "relearning"], "large": [*LARGE_USERS, "relearning"]}
    cells = savings_cells() + [{"name": name, "user": user} for name in MODELS for user in users[name]]
    records = []
    for cell in cells:
        path = path_of(given.work, cell)
        if not path.exists() and "user" in cell:
            # a process each, whose larger pieces of memory go back to the system when they are freed
            call = [sys.executable, __file__, "--work", str(given.work), "--cell", json.dumps(cell)]
            subprocess.run(call, check=True, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})
        elif not path.exists():
            run(cell, path)
        records.append(state.read_json(path))
        print(show(cell, records[-1]["result"]), flush=True)
    config = {
        "optimizer": "AdamW, fp32",
        "threads": 1,
        "batch": BATCH,
        "rounds": ROUNDS,
        "batch of mask learning": LEARN_BATCH,
        "lora": {"rank": 4, "modules": ATTENTION},
        "timing": "CPU time of the process, arms in turns",
    }
    rows = [{**r["cell"], **r["result"]} for r in records]
    record = {
        "config": config,
        "savings": [row for row in rows if "user" not in row],
        "mask learning": [row for row in rows if "user" in row],
        "environment": records[-1]["environment"],
        "command": "python benchmarks/guard_costs.py --work FOLDER",
    }
    state.write_json(OUT, record)


if __name__ == "__main__":
    main()
