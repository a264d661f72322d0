"""Figures and the HTML report of runs.

The public functions are listed in the type stub beside this file and loaded on first use, so that
matplotlib is imported only when something is drawn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
