"""What each divergence makes of a family that cannot be the target: what it covers, and what not.

With the 95% regions of highest density, R_q of the fitted family and R_p of the target,

    covers = P_p(x ∈ R_q)    how much of the target lies where the family is
    inside = P_q(x ∈ R_p)    how much of the family lies where the target is

Both are 0.95 where q = p. A divergence that covers mass has the first high and the second low, one
that seeks modes has it the other way round. Regions and shares come from draws, or from the rows
that are the target; of a target of rows alone the second cannot be said.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ppl_lvm.core.call_syntax import settings_of
from ppl_lvm.core.console import plain_text
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.divergences.base import Divergence, Target, as_target
from ppl_lvm.divergences.fitting import Grid, check_columns, fit_divergence

REGION = 0.95
DRAWS = 10_000  # a share of 0.5 is then known to 0.005
OPTIMIZER = "Adam(lr=0.02, betas=(0.9, 0.9))"  # χ² begins steep: forget that soon

Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CoverageResult:
    """One family fitted by one divergence.

    Attributes:
        divergence: its name in call syntax.
        start: the name of the start.
        value: the divergence at the end (from draws: mean of the last tenth of the steps); less a
            constant of the target where it is not known.
        covers, inside: see the module; None where they cannot be said.
        failed: why there is no fit; None where there is one.
        family: the fitted one.
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
    """All that were fitted.

    Attributes:
        rows: one a divergence and start.
        target: what they were fitted to.
        left_out: divergence -> what it would have needed to know of the target.
        exact: whether by sums over a grid, and not from draws.
    """

    rows: tuple[CoverageResult, ...]
    target: Target
    left_out: dict[str, str]
    exact: bool

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary a row."""
        keys = ("divergence", "start", "value", "recall", "precision", "failed")
        return [{key: getattr(row, key) for key in keys} for row in self.rows]

    @property
    def note(self) -> str:
        """How the figures are to be read."""
        how = "sums over a grid" if self.exact else "draws"
        said = (
            f"Fitted by {how}. covers: share of the target in the family's {REGION:.0%} region; "
            f"inside: of the family in the target's. Both {REGION} where they are the same."
        )
        if self.target.log_density is None:
            said += " value: without the target's entropy, which is not known, for a KL."
        if self.left_out:
            each = ", ".join(f"{name} ({needs})" for name, needs in self.left_out.items())
            said += f" Left out, since more would have to be known of the target: {each}."
        return said

    def __rich__(self) -> Group:
        several = len({row.start for row in self.rows}) > 1
        table = Table(box=None, padding=(0, 2, 0, 0))
        for head in ("divergence", *(["start"] if several else []), "value", "recall", "precision"):
            left = head in ("divergence", "start")
            table.add_column(head, justify="left" if left else "right", no_wrap=not left)
        failed = []
        for row in self.rows:
            figures = [_said(row.value, 4), _said(row.recall, 2), _said(row.precision, 2)]
            table.add_row(row.divergence, *([row.start] if several else []), *figures)
            if row.failed is not None:
                failed.append(Text(f"{row.divergence} {row.start}: {row.failed}".strip()))
        return Group(table, *failed, Text(self.note))

    def __str__(self) -> str:
        return plain_text(self)


def fit_all(
    target: Any,
    families: Mapping[str, Any],
    divergences: Sequence[Divergence],
    *,
    num_steps: int = 800,
    num_draws: int = 256,
    optimizer: Any = OPTIMIZER,
    seed: int = 0,
    say: Say | None = None,
) -> CoverageResults:
    """Fit every start by every divergence for which enough is known of the target.

    A target of one column whose density is known is summed over a grid, any other drawn from. A
    fit that fails is a row that says why.

    Args:
        target: p, see `as_target`; with draws.
        families: name of a start -> q, a module with `density()`.
        divergences: in the order of the rows.
        num_steps, num_draws, optimizer, seed: see `fit_divergence`.
        say: called as say(name, done, total) before each fit.

    Raises:
        ValueError: no start, a target that cannot be drawn from or of which too little is known
            for all of these divergences, or a family of other columns.
    """
    p = as_target(target)
    if p.draw is None or not families:
        raise ValueError("fit_all needs a target that can be drawn from, and a start.")
    with preserve_rng():
        torch.manual_seed(seed)
        x = p.draw(DRAWS) if not isinstance(target, Tensor) else target
    for family in families.values():
        check_columns(family, tuple(x.shape[1:]), "target")
    grid = _grid(p, x)
    left_out = {name_of(d): " and ".join(d.missing(p)) for d in divergences if d.missing(p)}
    if grid is not None:
        left_out = {}  # a grid needs the density alone, and that is known
    fits = [d for d in divergences if name_of(d) not in left_out]
    if not fits:
        divergences[0].check(p)
    rows: list[CoverageResult] = []
    for divergence, (start, family) in product(fits, families.items()):
        name = name_of(divergence)
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
    """`recall` and `precision` of a family, for draws or rows `x` (N, P) of the target."""
    with torch.no_grad(), preserve_rng():
        torch.manual_seed(seed)
        q = family.density()
        y = q.rsample((DRAWS,))
        covers = _share(q.log_prob(x), q.log_prob(y))
        known = p.log_density
        return covers, None if known is None else _share(known(y), known(x))


def name_of(divergence: Divergence) -> str:
    """In call syntax: Renyi(alpha=0.2)."""
    known = settings_of(divergence) or {}
    return type(divergence).__name__ + (
        f"({', '.join(f'{k}={v!r}' for k, v in known.items())})" if known else ""
    )


def _share(at: Tensor, own: Tensor) -> float:
    """How many of the densities `at` are within the 95% highest of the distribution's own."""
    return float((at >= own.double().quantile(1 - REGION)).double().mean())


def _grid(p: Target, x: Tensor) -> Grid | None:
    """Over one column, three times as wide as the draws: beyond it is nothing of p or q."""
    if x.shape[1] != 1 or p.log_density is None or not p.normalized:
        return None
    low, high = float(x.min()), float(x.max())
    return Grid([low - (high - low)], [high + (high - low)])


def _said(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
