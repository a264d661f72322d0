"""Diagnostics of a fit, listed once in `DIAGNOSTICS`.

The folder is flat. Fourteen of its modules are diagnostics of one kind, with a formula, a result
and a `Diagnostic` each; sub-folders would only repeat their questions. The others serve them:
`base`, `finding` and `budget` (declaration), `annealing`, `unconstrained_density`, `refit`,
`amortization`, `quantities`, `exchangeable_labels` and `invalid_parameters` (computation),
`diagnosis` and `table` (the whole table).

To add a diagnostic, write its module and put its `Diagnostic` into `DIAGNOSTICS`, whose order is
that of the table. Command, table and contract tests read this tuple.
"""

from ppl_lvm.diagnostics.bound_tightness import SANDWICH, TIGHTNESS
from ppl_lvm.diagnostics.calibration import SBC, VSBC
from ppl_lvm.diagnostics.convergence import CONVERGENCE
from ppl_lvm.diagnostics.gradient_noise import GRADIENT_NOISE
from ppl_lvm.diagnostics.inference_gaps import GENERALIZATION_GAP, INFERENCE_GAPS
from ppl_lvm.diagnostics.latent_usage import LATENT_USAGE
from ppl_lvm.diagnostics.leave_one_out import LEAVE_ONE_OUT
from ppl_lvm.diagnostics.mixture_components import CLUSTERING_STABILITY, MIXTURE_COMPONENTS
from ppl_lvm.diagnostics.parameter_drift import PARAMETER_DRIFT
from ppl_lvm.diagnostics.pareto_k import PARETO_K
from ppl_lvm.diagnostics.predictive_checks import POSTERIOR_PREDICTIVE, PRIOR_PREDICTIVE
from ppl_lvm.diagnostics.two_sample import TWO_SAMPLE

DIAGNOSTICS = (
    CONVERGENCE,
    PARAMETER_DRIFT,
    TIGHTNESS,
    SANDWICH,
    INFERENCE_GAPS,
    GENERALIZATION_GAP,
    PARETO_K,
    SBC,
    VSBC,
    POSTERIOR_PREDICTIVE,
    PRIOR_PREDICTIVE,
    TWO_SAMPLE,
    LEAVE_ONE_OUT,
    LATENT_USAGE,
    MIXTURE_COMPONENTS,
    CLUSTERING_STABILITY,
    GRADIENT_NOISE,
)

__all__ = ["DIAGNOSTICS"]
