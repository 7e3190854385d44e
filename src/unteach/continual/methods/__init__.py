"""The known methods as settings of the one objective, one file a family; importing this registers them all."""

from unteach.continual.methods import (  # noqa: F401
    der,
    er,
    ewc,
    gdumb,
    gem,
    icarl,
    importance,
    laplace,
    lwf,
    plain,
    smoothing,
    subspaces,
    vcl,
    xder,
)
from unteach.continual.methods.base import Form, Method, Replay, methods
from unteach.continual.methods.combined import AnyMethod, Combined, make

__all__ = ["AnyMethod", "Combined", "Form", "Method", "Replay", "make", "methods"]
