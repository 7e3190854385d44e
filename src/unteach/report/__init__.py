"""Reports from records alone: one HTML page, a model card, tables in a terminal. No model is loaded."""

from unteach.report.card import model_card
from unteach.report.page import page
from unteach.report.section import Thresholds

__all__ = ["Thresholds", "model_card", "page"]
