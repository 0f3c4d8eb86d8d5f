"""What a model's features are like, block by block: functions that return arrays, and reports."""

from torchgeo_explora.analysis.html import Page

__all__ = ['Page']
