from .figures.arrays import save
from .figures.comparison import comparison_figure
from .figures.divergences import coverage_figure
from .figures.style import picture_grid

__all__ = ["comparison_figure", "coverage_figure", "picture_grid", "save"]
