"""Factor analysis: D factors, one noise variance per column.

    z_n ~ N(0, I)                       latent    (N, D)
    x_n ~ N(W z_n + μ, diag(ψ))         observed  (N, P)

so that x_n ~ N(μ, W Wᵀ + diag ψ). Unlike PPCA it does not depend on the columns' units, and its
maximum has no closed form: EM finds it. A missing value (NaN) is marginalized exactly: it is left
out of its row's likelihood.

Where a factor explains one column alone (a Heywood case), the maximum has no noise in that column.
EM lowers the noise ever more slowly, and `degenerate` names the column at any noise. Where rows
have too many patterns of missing values for that, it warns, and names the column once the noise has
sunk to the floor.

Reference:
    Rubin, Thayer (1982). EM algorithms for ML factor analysis.
    https://doi.org/10.1007/BF02293851
"""

import warnings

from torch import Tensor

from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.factors.boundary import (
    columns_without_noise,
    columns_without_noise_of_incomplete,
)
from ppl_lvm.models.parts.factors.linear_gaussian import LinearGaussianModel


class FactorAnalysis(LinearGaussianModel):
    """D normal factors of P columns, with a noise variance per column.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        floor: smallest noise variance, as a share of the variance of its column in the data.
    """

    example_batch = staticmethod(example_rows)
    one_noise = False

    def noises(self, variance: Tensor) -> Tensor:
        """One per column: (P,)."""
        return variance

    def degenerate(self, x: Tensor) -> str | None:
        """Reason to reject these parameters although their likelihood is high, or None.

        The noise of a column has run out, or the likelihood rises until it does.
        """
        reason = super().degenerate(x)
        if reason is not None or len(x) < 2:
            return reason
        x = x.detach().double().cpu()
        state = {name: value.cpu() for name, value in self.em_state().items()}
        try:
            columns = self._columns_without_noise(x, state)
        except ValueError as error:
            warnings.warn(
                f"FactorAnalysis: {error}. A Heywood case would be named only once its noise has "
                "sunk to the floor. Look at the smallest model.noise, or fit fewer rows.",
                stacklevel=2,
            )
            return None
        if not columns:
            return None
        p = columns[0]
        variance = x[:, p][~x[:, p].isnan()].var(correction=0).item()
        return (
            f"column {p} is a Heywood case: the likelihood rises until the column has no noise. "
            f"Its noise is {state['noise'][p].item():.1e} of a variance of {variance:.1e} here. "
            "Use fewer factors, or leave out the column."
        )

    def _columns_without_noise(self, x: Tensor, state: dict[str, Tensor]) -> list[int]:
        if x.isnan().any():
            return columns_without_noise_of_incomplete(x, state)
        return columns_without_noise(x.mT.cov(correction=0), state["noise"], self.latent)

    def _without_noise(self, p: int, noise: float, floor: float) -> str:
        return (
            f"column {p} has no noise left: its variance is {noise:.1e} beside a floor of "
            f"{floor:.0e}, since one factor explains that column alone. Use fewer factors, "
            "leave out a column that depends linearly on others, or raise floor."
        )
