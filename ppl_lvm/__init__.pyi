from . import (
    authoring,
    divergences,
    estimators,
    guides,
    loggers,
    models,
    nn,
    report,
    sklearn,
    testing,
)
from .checks.pair_check import check
from .compiler.acceleration import accelerate
from .compiler.captured_elbo import CapturedELBO
from .compiler.svi import CompiledSVI
from .core.errors import CannotCaptureError, CannotSayError, NonFiniteError
from .data.load import Data, load_data
from .fitting.adversarial import fit_adversarial
from .fitting.em import fit_em
from .fitting.grid_search import sweep
from .fitting.monte_carlo_em import fit_mcem
from .fitting.svi import fit
from .posterior.prior_sampling import sample_prior
from .programs.signatures import Signature, signature
from .runs.adversarial import load_adversaries
from .runs.comparability import NotComparableError
from .runs.comparison import compare
from .runs.directory import load_run
from .runs.run import Run, diagnose
from .training.em.batch import NotMonotoneError

__all__ = [
    "CannotCaptureError",
    "CannotSayError",
    "CapturedELBO",
    "CompiledSVI",
    "Data",
    "NonFiniteError",
    "NotComparableError",
    "NotMonotoneError",
    "Run",
    "Signature",
    "accelerate",
    "authoring",
    "check",
    "compare",
    "diagnose",
    "divergences",
    "estimators",
    "fit",
    "fit_adversarial",
    "fit_em",
    "fit_mcem",
    "guides",
    "load_adversaries",
    "load_data",
    "load_run",
    "loggers",
    "models",
    "nn",
    "report",
    "sample_prior",
    "signature",
    "sklearn",
    "sweep",
    "testing",
]
__version__: str
