"""Factor analysis: D factors, one noise variance per column.

    z_n ~ N(0, I)                       latent    (N, D)
    x_n ~ N(W z_n + μ, diag(ψ))         observed  (N, P)

so that x_n ~ N(μ, W Wᵀ + diag ψ). Unlike PPCA it does not depend on the columns' units, and its
maximum has no closed form: EM finds it. A missing value (NaN) is marginalized exactly: it is left
out of its row's likelihood.

The likelihood is unbounded where a factor explains one column alone (a Heywood case). The noise of
that column then sinks to the floor, and `degenerate` reports it.

Reference:
    Rubin, Thayer (1982). EM algorithms for ML factor analysis.
    https://doi.org/10.1007/BF02293851
"""

from torch import Tensor

from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.factors.linear_gaussian import LinearGaussianModel


class FactorAnalysis(LinearGaussianModel):
    """D normal factors of P columns, with a noise variance per column.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        floor: smallest noise variance, in squared units of the data.
    """

    example_batch = staticmethod(example_rows)

    def noises(self, variance: Tensor) -> Tensor:
        """One per column: (P,)."""
        return variance

    def _without_noise(self, p: int, noise: float) -> str:
        return (
            f"column {p} has no noise left: its variance is {noise:.1e} beside a floor of "
            f"{self.floor:.0e}, since one factor explains that column alone. Use fewer factors, "
            "leave out a column that depends linearly on others, or raise floor."
        )
