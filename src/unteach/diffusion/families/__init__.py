"""Model families, one file each. A new one is a file here and a line below."""

from unteach.diffusion.families.base import Family, Layer, Pipeline, Segment, families, layers
from unteach.diffusion.families.sd import StableDiffusion
from unteach.diffusion.families.sd3 import StableDiffusion3
from unteach.diffusion.families.sdxl import StableDiffusionXL

__all__ = [
    "Family",
    "Layer",
    "Pipeline",
    "Segment",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "families",
    "layers",
]
