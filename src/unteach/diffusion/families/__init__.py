"""Model families, one file each. A new one is a file here and a line below."""

from unteach.diffusion.families.base import Family, Pipeline, families
from unteach.diffusion.families.sd import StableDiffusion
from unteach.diffusion.families.sdxl import StableDiffusionXL

__all__ = ["Family", "Pipeline", "StableDiffusion", "StableDiffusionXL", "families"]
