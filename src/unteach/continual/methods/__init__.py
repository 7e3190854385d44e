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
from unteach.continual.methods.base import Form, Method, Replay, methods
from unteach.continual.methods.combined import AnyMethod, Combined, make

__all__ = [
    "AnyMethod",
    "Combined",
    "Form",
    "Method",
    "Replay",
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
    "make",
    "methods",
    "plain",
    "subspaces",
    "vcl",
    "xder",
]
