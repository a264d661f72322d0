"""Can a trained discriminator tell data from draws? On rows that it has not seen.

Half of the rows of each side train a(x) ≈ log p_D(x) - log p_G(x); on the other half a > 0 says
"data". If the two are one distribution, x and y are called data equally often, whatever a is: the
number of right answers has half of the answers as its mean, and a tail no heavier than a binomial's
(Hoeffding 1956, theorem 4). Its p-value errs to the safe side.

For models that can only be drawn from (a generator), and where two fixed classifiers, which
`diagnose` uses, are too weak. Costs a training.

Reference:
    Lopez-Paz, Oquab (2017). Revisiting classifier two-sample tests.
    https://arxiv.org/abs/1610.06545
"""

import torch
from scipy.stats import binom
from torch import Tensor, nn

from ppl_lvm.diagnostics.predictive_checks import TwoSample
from ppl_lvm.divergences.density_ratio import fit_log_ratio


def discriminate(
    x: Tensor, y: Tensor, *, discriminator: nn.Module | None = None, seed: int = 0
) -> TwoSample:
    """Accuracy and p-value of a discriminator between rows x (N, P) of data and y (M, P) of draws.

    Args:
        discriminator: trained in place; by default a `Discriminator` of its own. Must not have
            seen these rows.

    Raises:
        ValueError: for fewer than 20 rows of either, or different columns.
    """
    n = min(len(x), len(y)) // 2
    if n < 10:
        raise ValueError(f"A two-sample test needs 20 rows of each; got {len(x)} and {len(y)}.")
    generator = torch.Generator().manual_seed(seed)
    rows = [part[torch.randperm(len(part), generator=generator)] for part in (x, y)]
    a = fit_log_ratio(rows[0][n:], rows[1][n:], discriminator, seed=seed)
    with torch.no_grad():
        right = int((a(rows[0][:n]) > 0).sum()) + int((a(rows[1][:n]) <= 0).sum())
    p_value = float(binom.sf(right - 1, 2 * n, 0.5))
    return TwoSample({"discriminator": right / (2 * n)}, p_value, n)
