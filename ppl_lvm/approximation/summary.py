"""A table of a posterior's parameters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ppl_lvm.approximation.chain_statistics import effective_size, r_hat

if TYPE_CHECKING:
    from pandas import DataFrame

QUANTILES = (0.05, 0.5, 0.95)


def summarize(draws: Mapping[str, Tensor], num_chains: int = 1) -> "DataFrame":
    """One row per value of a site: mean, sd, quantiles, and how well the draws know them.

    Columns: `mean`, `sd`, `5%`, `50%`, `95%`, `mcse_mean` (the mean's Monte Carlo standard error
    sd / √ESS), `ess_bulk` and `r_hat` (rank-normalized, as in ArviZ; R̂ is NaN for one chain).

    Args:
        draws: site -> (S, …), chain after chain.
        num_chains: C; S is a multiple of it.
    """
    from pandas import DataFrame

    rows, names = [], []
    for site, value in draws.items():
        flat = value.detach().double().reshape(len(value), -1).numpy()  # (S, K)
        chains = flat.reshape(num_chains, -1, flat.shape[1])
        ess = effective_size(chains)
        r = r_hat(chains) if num_chains > 1 else np.full(flat.shape[1], np.nan)
        sd = flat.std(axis=0, ddof=1)
        quantiles = np.quantile(flat, QUANTILES, axis=0)
        rows.append(np.stack([flat.mean(axis=0), sd, *quantiles, sd / np.sqrt(ess), ess, r], 1))
        names += value_names(site, value.shape[1:])
    columns = ["mean", "sd", *(f"{q:.0%}" for q in QUANTILES), "mcse_mean", "ess_bulk", "r_hat"]
    return DataFrame(np.concatenate(rows), index=names, columns=columns)


def value_names(site: str, shape: tuple[int, ...]) -> list[str]:
    """Names of a site's values, with indices in brackets as ArviZ writes them."""
    places = np.ndindex(*shape)
    return [f"{site}[{', '.join(map(str, place))}]" if shape else site for place in places]
