"""What holds for every method: without its weights it is plain training, and methods add up. And the table of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytest
import torch
from tests.continual import lab
from tests.continual.lab import Look, distance, flat, identity, slope, watch
from tests.oracle import continual as oracle
from tests.oracle import fisher as importances
from torch import Tensor

from unteach.continual.engine import learn
from unteach.continual.learner import Learner, Training
from unteach.continual.methods import AnyMethod, Form, Method, make, methods
from unteach.continual.streams import Stream
from unteach.continual.terms import TaskLoss, Term
from unteach.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "continual-methods.md"
FORMS = get_args(Form)

WEIGHTLESS: dict[str, dict[str, float]] = {
    "fine-tune": {},
    "er": {"alpha": 0},
    "der": {"alpha": 0},
    "der++": {"alpha": 0, "beta": 0},
    "fdr": {"alpha": 0},
    "cpr": {"alpha": 0},
    "label-smoothing": {"epsilon": 0},
    **{name: {"strength": 0} for name in ("l2-sp", "ewc", "online-ewc", "si", "mas", "rwalk")},
    **{name: {"strength": 0} for name in ("laplace", "kronecker-laplace")},
    "der++ + online-ewc": {"alpha": 0, "beta": 0, "strength": 0},
    "si + er": {"alpha": 0, "strength": 0},
}
"""Settings that leave plain cross-entropy."""

MASKED: dict[str, tuple[str, dict[str, float]]] = {
    "lwf": ("seen", {"alpha": 0}),
    "er-ace": ("present", {"alpha": 0}),
    "x-der": ("current", {"alpha": 0, "beta": 0}),
}
"""Settings that leave cross-entropy over some classes."""

RULES = ["joint", "a-gem", "gem", "ogd", "gpm"]
"""What has no weight, but nothing to hold on to in a first task."""

OTHERS = ["icarl", "vcl", "nvcl", "gdumb"]
"""What has a task loss of another kind (their own tests say which)."""


@dataclass(frozen=True, kw_only=True)
class Bare(Method):
    """Cross-entropy over some classes, and nothing else."""

    name: ClassVar[str] = "bare"
    classes: Literal["all", "seen", "current", "present"] = "all"

    def terms(self, learner: Learner) -> list[Term]:
        return [TaskLoss(classes=self.classes)]


def trained(method: AnyMethod, on: Stream | None = None) -> Tensor:
    training = Training(epochs=2, batch_size=8, memory_batch_size=6, learning_rate=0.1, momentum=0.5)
    made = learn(on or lab.stream(), method, network="mlp", options={"hidden": (8,)}, training=training)
    return flat(made.learner.params, made.learner.params)


def small(name: str, **settings: Any) -> AnyMethod:
    """With a memory of 12 where there is one."""
    try:
        return make(name, buffer_size=12, **settings)
    except ConfigError:
        return make(name, **settings)


def test_every_method_is_in_one_of_these_lists() -> None:
    listed = [name for name in [*WEIGHTLESS, *MASKED, *RULES, *OTHERS] if " + " not in name]
    assert sorted(listed) == sorted(methods)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_without_its_weights_a_method_is_plain_training_bit_for_bit(name: str) -> None:
    assert torch.equal(trained(small(name, **WEIGHTLESS[name])), trained(make("fine-tune")))


@pytest.mark.parametrize("name", [name for name in WEIGHTLESS if name != "fine-tune"])
def test_with_its_weights_it_is_not(name: str) -> None:
    assert not torch.equal(trained(small(name)), trained(make("fine-tune")))


@pytest.mark.parametrize("name", MASKED)
def test_without_its_weights_a_masked_method_is_its_task_loss_bit_for_bit(name: str) -> None:
    classes, settings = MASKED[name]
    plain = trained(Bare(classes=classes))  # type: ignore[arg-type]
    assert torch.equal(trained(small(name, **settings)), plain)
    assert not torch.equal(plain, trained(make("fine-tune"))) and not torch.equal(plain, trained(small(name)))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_nothing_to_hold_on_to_in_the_first_task(name: str) -> None:
    one = lab.stream(tasks=1)
    assert torch.equal(trained(small(name), one), trained(make("fine-tune"), one))
    assert not torch.equal(trained(small(name)), trained(make("fine-tune")))


# ---- sums ----


@pytest.mark.parametrize("name", ["der++ + online-ewc", "online-ewc + der++"])
def test_derpp_and_online_ewc_add_up(name: str) -> None:
    anchor: list[tuple[list[Tensor], list[Tensor]]] = []

    def loss(look: Look) -> Tensor:
        value = oracle.derpp(look.net, *look.batch, look.memory("a"), look.memory("b"), 0.4, 0.9)
        return value + 20 * oracle.quadratic(look.learner.params, *anchor[0]) if anchor else value

    def end(learner: Learner) -> None:
        params = dict(zip(learner.names, learner.params, strict=True))
        new = list(importances.fisher(learner.model, [learner.data[learner.task]], "exact", params).values())
        if anchor:
            new = [old + f for old, f in zip(anchor[0][1], new, strict=True)]
        anchor[:] = [(lab.weights(learner), new)]

    identity(make(name, alpha=0.4, beta=0.9, strength=20.0, buffer_size=10), loss, end)


def test_si_and_er_add_up_and_the_path_is_that_of_both_losses() -> None:
    anchor: list[tuple[list[Tensor], list[Tensor]]] = []
    paths: list[oracle.Path] = []
    before: list[list[Tensor]] = []

    def loss(look: Look) -> Tensor:
        params = look.learner.params
        if not paths:
            paths.append(oracle.Path(params))
        replay = oracle.er(look.net, *look.batch, look.memory(), 0.5)
        before[:] = [lab.weights(look.learner), slope(replay, params)]
        replay = oracle.er(look.net, *look.batch, look.memory(), 0.5)
        return replay + 2 * 0.8 * oracle.quadratic(params, *anchor[0]) if anchor else replay

    def after(look: Look) -> None:
        paths[0].moved(before[1], before[0], lab.weights(look.learner), 0.9, 1.0)

    def end(learner: Learner) -> None:
        new = paths[0].si(learner.params, 0.1)
        if anchor:
            new = [a + b for a, b in zip(anchor[0][1], new, strict=True)]
        anchor[:] = [(lab.weights(learner), new)]

    identity(make("er + si", alpha=0.5, strength=0.8, buffer_size=10), loss, end, after=after)


def test_a_rule_acts_on_the_gradient_of_the_sum() -> None:
    anchor: list[Tensor] = []
    weights: list[float] = []

    def step(look: Look) -> None:
        params, drawn = look.learner.params, look.memory("reference")
        loss = oracle.cross_entropy(look.net, *look.batch)
        if anchor:
            loss = loss + 0.5 * oracle.quadratic(params, anchor, [torch.ones_like(a) for a in anchor])
        wanted = flat(slope(loss, params), params)
        if drawn is not None:
            reference = flat(slope(oracle.cross_entropy(look.net, drawn[0], drawn[1]), params), params)
            weights.append(oracle.agem_weight(wanted, reference))
            wanted = wanted + weights[-1] * reference
        assert distance(flat(look.gradients, params), wanted) < 1e-6

    def end(learner: Learner) -> None:
        anchor[:] = lab.weights(learner)

    watch(make("a-gem + l2-sp", strength=0.5, buffer_size=12), step, end, learning_rate=0.3)
    assert max(weights) > 0


@pytest.mark.parametrize("name", ["cpr + lwf", "lwf + cpr"])
def test_the_task_loss_that_is_not_plain_serves_the_sum_whatever_the_order(name: str) -> None:
    def loss(look: Look) -> Tensor:
        value = oracle.cross_entropy(look.net, *look.batch, look.seen)
        return value + oracle.cpr(look.net, look.batch[0], 0.3)

    with_distillation = make(name, alpha=0.3)
    assert len(with_distillation.parts) == 2
    firsts: list[float] = []

    def step(look: Look) -> None:
        if look.learner.task == 0:  # without an old network there is nothing to distil
            params = look.learner.params
            firsts.append(distance(flat(look.gradients, params), flat(slope(loss(look), params), params)))

    watch(with_distillation, step)
    assert firsts and max(firsts) < 1e-6


@pytest.mark.parametrize(
    "name", ["gem + ogd", "joint + er", "lwf + x-der", "er-ace + icarl", "label-smoothing + lwf", "vcl + nvcl"]
)
def test_what_cannot_be_added_up_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be combined"):
        trained(small(name))


# ---- the page ----


def table() -> Mapping[str, list[str]]:
    """Name to the cells of its row."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| `([^`]+)` \|", line):
            assert found[1] not in rows, found[1]
            rows[found[1]] = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    return rows


def test_the_table_lists_every_method_with_its_form() -> None:
    rows = table()
    assert sorted(rows) == sorted(methods)
    for name, cells in rows.items():
        assert methods[name].form in cells, (name, methods[name].form)
        assert all(cells[:-1]), name
        assert set(cells) & set(FORMS) == {methods[name].form}


def test_the_page_says_what_each_form_means() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(re.search(rf"^\| {re.escape(form)} \| ", text, re.MULTILINE) for form in FORMS)


def test_settings_and_sums_that_the_page_names_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in set(re.findall(r'"([^"]+ \+ [^"]+)"', text)) - {"a + b"}:
        make(name)
    known = {key for kind in methods for key in make(kind).to_dict()}
    named = {word for cells in table().values() for cell in cells[1:] for word in re.findall(r"`([a-z_]+)`", cell)}
    assert named - known - set(methods) == {"e_lambda"}
