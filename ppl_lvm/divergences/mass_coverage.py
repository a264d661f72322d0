"""Mass coverage of families fitted by each divergence.

With the 95 % highest-density regions R_q of the fitted family and R_p of the target,

    recall    = P_p(x ∈ R_q)    share of the target inside the family's region
    precision = P_q(x ∈ R_p)    share of the family inside the target's region

Both are 0.95 if q = p. A mass-covering divergence has high recall and low precision; for a
mode-seeking one it is the reverse. Regions and shares are estimated from samples, or from the
rows that are the target. Rows without a density have no precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.console import Records, plain_text
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Say
from ppl_lvm.core.validate import CallSyntax, Count, Seed
from ppl_lvm.divergences.base import Divergence, Target, as_target
from ppl_lvm.divergences.fitting import Grid, check_columns, fit_divergence

if TYPE_CHECKING:
    from rich.console import Group

REGION = 0.95
DRAWS = 10_000  # standard error 0.005 for a share of 0.5
OPTIMIZER = "Adam(lr=0.02, betas=(0.9, 0.9))"  # short memory, since χ² is steep at first


@dataclass(frozen=True)
class CoverageResult:
    """One family fitted by one divergence.

    Attributes:
        divergence: name in call syntax.
        start: name of the initial family.
        value: final divergence (from samples: mean over the last tenth of the steps), up to a
            constant of the target if that is unknown.
        recall, precision: see the module; None if unknown.
        failed: reason of a failed fit, else None.
        family: the fitted family.
    """

    divergence: str
    start: str
    value: float | None = None
    recall: float | None = None
    precision: float | None = None
    failed: str | None = None
    family: Any = None


@dataclass(frozen=True)
class CoverageResults:
    """Results of all fits.

    Attributes:
        rows: one per divergence and start.
        target: the target of the fits.
        left_out: omitted divergence -> the parts of the target that it requires.
        exact: True if computed by sums over a grid, not from samples.
    """

    rows: tuple[CoverageResult, ...]
    target: Target
    left_out: dict[str, str]
    exact: bool

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary per row."""
        keys = ("divergence", "start", "value", "recall", "precision", "failed")
        return [{key: getattr(row, key) for key in keys} for row in self.rows]

    @property
    def note(self) -> str:
        """Explanation of the columns."""
        method = "sums over a grid" if self.exact else "draws"
        text = (
            f"Fitted by {method}. recall: share of the target in the family's {REGION:.0%} region; "
            f"precision: of the family in the target's. Both are {REGION} if family and target "
            "are equal."
        )
        if self.target.log_density is None:
            text += " value of a KL: up to the target's entropy, which is unknown."
        if self.left_out:
            each = ", ".join(f"{name} ({needs})" for name, needs in self.left_out.items())
            text += f" Omitted, since they need more of the target: {each}."
        return text

    def __rich__(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        several = len({row.start for row in self.rows}) > 1
        heads = ["divergence", *(["start"] if several else []), "value", "recall", "precision"]
        rows, failed = [], []
        for row in self.rows:
            cells = [_rounded(row.value, 4), _rounded(row.recall, 2), _rounded(row.precision, 2)]
            rows.append([row.divergence, *([row.start] if several else []), *cells])
            if row.failed is not None:
                failed.append(Text(f"{row.divergence} {row.start}: {row.failed}".strip()))
        table = Records(heads, rows, right=heads[-3:])
        return Group(table, *failed, Text(self.note))

    def __str__(self) -> str:
        return plain_text(self)


@checked
def fit_all(
    target: Any,
    families: Mapping[str, Any],
    divergences: Sequence[Divergence],
    *,
    num_steps: Count = 800,
    num_draws: Annotated[int, Ge(2)] = 256,
    optimizer: CallSyntax = OPTIMIZER,
    seed: Seed = 0,
    say: Say | None = None,
) -> CoverageResults:
    """Fit every initial family by every divergence that the target supports.

    A target of one column with known density is summed over a grid, any other is sampled. A
    failed fit is a row with the reason.

    Args:
        target: p, see `as_target`; it must have samples.
        families: name of a start -> q, a module with `density()`.
        divergences: in the order of the rows.
        num_steps, num_draws, optimizer, seed: see `fit_divergence`.
        say: called as say(name, done, total) before each fit.

    Raises:
        ValueError: no initial family, a target without samples or without the parts required by
            any of the divergences, or a family with other columns.
    """
    p = as_target(target)
    if p.draw is None or not families:
        raise ValueError("fit_all: needs a target with samples, and one family or more.")
    with preserve_rng():
        torch.manual_seed(seed)
        x = p.draw(DRAWS) if not isinstance(target, Tensor) else target
    for family in families.values():
        check_columns(family, tuple(x.shape[1:]), "target")
    grid = _grid(p, x)
    left_out = {d.name: " and ".join(d.missing(p)) for d in divergences if d.missing(p)}
    if grid is not None:
        left_out = {}  # a grid needs only the density, which is known
    fits = [d for d in divergences if d.name not in left_out]
    if not fits:
        divergences[0].check(p)
    rows: list[CoverageResult] = []
    for divergence, (start, family) in product(fits, families.items()):
        name = divergence.name
        if say is not None:
            say(f"{name} {start}".strip(), len(rows), len(fits) * len(families))
        try:
            fitted = fit_divergence(
                divergence,
                p,
                family,
                num_steps=num_steps,
                num_draws=num_draws,
                optimizer=optimizer,
                grid=grid,
                seed=seed,
            )
        except FloatingPointError as error:
            rows.append(CoverageResult(name, start, failed=str(error)))
            continue
        last = fitted.history[-1 if grid is not None else -max(1, num_steps // 10) :]
        value, q = sum(last) / len(last), fitted.family
        rows.append(CoverageResult(name, start, value, *shares(p, q, x, seed), family=q))
    return CoverageResults(tuple(rows), p, left_out, grid is not None)


def shares(p: Target, family: Any, x: Tensor, seed: int = 0) -> tuple[float, float | None]:
    """Recall and precision of a family, for samples or rows `x` (N, P) of the target."""
    with torch.no_grad(), preserve_rng():
        torch.manual_seed(seed)
        q = family.density()
        y = q.rsample((DRAWS,))
        recall = _share(q.log_prob(x), q.log_prob(y))
        log_p = p.log_density
        return recall, None if log_p is None else _share(log_p(y), log_p(x))


def _share(log_density: Tensor, reference: Tensor) -> float:
    """Share of points whose density is within the 95 % highest of the reference sample."""
    return float((log_density >= reference.double().quantile(1 - REGION)).double().mean())


def _grid(p: Target, x: Tensor) -> Grid | None:
    """Grid over one column, three times as wide as the samples; p and q are 0 outside."""
    if x.shape[1] != 1 or p.log_density is None or not p.normalized:
        return None
    low, high = float(x.min()), float(x.max())
    return Grid([low - (high - low)], [high + (high - low)])


def _rounded(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
