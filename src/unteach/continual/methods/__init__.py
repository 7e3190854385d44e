"""The known methods as settings of the one objective, one file a family; importing this registers them all."""

from unteach.continual.methods import (
    cpr,
    der,
    er,
    ewc,
    fdr,
    gdumb,
    gem,
    icarl,
    importance,
    laplace,
    lwf,
    plain,
    subspaces,
    vcl,
    xder,
)

__all__ = [
    "cpr",
    "der",
    "er",
    "ewc",
    "fdr",
    "gdumb",
    "gem",
    "icarl",
    "importance",
    "laplace",
    "lwf",
    "plain",
    "subspaces",
    "vcl",
    "xder",
]
