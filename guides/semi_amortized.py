"""An encoder's guess, improved for each datum: semi-amortised inference.

    λ_n⁰ = encoder(x_n),   λ_nᵗ⁺¹ = λ_nᵗ + a step that raises L_n,   q(z_n | x_n) = q(z_n; λ_nᵀ)

with λ = (μ, log σ) of a diagonal normal pushed onto the site's support, and L_n the datum's own
bound at the model's current parameters; `ascent.py` has L and the step. What an encoder cannot
tell (the amortisation gap) shrinks as T grows; what no diagonal normal can be stays.

Gradients of the objective go through the steps, by second derivatives, to the encoder and to the
model: what is followed is the gradient of the bound that is reported. With `through=False` the
steps count as constants, λᵀ = λ⁰ + stop(…). That is cheaper, and biased as long as λᵀ is not yet
optimal: the encoder learns as if its guess were used as it is, and the model's parameters get no
credit for what the steps make of them.

Serves models whose local latents are continuous, or enumerated, and whose rows are independent
given what they share; that gets a `GlobalNormal` (`shared_part.py`). A step of training costs
T + 1 gradients of the model on K B rows.

We depart from the paper in the steps: natural gradients, each accepted where it raises L_n, over
fixed points, in place of plain ascent with momentum over fresh draws.

Reference:
    Kim, Wiseman, Miller, Sontag, Rush (2018). Semi-amortized variational autoencoders.
    https://arxiv.org/abs/1802.02550, algorithm 1.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, sample_factors, supported_sites
from ppl_lvm.guides.parts.global_part import global_centers, split_globals
from ppl_lvm.guides.parts.natural_gradient import LocalBound, ascend
from ppl_lvm.guides.parts.variational_families import DiagonalFamily, TransformedFactor
from ppl_lvm.programs.signatures import signature

FIRST_STEP = 0.5  # α


class SemiAmortized(EncoderGuide):
    """q(z | x) = N(μ, diag σ²) from an encoder and T steps of each datum's own ascent.

    Args:
        model: the model; it is run inside the guide.
        batch: what the model is called with: some typical rows.
        steps: T.
        through: whether gradients go through the steps.
        draws: K, points that stand for q in L; None: 2 k of a datum's k numbers, at least 16.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order
            of the model's code, k numbers of μ and k of log σ: (B, Σ 2 k). If None, a
            `RowEncoder` over all columns.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a model it does not serve, naming the site and what to do.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *batch: Tensor,
        steps: int = 5,
        through: bool = True,
        draws: int | None = None,
        encoder: nn.Module | None = None,
        hidden: tuple[int, ...] = (128,),
    ) -> None:
        if steps < 0:
            raise ValueError(f"SemiAmortized needs steps >= 0, got {steps}.")
        shared, declared = split_globals(model, signature(model, *batch), batch)
        factors = [
            TransformedFactor(s, declared, DiagonalFamily())
            for s in supported_sites(declared, "SemiAmortized")
        ]
        what = "k of μ and k of log σ for each site"
        super().__init__(declared, factors, batch, encoder=encoder, hidden=hidden, what=what)
        self.steps, self.through, self.shared = steps, through, shared
        self.sites = [*(shared.sites if shared is not None else ()), *self.sites]
        self._bound = LocalBound(
            model, declared, factors, batch, draws, "SemiAmortized", self._centers
        )

    def _centers(self) -> dict[str, Tensor]:
        return global_centers(self.shared)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        if self.shared is not None:
            self.shared.draw(plates, *batch)
        guess = self.encoder(*batch)
        alpha = guess.new_full((len(guess), 1), FIRST_STEP)
        lam, _ = ascend(self._bound, guess, alpha, self.steps, *batch, through=self.through)
        if not self.through:
            lam = guess + (lam - guess).detach()
        sample_factors(lam, self._factors, plates)
