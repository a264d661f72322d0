"""An estimate of the log evidence in words."""

import math
from collections.abc import Mapping
from typing import Any

from ppl_lvm.posterior import psis
from ppl_lvm.posterior.psis import RELIABLE_K_HAT

MEANING: dict[str, str] = {
    "marginal": "log p(x)",
    "joint": "joint log p(x) of all rows",
    "predictive": "log p(new rows | training rows)",
    "pointwise": "log p(each new row | training rows)",
}


def evidence_text(results: Mapping[str, Any], of: str = "") -> str:
    """An estimate in words: the value, its errors where they are known, ESS and k̂.

    `results` are those of `Evidence.to_json`, unknown numbers NaN or None; `of` names the rows.
    """
    kind = results.get("log_evidence_kind")  # None: of an older version
    error = _known(results["log_evidence_standard_error"])
    rows = "" if error is None else f" ± {error:.4f}"
    parts = [of] if of else []
    if kind in ("joint", "predictive", "pointwise"):
        parts.append(MEANING[kind])
    parts.append(_draws_text(results))
    text = f"{results['log_evidence']:.4f}"
    if kind != "predictive":
        return f"{text}{rows} nats per row ({', '.join(parts)})"
    alone = f"{results['log_evidence_row_by_row']:.4f}{rows}"
    return f"{text} nats per row ({', '.join(parts)}; each row alone: {alone})"


def _draws_text(results: Mapping[str, Any]) -> str:
    """Monte-Carlo error and ESS, or the reason why there is no error."""
    error, kind = (
        _known(results["log_evidence_monte_carlo_error"]),
        results.get("log_evidence_kind"),
    )
    if kind is None:
        return f"particles: {results['num_particles']}"
    K, ess = results["log_evidence_draws"], results["log_evidence_ess"]
    if K == 1 and error == 0:
        return "exact"
    unit = "particles" if kind == "marginal" else "draws"
    digits = 1 if ess < 10 else 0
    by_row = kind in ("marginal", "pointwise")
    size = f"{'smallest ' if by_row else ''}ESS {ess:.{digits}f} of {K} {unit}"
    if error is not None:
        return f"Monte Carlo ± {error:.4f}, {size}"
    if K < psis.MIN_DRAWS:
        return f"Monte Carlo error unknown: fewer than {psis.MIN_DRAWS} {unit}; {size}"
    share = results["log_evidence_share_of_high_k_hat"]
    if by_row and share < 1:
        reason = f"k̂ > {RELIABLE_K_HAT} for {max(share, 0.001):.1%} of rows"
    else:
        k = results["log_evidence_k_hat"]
        reason = f"k̂ = {math.inf if k is None else k:.2f} > {RELIABLE_K_HAT}"
    return f"a lower bound: {reason}; {size}"


def _known(error: float | None) -> float | None:
    return None if error is None or math.isnan(error) else error
