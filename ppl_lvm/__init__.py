"""Latent-variable models as Pyro programs: write, train, trust.

    import ppl_lvm as lvm

    data = lvm.load_data("iris")
    run = lvm.fit(lvm.models.GaussianMixture(3), None, data, restarts=10)
    print(lvm.diagnose(run))

Names are loaded on first use, so that `import ppl_lvm` is quick. Their list is the type stub beside
this file, `__init__.pyi`. Sub-packages that are not listed there are private and may change.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("ppl_lvm")
__all__ += ["__version__"]
