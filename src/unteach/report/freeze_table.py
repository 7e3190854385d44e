"""What a mask freezes, by part of the network and kind of layer: counts, and a table of cells for any family.

A mask's record names tensors and does not say what they are, so part and kind are read from their names: those of
diffusers' U-Nets and transformers; what is known of neither counts as "other".
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from unteach.core import text
from unteach.records.mask import FrozenTensor

_ENDS = r"conv_in|conv_norm_out|conv_out|norm_out|proj_out|\w*_embedding|\w*_embedder|\w*_embed"
_PART = re.compile(rf"((?:down|up)_blocks\.\d+|mid_block|\w*transformer_blocks\.\d+|(?:{_ENDS})(?=\.|$)).*")
_FLOW = (r"conv_in|\w*embed\w*", r"(down|transformer)_blocks", r"mid_block|\w+transformer_blocks", r"up_blocks")
_KINDS = (
    ("cross-attention", r"\.transformer_blocks\.\d+\.attn2\.|\.attn\.(add_[qkv]_proj|to_add_out)$"),
    ("self-attention", r"\.attn[12]?\."),
    ("feed-forward", r"\.ff(_context)?\.|\.proj_mlp$|^single_transformer_blocks\.\d+\.proj_out$"),
    ("attention projections", r"\.proj_(in|out)$"),
    ("time embedding", r"^time_(text_)?embed|\.time_emb_proj$"),
    ("resnet convolutions", r"\.resnets\.\d+\.conv"),
    ("resampling convolutions", r"\.(down|up)samplers\."),
    ("first and last convolution", r"^conv_(in|out)$"),
)
KINDS = (*(kind for kind, _ in _KINDS), "norms", "biases", "other")
"""Kinds of tensors, in the order of the table; a bias or a norm is counted as such wherever it is."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Tensors and parameters, frozen and all, and the mean score of those tensors that have one."""

    tensors: int
    frozen: int
    size: int
    frozen_size: int
    score: float | None

    @property
    def shares(self) -> tuple[float, float]:
        """Frozen share of tensors and of parameters."""
        return self.frozen / max(self.tensors, 1), self.frozen_size / max(self.size, 1)

    @property
    def words(self) -> str:
        """All of it for a reader."""
        score = "" if self.score is None else f", mean score {self.score:.2f}"
        sizes = f"{text.size(self.frozen_size, '')} of {text.size(self.size, '')} parameters"
        return f"{self.frozen} of {self.tensors} tensors frozen, {sizes}{score}"


Tallies = dict[str, Tally]


def tally(tensors: Iterable[FrozenTensor]) -> Tally:
    """Count."""
    found = list(tensors)
    scores = [t.score for t in found if t.score is not None]
    return Tally(
        tensors=len(found),
        frozen=sum(t.frozen for t in found),
        size=sum(t.size for t in found),
        frozen_size=sum(t.size for t in found if t.frozen),
        score=sum(scores) / len(scores) if scores else None,
    )


def part(name: str) -> str:
    """Part of the network that a tensor belongs to: a block, what comes before and after them, or "other"."""
    found = _PART.fullmatch(name)
    return found[1] if found else "other"


def kind(name: str) -> str:
    """Kind of a tensor, one of :data:`KINDS`."""
    module, _, leaf = name.rpartition(".")
    if "norm" in module.rpartition(".")[2]:
        return "norms"
    if leaf == "bias":
        return "biases"
    return next((found for found, sign in _KINDS if re.search(sign, module)), "other")


def module(name: str) -> str:
    """The module of a weight or a bias; another tensor is its own."""
    return re.sub(r"(?<=.)\.(weight|bias)$", "", name)


def by(tensors: Sequence[FrozenTensor], what: Callable[[str], str]) -> Tallies:
    """Counts by :func:`part`, :func:`kind` or :func:`module`: parts in the order of data flow, kinds as they are."""
    found: dict[str, list[FrozenTensor]] = {}
    for tensor in tensors:
        found.setdefault(what(tensor.name), []).append(tensor)
    names = sorted(found, key=_flow) if what is part else [k for k in KINDS if k in found] if what is kind else found
    return {name: tally(found[name]) for name in names}


def _flow(name: str) -> tuple[int, int]:
    head, _, index = name.partition(".")
    rank = next((rank for rank, heads in enumerate(_FLOW) if re.fullmatch(heads, head)), len(_FLOW))
    return rank + (name == "other"), int(index or 0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One part × kind: how much of it is filled (0 to 1), what is written in it, and what it says when pointed at."""

    fill: float
    shown: str
    words: str
    whole: bool


@dataclass(frozen=True, kw_only=True)
class FreezeTable:
    """Parts of the network in rows, kinds of tensors in columns, the sum of a row first; None where there is none.

    Attributes:
        span: lowest and highest mean score of a cell; None without scores.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    span: tuple[float, float] | None


def table(tensors: Sequence[FrozenTensor], what: Literal["frozen", "score"] = "frozen") -> FreezeTable:
    """Cells are filled by their frozen share of parameters, or by where their mean score lies in the span."""
    columns, whole = tuple(by(tensors, kind)), "all kinds"
    cells: dict[str, Tallies] = {}
    for name in by(tensors, part):
        mine = [t for t in tensors if part(t.name) == name]
        cells[name] = by(mine, kind) | {whole: tally(mine)}
    scores = [t.score for row in cells.values() for t in row.values() if t.score is not None]
    span = (min(scores), max(scores)) if scores else None
    low, high = span or (0.0, 0.0)

    def cell(place: str, column: str, found: Tally | None) -> Cell | None:
        if found is None:
            return None
        fill, shown = found.shares[1], f"{100 * found.shares[1]:.0f}"
        if what == "score":
            fill = 0.0 if found.score is None else (found.score - low) / (high - low) if high > low else 1.0
            shown = "–" if found.score is None else f"{found.score:.2f}"
        elif 0 < found.frozen_size < found.size:
            shown = {"0": "< 1", "100": "> 99"}.get(shown, shown)
        words = f"{place}, {column}: {found.words}"
        return Cell(fill=fill, shown=shown, words=words, whole=found.frozen == found.tensors)

    columns = (whole, *columns)
    rows = tuple((name, tuple(cell(name, c, row.get(c)) for c in columns)) for name, row in cells.items())
    return FreezeTable(columns=columns, rows=rows, span=span)
