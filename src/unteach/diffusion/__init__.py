"""The only package that knows diffusers: models, sampling and weight deltas."""

from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.delta import Applied, WeightDelta, merge
from unteach.diffusion.families import families
from unteach.diffusion.lora import LoraReport
from unteach.diffusion.model import Model, load
from unteach.diffusion.sample import iterate, sample

__all__ = [
    "Applied",
    "Conditioning",
    "LoraReport",
    "Model",
    "WeightDelta",
    "families",
    "iterate",
    "load",
    "merge",
    "sample",
]
