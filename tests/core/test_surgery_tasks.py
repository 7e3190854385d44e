"""A-GEM and PCGrad."""

from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracle import surgery as oracle
from tests.oracle.tensors import SCOPES, TOLERANCE, close, dtypes, equal, inner, norm, normal, shapes

from unteach.core.surgery import agem, pcgrad, project


@given(shapes, st.integers(0, 10**6))
def test_agem_is_the_nearest_gradient_that_does_not_conflict(shapes, seed) -> None:
    g, g_ref = normal(shapes, seed), normal(shapes, seed + 1)
    found = agem(g, g_ref)
    assert close(found, oracle.agem(g, g_ref), norm(g), torch.float64)
    assert inner(found, g_ref) >= -1e-12 * norm(g) * norm(g_ref)


def test_agem_pinned() -> None:
    found = agem([torch.tensor([-3.0]), torch.tensor([4.0])], [torch.tensor([2.0]), torch.tensor([0.0])])
    assert [t.item() for t in found] == [0.0, 4.0]


@given(shapes, st.integers(1, 4), st.integers(0, 10**6), dtypes, st.sampled_from(SCOPES), st.data())
def test_pcgrad_is_the_oracle(shapes, tasks, seed, dtype, scope, data) -> None:
    grads = [normal(shapes, seed + k, dtype) for k in range(tasks)]
    for task in grads:
        for i in range(len(shapes)):
            case = data.draw(st.sampled_from(("there",) * 6 + ("missing", "zero")))
            task[i] = {"there": task[i], "missing": None, "zero": torch.zeros_like(task[i])}[case]
    found, right = (
        f(grads, generator=torch.Generator().manual_seed(seed), scope=scope) for f in (pcgrad, oracle.pcgrad)
    )
    assert [g is None for g in found] == [g is None for g in right]
    there = [(g, e) for g, e in zip(found, right, strict=True) if g is not None]
    assert all(g.dtype == dtype for g, _ in there)
    scale = sum(norm([g for g in task if g is not None]) for task in grads)
    bound = max(TOLERANCE[dtype], 1e-5) if dtype != torch.float64 else 1e-11
    assert norm([g.double() - e.double() for g, e in there]) <= bound * scale


def test_pcgrad_pinned() -> None:
    """Three tasks that all conflict: each order of the other two gives each task another result."""
    grads = [[torch.tensor(v)] for v in ([1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0])]
    by_hand = [
        [(0.2, -0.1), (0.2, 0.2)],  # task 0: by 1 (.5, .5), then by 2; by 2 (.8, -.4), then by 1
        [(-0.4, 0.2), (0.0, 0.6)],  # task 1: by 0 (0, 1), then by 2; by 2 (-1.2, .6), then by 0
        [(-1.0, -1.0), (0.0, -1.5)],  # task 2: by 0 (0, -2), then by 1; by 1 (-1.5, -1.5), then by 0
    ]
    possible = {tuple(round(sum(c), 3) for c in zip(*each, strict=True)) for each in product(*by_hand)}
    runs = [pcgrad(grads, generator=torch.Generator().manual_seed(seed))[0] for seed in range(60)]
    assert {tuple(round(x, 3) for x in run.tolist()) for run in runs} == possible
    two = pcgrad([[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]], generator=torch.Generator())
    assert two[0].tolist() == [0.5, 1.5]  # (1, 0) -> (.5, .5) and (-1, 1) -> (0, 1)


@given(shapes, st.integers(0, 10**6), st.sampled_from(SCOPES))
def test_pcgrad_of_two_tasks_is_two_projections(shapes, seed, scope) -> None:
    a, b = normal(shapes, seed), normal(shapes, seed + 1)
    both = zip(project(a, b, scope=scope)[0], project(b, a, scope=scope)[0], strict=True)
    found = pcgrad([a, b], generator=torch.Generator(), scope=scope)
    assert close(found, [x + y for x, y in both], norm(a) + norm(b), torch.float64)


@given(shapes, st.integers(1, 4), st.integers(0, 10**6), st.sampled_from(SCOPES))
def test_pcgrad_without_conflict_is_the_sum(shapes, tasks, seed, scope) -> None:
    grads = [[g.abs() for g in normal(shapes, seed + k, torch.float32)] for k in range(tasks)]
    expected = grads[0]
    for task in grads[1:]:
        expected = [x + y for x, y in zip(expected, task, strict=True)]
    assert equal(pcgrad(grads, generator=torch.Generator(), scope=scope), expected)


def test_pcgrad_is_a_function_of_the_generator() -> None:
    grads = [normal([(3,), (2, 2)], k) for k in range(5)]
    one, same = (pcgrad(grads, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert equal(one, same)
    assert any(not equal(one, pcgrad(grads, generator=torch.Generator().manual_seed(s))) for s in range(2, 12))
