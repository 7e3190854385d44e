"""Attacks on erased and guarded models: ``Relearn(steps=40).run(model, data, Probes(sets))`` gives a curve."""

from unteach.attack.base import Attack, Job, Measure, attacks
from unteach.attack.probes import Probes
from unteach.attack.relearn import Relearn  # registers its attack

__all__ = ["Attack", "Job", "Measure", "Probes", "Relearn", "attacks"]
