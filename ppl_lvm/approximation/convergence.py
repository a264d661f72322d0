"""Evidence of convergence for each parameter.

Of every value of the latents and of the `pyro.deterministic` sites (of those with at most 1,000
values), in the user's coordinates and on the draws that a run keeps:

    R̂                     chains agree, in the bulk and in spread
    bulk and tail ESS     draws that the mean and the quantiles rest on
    error of the sd       Monte Carlo error as a share of the sd
    k̂ of its tail         1/2 and more: the sd does not exist, or the draws do not know it
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ppl_lvm.approximation.chain_statistics import (
    Floats,
    effective_size,
    r_hat,
    relative_sd_error,
    tail_effective_size,
    tail_k_hat,
)
from ppl_lvm.approximation.summary import value_names

GOOD_R_HAT = 1.01  # Vehtari et al. 2021
GOOD_ESS, LEAST_ESS = 2000, 1000
GOOD_TAIL_ESS, LEAST_TAIL_ESS = 1000, 400  # 400: Vehtari et al. 2021
GOOD_SD_ERROR = 0.05
HEAVY_TAIL = 0.5  # k̂ above which the variance is infinite
MAX_VALUES = 1000  # of a site


@dataclass(frozen=True)
class ChainEvidence:
    """Statistics (K,) of the parameters' chains.

    Attributes:
        names: of the K values.
        moved: all chains have left their start.
    """

    names: list[str]
    r_hat: Floats
    ess: Floats
    tail_ess: Floats
    sd_error: Floats
    k_hat: Floats
    moved: bool

    @property
    def enough(self) -> bool:
        """True if more draws are not needed, or, in a tail without a variance, do not help."""
        known = (self.sd_error <= GOOD_SD_ERROR) | (self.k_hat > HEAVY_TAIL)
        enough = (self.r_hat <= GOOD_R_HAT) & (self.ess >= GOOD_ESS) & known
        return self.moved and bool((enough & (self.tail_ess >= GOOD_TAIL_ESS)).all())

    @property
    def reasons(self) -> list[str]:
        """Reasons why the draws must not be reported, each with the worst parameter."""
        if not self.moved:
            return ["the chains did not move"]
        reasons = [
            self._worst(self.r_hat, self.r_hat <= GOOD_R_HAT, "R̂ of {} is {:.2f}"),
            self._worst(-self.ess, self.ess >= LEAST_ESS, "{} has {:.0f} effective draws"),
            self._worst(
                -self.tail_ess,
                self.tail_ess >= LEAST_TAIL_ESS,
                "the tails of {} have {:.0f} effective draws",
            ),
            self._worst(
                100 * self.sd_error,
                self.sd_error <= GOOD_SD_ERROR,
                "the sd of {} is known to {:.0f} % only",
            ),
            self._worst(
                self.k_hat,
                self.k_hat <= HEAVY_TAIL,
                "{} has a heavy tail (k̂ {:.2f}), so that its sd is not known",
            ),
        ]
        return [reason for reason in reasons if reason]

    def _worst(self, values: Floats, good: NDArray[np.bool_], text: str) -> str:
        if good.all():
            return ""
        k = int(np.argmax(np.where(good, -np.inf, np.nan_to_num(values, nan=np.inf))))
        others = int((~good).sum()) - 1
        reason = text.format(self.names[k], abs(values[k]))
        return f"{reason}, and {others} others" if others else reason


def assess(
    draws: Mapping[str, Tensor], chains: Tensor, latents: Collection[str] = ()
) -> ChainEvidence:
    """The evidence of draws.

    Args:
        draws: site -> (C · T, …).
        chains: their unconstrained coordinates (C, T, D).
        latents: the sites that count whatever their size.
    """
    C, T, _ = chains.shape
    columns, names = [], []
    for site, value in draws.items():
        if site not in latents and value[0].numel() > MAX_VALUES:
            continue
        columns.append(value.detach().double().reshape(C * T, -1).numpy())
        names += value_names(site, value.shape[1:])
    x = np.concatenate(columns, 1)
    varies = ~(x == x[0]).all(0)  # entries of a structure, as the zeros of a triangle, do not
    x = x[:, varies].reshape(C, T, -1)
    return ChainEvidence(
        [name for name, v in zip(names, varies, strict=True) if v],
        r_hat(x),
        effective_size(x),
        tail_effective_size(x),
        relative_sd_error(x),
        tail_k_hat(x),
        bool((chains != chains[:, :1]).any(1).all()),
    )
