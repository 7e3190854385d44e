import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracle import masks as oracle
from torch import nn

from unteach.core.masks import by_score, select, table
from unteach.errors import ConfigError, ModelError, NumericsError


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn1 = Attention(width)
        self.attn2 = Attention(width)
        self.norm = nn.LayerNorm(width)


class Tied(nn.Module):
    """Embedding and head share their weight; 12 + 3 parameters in two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.RMSNorm(3)


def blocks() -> nn.ModuleList:
    return nn.ModuleList([Block(2), Block(3)])


KV = [r".*\.attn2\.to_k\.weight", r".*\.attn2\.to_v\.weight"]


# ---- select ----


def test_select_keeps_the_order_of_the_module() -> None:
    net = blocks()
    expected = ["0.attn2.to_k.weight", "0.attn2.to_v.weight", "1.attn2.to_k.weight", "1.attn2.to_v.weight"]
    assert list(select(net, KV)) == expected == list(select(net, KV[::-1]))
    assert list(select(net, [r".*attn2\.to_[kv]\.weight"])) == expected
    assert all(p is net.get_parameter(name) for name, p in select(net, KV).items())


def test_patterns_match_whole_names() -> None:
    net = nn.ModuleDict({"a": nn.Linear(1, 1), "aa": nn.Linear(1, 1)})
    assert list(select(net, ["a.weight"])) == ["a.weight"]
    assert list(select(net, [".*a.weight"])) == ["a.weight", "aa.weight"]


def test_exclude_wins() -> None:
    assert list(select(blocks(), KV, exclude=["0.*"])) == ["1.attn2.to_k.weight", "1.attn2.to_v.weight"]


def test_overlapping_patterns_select_once() -> None:
    net = blocks()
    assert len(select(net, [".*", *KV])) == len(list(net.parameters()))


@given(st.data())
def test_select_is_the_filter(data: st.DataObject) -> None:
    """Any set of literal names, minus any other: exactly those, in the module's order."""
    net = blocks()
    names = [name for name, _ in net.named_parameters()]
    some = data.draw(st.sets(st.sampled_from(names), min_size=1))
    without = data.draw(st.sets(st.sampled_from(names)))
    left = [name for name in names if name in some - without]
    ask = ([re.escape(n) for n in some], [re.escape(n) for n in without])
    if left:
        assert list(select(net, *ask)) == left
    else:
        with pytest.raises(ModelError, match="exclude takes out all"):
            select(net, *ask)


def test_tied_parameters_count_once_and_answer_to_any_name() -> None:
    net = Tied()
    assert list(select(net, [".*"])) == ["embed.weight", "norm.weight"]
    assert list(select(net, [r"head\.weight"])) == ["embed.weight"]
    assert list(select(net, [".*"], exclude=["head.*"])) == ["norm.weight"]
    # a module used twice
    shared = nn.Linear(2, 2)
    assert list(select(nn.ModuleList([shared, shared]), [r"1\..*"])) == ["0.weight", "0.bias"]


def test_a_pattern_that_matches_nothing_is_an_error_with_near_misses() -> None:
    net = blocks()
    with pytest.raises(ModelError) as caught:
        select(net, [*KV, "attn2.to_k"])
    assert "matches 'attn2.to_k'" in str(caught.value)
    assert "is only a part of 0.attn2.to_k.weight, 1.attn2.to_k.weight: try '.*attn2.to_k.*'" in str(caught.value)
    with pytest.raises(ModelError) as caught:
        select(net, [r"0\.attn2\.tok\.weight"])
    assert "is near 0.attn2.to_k.weight" in str(caught.value)
    assert "24 parameters, such as 0.attn1.to_q.weight" in str(caught.value)
    with pytest.raises(ModelError, match=r"no parameter of ModuleList matches 'xyz'.*patterns match whole names"):
        select(net, [".*"], exclude=["xyz"])


def test_selecting_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"exclude takes out all matches.*exclude '\.\*attn\.\*'.*such as 0\.attn1"):
        select(blocks(), KV, exclude=[".*attn.*"])
    with pytest.raises(ConfigError, match="no pattern was given"):
        select(blocks(), [])
    with pytest.raises(ModelError, match="Identity has no parameters"):
        select(nn.Identity(), [".*"])


def test_bad_patterns() -> None:
    with pytest.raises(ConfigError, match="patterns must be a list"):
        select(blocks(), ".*")
    with pytest.raises(ConfigError, match="patterns has 2 mistakes") as caught:
        select(blocks(), ["(", ".*", "*"])
    assert "'(' is not a regular expression" in str(caught.value)
    assert "'*' is not a regular expression" in str(caught.value)


def test_frozen_parameters_can_be_selected() -> None:
    """Selecting says what is meant to move; it does not look at requires_grad and does not set it."""
    net = blocks().requires_grad_(False)
    assert len(select(net, KV)) == 4
    assert not any(p.requires_grad for p in net.parameters())


# ---- table ----


def test_table_pinned() -> None:
    net = nn.Sequential(nn.Linear(100, 40), nn.Linear(40, 10))
    groups = {name: "trained" if name[0] == "0" else "frozen" for name, _ in net.named_parameters()}
    assert table(net, groups) == "\n".join(
        [
            "group    tensors  parameters    share",
            "-------------------------------------",
            "trained        2       4,040   90.79%",
            "frozen         2         410    9.21%",
            "-------------------------------------",
            "total          4       4,450  100.00%",
        ]
    )


def test_table_counts_the_rest_and_tied_parameters_once() -> None:
    lines = table(Tied(), {"head.weight": "head", "embed.weight": "head"}).splitlines()
    assert [line.split() for line in lines if not line.startswith("-")] == [
        ["group", "tensors", "parameters", "share"],
        ["head", "1", "12", "80.00%"],
        ["(other)", "1", "3", "20.00%"],
        ["total", "2", "15", "100.00%"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_table_refuses_what_it_cannot_count() -> None:
    with pytest.raises(ModelError, match=r"no parameter 'head\.wieght'.*did you mean 'head\.weight'"):
        table(Tied(), {"head.wieght": "head"})
    with pytest.raises(ModelError, match="one shared parameter but are in two groups"):
        table(Tied(), {"head.weight": "head", "embed.weight": "embed"})


# ---- by_score ----


def test_by_score_pinned() -> None:
    scores = {"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}
    sizes = {"a": 10, "b": 50, "c": 30, "d": 10}
    assert by_score(scores, sizes, 0.25) == {"b"}  # the tie of b and c goes by name
    assert by_score(scores, sizes, 0.5) == {"b", "c"}
    assert by_score(scores, sizes, 0.74) == {"b", "c"}  # 2.96 rounds down
    assert by_score(scores, sizes, 0.85, "parameters") == {"b", "c"}
    assert by_score(scores, sizes, 0.45, "parameters") == {"c", "d"}  # b does not fit and is passed over
    assert by_score(scores, sizes, 0.09, "parameters") == set()


def test_the_budget_is_the_decimal_number_as_written() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    names = [f"{i:03}" for i in range(100)]
    scores, sizes = {n: float(n) for n in names}, dict.fromkeys(names, 7)
    for percent in range(101):
        for measure in ("tensors", "parameters"):
            assert by_score(scores, sizes, percent / 100, measure) == set(names[100 - percent :])


amounts = st.lists(
    st.tuples(st.sampled_from((0.0, 0.5, 1.0, -2.0, math.inf, -math.inf)) | st.floats(-9, 9), st.integers(1, 40)),
    min_size=1,
    max_size=8,
)
budgets = st.integers(0, 100).map(lambda n: n / 100) | st.floats(0, 1)
measures = st.sampled_from(("tensors", "parameters"))


@given(amounts, budgets, measures)
def test_by_score_is_the_oracle(items, budget, measure) -> None:
    scores = {f"n{i}": score for i, (score, _) in enumerate(items)}
    sizes = {f"n{i}": size for i, (_, size) in enumerate(items)}
    assert by_score(scores, sizes, budget, measure) == oracle.by_score(scores, sizes, budget, measure)


@given(amounts, budgets, measures, st.randoms())
def test_by_score_properties(items, budget, measure, random) -> None:
    scores = {f"n{i}": score for i, (score, _) in enumerate(items)}
    sizes = {f"n{i}": size for i, (_, size) in enumerate(items)}
    chosen = by_score(scores, sizes, budget, measure)
    cost = sizes if measure == "parameters" else dict.fromkeys(scores, 1)
    spent, total = sum(cost[n] for n in chosen), sum(cost.values())
    assert spent <= budget * total * (1 + 1e-15)
    # nothing left out would still have fitted
    assert all(spent + cost[n] > budget * total * (1 - 1e-15) for n in scores.keys() - chosen)
    # the order in which names are listed does not matter
    shuffled = list(scores)
    random.shuffle(shuffled)
    assert by_score({n: scores[n] for n in shuffled}, sizes, budget, measure) == chosen
    assert by_score(scores, sizes, 0.0, measure) == set()
    assert by_score(scores, sizes, 1.0, measure) == set(scores)


@given(amounts, budgets, budgets)
def test_choices_by_tensors_are_nested(items, one, other) -> None:
    scores = {f"n{i}": score for i, (score, _) in enumerate(items)}
    sizes = {f"n{i}": size for i, (_, size) in enumerate(items)}
    small, large = sorted((one, other))
    assert by_score(scores, sizes, small) <= by_score(scores, sizes, large)


def test_by_score_on_a_module() -> None:
    net = blocks()
    chosen = select(net, KV)
    scores = {name: float(p.numel()) for name, p in chosen.items()}
    sizes = {name: p.numel() for name, p in chosen.items()}
    assert by_score(scores, sizes, 0.5) == {"1.attn2.to_k.weight", "1.attn2.to_v.weight"}


def test_by_score_errors() -> None:
    with pytest.raises(ConfigError, match="4 mistakes") as caught:
        by_score({"a": 1.0, "b": 2.0}, {"a": -1, "c": 3}, 1.5, "tensor")
    for part in ("did you mean 'tensors'", "found 1.5", "different names: b, c", "not be negative: a"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\], found nan"):
        by_score({"a": 1.0}, {"a": 1}, math.nan)
    with pytest.raises(NumericsError, match="found: b"):
        by_score({"a": 1.0, "b": math.nan}, {"a": 1, "b": 1}, 0.5)
