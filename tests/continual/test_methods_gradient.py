"""Rules on the gradient: every step's is that of the definition, and the limit of the penalties that it stands for."""

import itertools

import pytest
import torch
from tests.continual import lab, tiny
from tests.continual.lab import CLASSES, Look, distance, flat, slope, watch
from tests.oracle import continual as oracle
from tests.oracle.curvature import LowRank
from torch import Tensor, nn

from unteach.continual.learner import Learner
from unteach.continual.methods import make
from unteach.continual.methods.gem import gem_multipliers
from unteach.continual.methods.subspaces import extended
from unteach.continual.sources import FromMemory, Labels
from unteach.continual.terms import Output
from unteach.core import seeds
from unteach.core.bregman import LogSumExp
from unteach.core.curvature import Kronecker

LIMITS = (1e3, 1e4, 1e5)
"""Weights β of the penalties whose limit is taken."""


def plain(look: Look) -> Tensor:
    """The gradient of the batch's cross-entropy, (P,)."""
    return flat(slope(oracle.cross_entropy(look.net, *look.batch), look.learner.params), look.learner.params)


def gradient(look: Look) -> Tensor:
    return flat(look.gradients, look.learner.params)


# ---- A-GEM and GEM ----


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_agem_is_er_with_a_weight_that_depends_on_the_state(scenario: str) -> None:
    weights: list[float] = []

    def step(look: Look) -> None:
        params, drawn = look.learner.params, look.memory("reference")

        def cross_entropy(x: Tensor, y: Tensor) -> Tensor:
            # With the tasks told, every sample sees the classes of its own.
            of = [look.learner.stream.tasks[int(label) // 2].classes if scenario == "task" else None for label in y]
            rows = zip(look.net(x), y, of, strict=True)
            return oracle.mean(oracle.surprise(h, int(label), classes) for h, label, classes in rows)

        loss = cross_entropy(*look.batch)
        if drawn is None:
            assert look.learner.task == 0
        else:
            reference = cross_entropy(drawn[0], drawn[1])
            g, g_m = (flat(slope(each, params), params) for each in (loss, reference))
            weights.append(oracle.agem_weight(g, g_m))
            loss = cross_entropy(*look.batch) + weights[-1] * cross_entropy(drawn[0], drawn[1])
            if scenario == "class":  # the same with the package's own ER term
                term = Output(LogSumExp(), FromMemory("reference"), Labels(), weights[-1])
                look.host.view.moved()
                own = cross_entropy(*look.batch) + weights[-1] * term.value(look.host.view)
                assert distance(gradient(look), flat(slope(own, params), params)) < 1e-6
        assert distance(gradient(look), flat(slope(loss, params), params)) < 1e-6

    watch(make("a-gem", buffer_size=12), step, on=lab.stream(scenario), epochs=3, learning_rate=0.3)
    assert any(w > 0 for w in weights)
    assert scenario == "class" or any(w == 0 for w in weights)  # there the two always fight: old classes are unlikely


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_gem_solves_its_quadratic_programme(margin: float) -> None:
    active: list[int] = []

    def step(look: Look) -> None:
        learner, g = look.learner, plain(look)
        rows = []
        for task in range(learner.task):
            drawn = learner.draw(f"gem {task}", look.host.index, 5, task)
            assert drawn is not None and set(drawn.y.tolist()) <= set(learner.stream.tasks[task].classes)
            rows.append(flat(slope(oracle.cross_entropy(look.net, drawn.x, drawn.y), learner.params), learner.params))
        wanted = g
        if rows:
            memories = torch.stack(rows)
            if bool((memories @ g < 0).any()):
                multipliers = oracle.gem_by_faces(memories, g, margin)
                wanted = g + multipliers @ memories
                active.append(int((multipliers > margin + 1e-9).sum()))
                if margin == 0:
                    assert bool((memories @ gradient(look) >= -1e-6).all())
        assert distance(gradient(look), wanted) < 1e-6

    watch(make("gem", margin=margin, samples=5, buffer_size=18), step, epochs=4, learning_rate=0.4)
    assert 2 in active and 1 in active


def test_multipliers_are_those_of_two_other_solvers() -> None:
    draw = seeds.generator(0, "tests gem")
    faces: set[int] = set()
    for _ in range(30):
        memories, g = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((4, 9), (9,)))
        g = g - 0.5 * memories.sum(0)
        v = gem_multipliers(memories, g)
        faces.add(int((v > 1e-9).sum()))
        assert torch.allclose(v, oracle.gem_by_faces(memories, g, 0.0), atol=1e-6)
        assert torch.allclose(g + v @ memories, oracle.gem_by_slsqp(memories, g), atol=1e-4)
        assert torch.allclose(gem_multipliers(memories, g, 0.2), oracle.gem_by_faces(memories, g, 0.2), atol=1e-6)
    assert len(faces) >= 3


@pytest.mark.parametrize("name", ["a-gem", "gem"])
def test_episodic_memories_hold_a_share_of_every_task_that_has_ended(name: str) -> None:
    def end(learner: Learner) -> None:
        kept = learner.memory
        assert torch.bincount(kept.task[: len(kept)], minlength=3).tolist() == [
            4 * (t <= learner.task) for t in range(3)
        ]

    watch(make(name, buffer_size=12), None, end)


# ---- OGD ----


def kept_gradients(found: list[Tensor], learner: Learner) -> None:
    found.append(oracle.true_logit_gradients(learner.model, *learner.data[learner.task], learner.params))


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_ogd_projects_off_the_gradients_of_the_true_logits(scenario: str) -> None:
    found: list[Tensor] = []
    dimensions: list[int] = []

    def step(look: Look) -> None:
        g = plain(look)
        wanted = oracle.off_span(g, torch.cat(found, 1)) if found else g
        assert float((gradient(look) - wanted).abs().max()) < 1e-6 * float(g.abs().max())
        if found:
            assert distance(gradient(look), g) > 1e-3

    def end(learner: Learner) -> None:
        kept_gradients(found, learner)
        basis = learner.objective.rule.basis
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-9)
        rank = int(torch.linalg.matrix_rank(torch.cat(found, 1), rtol=1e-7))
        dimensions.append(basis.shape[1])
        assert basis.shape[1] == rank

    # 14 gradients a task in 54 dimensions; the domain stream's are dependent, since its classes come again.
    watch(
        make("ogd", vectors=14),
        step,
        end,
        on=lab.stream(scenario, same=scenario == "domain", narrow=True),
        learning_rate=0.05,
    )
    assert dimensions[0] == 14 and (dimensions[-1] < 42 if scenario == "domain" else dimensions[-1] == 42)


def test_ogd_keeps_the_whole_span_of_gradients_that_repeat_themselves() -> None:
    # Each sample twice in a row: of a QR's columns alone, those of the repeats would carry what comes later.
    on = lab.stream()
    twice = [
        type(t)(t.name, t.x.repeat_interleave(2, 0), t.y.repeat_interleave(2), t.test_x, t.test_y) for t in on.tasks
    ]
    on = type(on)("twice", "class", tuple(twice), CLASSES, on.class_names, (), ())
    found: list[Tensor] = []

    def step(look: Look) -> None:
        if found:
            g = plain(look)
            assert float((gradient(look) - oracle.off_span(g, torch.cat(found, 1))).abs().max()) < 1e-6

    watch(make("ogd", vectors=28), step, lambda learner: kept_gradients(found, learner), on=on, learning_rate=0.05)
    assert len(found) == 3


def test_ogd_is_the_limit_of_a_quadratic_penalty() -> None:
    errors: list[list[float]] = []

    def step(look: Look) -> None:
        basis, g = look.learner.objective.rule.basis, plain(look)
        if basis is None:
            return
        curvature = LowRank(basis)
        projector = torch.stack([curvature.times([e])[0] for e in torch.eye(len(g), dtype=torch.float64)])
        step_of = [oracle.penalised_step(g, projector, 0.1, beta) for beta in LIMITS]
        errors.append([float((s + 0.1 * gradient(look)).norm()) for s in step_of])

    watch(make("ogd", vectors=14), step)
    check_limit(errors)


def check_limit(errors: list[list[float]]) -> None:
    """The error falls as 1/β."""
    assert len(errors) == 4
    for row in errors:
        assert all(abs(a / b - 10) < 0.3 for a, b in itertools.pairwise(row))
        assert row[-1] < 1e-4


# ---- GPM ----


class Layers:
    """Bases of the inputs of the two layers, by the oracle."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.bases: dict[str, Tensor] = {}

    def end(self, learner: Learner) -> None:
        layers, x = learner.model.layers, learner.data[learner.task][0].double()
        with torch.no_grad():
            for name, inputs in (("layers.0.weight", x), ("layers.2.weight", layers[:2](x))):
                self.bases[name] = oracle.grown(self.bases.get(name), inputs.T, self.threshold)

    def off(self, g: list[Tensor], names: list[str]) -> list[Tensor]:
        """G - G M Mᵀ a layer; what has no inputs stays."""
        if not self.bases:
            return g
        bases = [self.bases.get(name) for name in names]
        return [torch.zeros_like(t) if b is None else t - t @ b @ b.T for t, b in zip(g, bases, strict=True)]


@pytest.mark.parametrize(("threshold", "narrow"), [(0.8, False), (0.97, True), (1.0, True)])
def test_gpm_projects_each_layer_off_the_inputs_it_has_seen(threshold: float, narrow: bool) -> None:
    layers, widths = Layers(threshold), []

    def step(look: Look) -> None:
        params = look.learner.params
        g = slope(oracle.cross_entropy(look.net, *look.batch), params)
        wanted = flat(layers.off(g, look.learner.names), params)
        assert float((gradient(look) - wanted).abs().max()) < 1e-6 * float(flat(g, params).abs().max())

    def end(learner: Learner) -> None:
        layers.end(learner)
        for name, basis in learner.objective.rule.bases.items():
            assert basis.shape == layers.bases[name].shape
            assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-9)
        widths.append(learner.objective.rule.bases["layers.0.weight"].shape[1])

    watch(make("gpm", threshold=threshold), step, end, on=lab.stream(narrow=narrow))
    if threshold == 1:
        assert widths == [2, 3, 4]  # task t lives in the coordinates t and t + 1
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_gpm_is_the_limit_of_a_quadratic_penalty_a_layer() -> None:
    errors: list[list[float]] = []

    def step(look: Look) -> None:
        learner = look.learner
        if not learner.objective.rule.bases:
            return
        factors, diagonal = [], []
        for name, p in zip(learner.names, learner.params, strict=True):
            basis = learner.objective.rule.bases.get(name)
            # ½‖ΔW M‖² has the curvature I ⊗ MMᵀ; biases are held by the identity.
            held = None if basis is None else (basis @ basis.T, torch.eye(len(p), dtype=torch.float64))
            factors.append(held)
            diagonal.append(torch.ones_like(p) if basis is None else None)
        curvature, g = Kronecker(factors, diagonal), plain(look)
        sizes = [p.numel() for p in learner.params]
        rows = []
        for e in torch.eye(len(g), dtype=torch.float64):
            parts = [t.view_as(p) for t, p in zip(torch.split(e, sizes), learner.params, strict=True)]
            rows.append(flat(curvature.times(parts), learner.params))
        step_of = [oracle.penalised_step(g, torch.stack(rows), 0.1, beta) for beta in LIMITS]
        errors.append([float((s + 0.1 * gradient(look)).norm()) for s in step_of])

    watch(make("gpm", threshold=0.8), step)
    check_limit(errors)


def test_gpm_of_a_convolution_protects_the_patches_it_has_seen() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3, padding=1, stride=2)
            self.head = nn.Linear(48, 4)
            with torch.no_grad():
                for i, p in enumerate(self.parameters()):
                    p.copy_(0.3 * torch.randn(p.shape, generator=seeds.generator(i, "tests gpm conv")))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).relu().flatten(1))

    kept: list[Tensor] = []

    def end(learner: Learner) -> None:
        kept.append(learner.model.conv.weight.detach().clone())
        kept.append(learner.objective.rule.bases["conv.weight"])

    learner = watch(make("gpm", threshold=0.95), None, end, on=tiny.stream(), network=Small(), augment="none")
    x = nn.functional.pad(learner.views(learner.data[0][0], None), (1, 1, 1, 1))
    corners = itertools.product(range(0, 8, 2), repeat=2)
    patches = torch.cat([x[:, :, i : i + 3, j : j + 3].flatten(1) for i, j in corners])
    before, basis, after, _ = kept
    held = (patches @ basis).square().sum() / patches.square().sum()
    assert 0 < basis.shape[1] < 9 and float(held) >= 0.95 - 1e-5
    moved = (after - before).flatten(1)
    assert float(moved.norm()) > 1e-4
    assert float((moved @ basis).norm()) < 1e-5 * float(moved.norm())


def test_the_basis_of_gpm_stays_orthonormal_where_inputs_have_no_energy_left() -> None:
    draw = seeds.generator(0, "tests gpm")
    inputs = torch.zeros(6, 10, dtype=torch.float64)
    inputs[:2] = torch.randn(2, 10, generator=draw, dtype=torch.float64)
    basis = extended(None, inputs, 1.0)
    assert basis.shape == (6, 2)
    more = inputs.clone()
    more[2] = torch.randn(10, generator=draw, dtype=torch.float64)
    grown = extended(basis, more, 1.0)
    assert grown.shape == (6, 3)
    assert torch.allclose(grown.T @ grown, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert extended(grown, more, 1.0).shape == (6, 3)
