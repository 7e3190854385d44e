"""Guards, one file each: ``guards.make("freezeasguard", rho=0.2).run(model, data, Job())`` says what to freeze."""

from unteach.guard.methods import controls, freezeasguard, saliency  # noqa: F401 (each registers its guards)
from unteach.guard.methods.base import Cost, Guard, Guarded, Job, Scored, Selection, guards

__all__ = ["Cost", "Guard", "Guarded", "Job", "Scored", "Selection", "guards"]
