"""Semi-amortized inference: an encoder's output, refined for each row.

    λ_n⁰ = encoder(x_n),   λ_nᵗ⁺¹ = λ_nᵗ + a step that raises L_n,   q(z_n | x_n) = q(z_n; λ_nᵀ)

with λ = (μ, log σ) of a diagonal normal transformed to the site's support, and L_n the row's bound
at the model's current parameters; `parts/natural_gradient.py` has L and the step. The amortization
gap shrinks as T grows; the gap of the diagonal normal family stays.

Gradients of the objective pass through the steps, by second derivatives, to the encoder and to the
model: training follows the gradient of the bound that is reported. With `through=False` the steps
are constants, λᵀ = λ⁰ + stop(…). That is cheaper, and biased while λᵀ is not optimal: the encoder
learns as if its output were used unchanged, and the gradient with respect to the model's parameters
lacks their effect on the steps.

Serves models whose local latents are continuous, or enumerated, and whose rows are independent
given the global latents, which get a `GlobalNormal` (`parts/global_part.py`). A step of training
costs T + 1 gradients of the model on K B rows.

The steps differ from the paper's: natural gradients, each accepted where it raises L_n, over fixed
points, in place of gradient ascent with momentum over new draws.

Reference:
    Kim, Wiseman, Miller, Sontag, Rush (2018). Semi-amortized variational autoencoders.
    https://arxiv.org/abs/1802.02550, algorithm 1.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.authoring import signature
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, sample_factors, supported_sites
from ppl_lvm.guides.parts.global_part import global_centers, split_globals
from ppl_lvm.guides.parts.natural_gradient import LocalBound, ascend
from ppl_lvm.guides.parts.site_guide import Latents, serving
from ppl_lvm.guides.parts.variational_families import DiagonalFamily, TransformedFactor

GUIDE = "SemiAmortized"
FIRST_STEP = 0.5  # α


@serving(Latents.LOCAL_CONTINUOUS, description="diagonal normals from an encoder, refined by row")
class SemiAmortized(EncoderGuide):
    """q(z | x) = N(μ, diag σ²) from an encoder and T steps of natural-gradient ascent per row.

    Args:
        model: the model; it is run inside the guide.
        batch: its arguments: some typical rows.
        steps: T.
        through: whether gradients pass through the steps.
        draws: K, the number of points in L; None: 2 k for k unconstrained values of a row, at
            least 16.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order
            of the model's code, k values of μ and k of log σ: (B, Σ 2 k). If None, a
            `RowEncoder` over all columns.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a model it does not serve, naming the site and the remedy.
    """

    refines_rows = (
        True  # q is close to the posterior, which the default objective takes into account
    )

    def __init__(
        self,
        model: Callable[..., Any],
        *batch: Tensor,
        steps: Count = 5,
        through: bool = True,
        draws: Count | None = None,
        encoder: nn.Module | None = None,
        hidden: tuple[Count, ...] = (128,),
    ) -> None:
        if steps < 0:
            raise ValueError(f"{GUIDE}: steps={steps} is negative. Use steps >= 0.")
        shared, local = split_globals(model, signature(model, *batch), batch)
        factors = [
            TransformedFactor(site, local, DiagonalFamily())
            for site in supported_sites(local, GUIDE)
        ]
        outputs = "k of μ and k of log σ for each site"
        super().__init__(local, factors, batch, encoder=encoder, hidden=hidden, outputs=outputs)
        self.steps, self.through, self.shared = steps, through, shared
        self.sites = [*(shared.sites if shared is not None else ()), *self.sites]
        self._bound = LocalBound(model, local, factors, batch, draws, GUIDE, self._centers)

    def _centers(self) -> dict[str, Tensor]:
        return global_centers(self.shared)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        if self.shared is not None:
            self.shared.draw(plates, *batch)
        initial = self.encoder(*batch)
        alpha = initial.new_full((len(initial), 1), FIRST_STEP)
        lam, _ = ascend(self._bound, initial, alpha, self.steps, *batch, through=self.through)
        if not self.through:
            lam = initial + (lam - initial).detach()
        sample_factors(lam, self._factors, plates)
