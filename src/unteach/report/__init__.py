"""Reports from Results alone: one HTML page, picture grids, a model card. No model is loaded."""

from unteach.report.card import model_card
from unteach.report.html import render
from unteach.report.view import Thresholds

__all__ = ["Thresholds", "model_card", "render"]
