"""Local variational parameters of every row, kept in a table.

    q(z_n) = N(μ_n, diag σ_n²) on the site's support,    λ_n = (μ_n, log σ_n)

Before each step on the model's parameters θ, the λ_n of the batch's rows take `inner_steps` steps
up their bound (`parts/natural_gradient.py`) at the current θ, from their last values. The table
holds λ_n and the length α_n of the row's next step. Rows outside the batch are not read or written,
so that a step costs the same for every N. There is no encoder and no amortization gap: this is
stochastic variational inference.

The rows of a batch. `fit` provides them, and so does a plate over rows with a `subsample_size`.
Under plain `pyro.infer.SVI` the batch is taken to be all rows, always in the same order. Elsewhere,
provide them:

    with ProvideBatchRows(rows, num_rows=N):      # of ppl_lvm.programs.row_state
        svi.step(x[rows])

In evaluation mode (`guide.eval()`, and in every method of a `Run`) the table is not used: λ is
fitted to the rows of each batch at the current θ, from the initial value, until it converges. So a
bound on held-out rows is that of λ fitted to these rows.

The λ_n climb the ELBO, for every objective of θ. They are no parameters: an optimizer does not see
them, and a checkpoint of `fit` keeps them in a separate file. A step cannot be captured.

Serves models whose local latents are continuous, or enumerated, and whose rows are independent
given the global latents, which get a `GlobalNormal` (`parts/global_part.py`), the global q of the
paper.

Reference:
    Hoffman, Blei, Wang, Paisley (2013). Stochastic variational inference.
    https://arxiv.org/abs/1206.7051, section 2.3: optimize the local parameters of the sampled
    data, then step on the global ones.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_lvm.authoring import RowTable, batch_rows, is_dry_run, signature
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.encoder_guide import sample_factors, supported_sites
from ppl_lvm.guides.parts.global_part import global_centers, split_globals
from ppl_lvm.guides.parts.natural_gradient import LocalBound, ascend
from ppl_lvm.guides.parts.site_guide import Latents, SiteGuide, serving
from ppl_lvm.guides.parts.support_transform import row_plate, subsamples
from ppl_lvm.guides.parts.variational_families import DiagonalFamily, TransformedFactor

GUIDE = "LocalNormal"
FIRST_STEP = 0.5  # α of a new row
ENOUGH = 1e-6  # nats: fitting stops when no row rises by more
CHUNK = 4096  # rows that are fitted together
CACHED_ROWS = 20_000  # rows whose fitted λ are kept while θ stays


@serving(Latents.LOCAL_CONTINUOUS, description="diagonal normals with parameters of every row")
class LocalNormal(SiteGuide):
    """q(z_n) = N(μ_n, diag σ_n²) with separate parameters for each row.

    Args:
        model: the model; it is run inside the guide.
        batch: its arguments: some rows.
        inner_steps: steps of the batch's λ_n before each step on θ.
        draws: K, the number of points in a row's bound; None: 2 k for k unconstrained values of a
            row, at least 16.
        fit_steps: largest number of steps where λ is fitted to rows outside of training.

    Attributes:
        table: rows λ_n, log (α_n / 0.5).

    Raises:
        ValueError: for a model it does not serve, naming the site and the remedy; when called,
            for a batch of unknown rows.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *batch: Tensor,
        inner_steps: Count = 3,
        draws: Count | None = None,
        fit_steps: Count = 200,
    ) -> None:
        super().__init__()
        if inner_steps < 1 or fit_steps < 1:
            raise ValueError(
                f"{GUIDE}: inner_steps={inner_steps}, fit_steps={fit_steps}. Use values >= 1."
            )
        self.inner_steps, self.fit_steps = inner_steps, fit_steps
        self.shared, self._signature = split_globals(model, signature(model, *batch), batch)
        local_sites = supported_sites(self._signature, GUIDE, subsampled=True)
        self._factors = [
            TransformedFactor(site, self._signature, DiagonalFamily()) for site in local_sites
        ]
        self.sites = [*(self.shared.sites if self.shared is not None else ()), *local_sites]
        self._model = (model,)  # in a tuple: its parameters are no parameters of the guide
        self._bound = LocalBound(
            model, self._signature, self._factors, batch, draws, GUIDE, self._centers
        )
        like = next((x for x in batch if x.is_floating_point()), torch.empty(0))
        self._like: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.row_table = RowTable(2 * self._bound.size + 1, like.dtype)
        self._rows_provided = False  # whether the rows of a batch were ever provided
        self._ends: list[Tensor] = []  # first and last row of the data, where it is one batch
        self._theta: list[Tensor] = []
        self._improved: tuple[Tensor, Tensor] | None = None  # rows and their λ, at this θ
        self._cache: list[tuple[tuple[Any, ...], Tensor]] = []  # batches and their λ, at this θ

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        if self.shared is not None:
            self.shared.draw(plates, *batch)
        subsample = (
            plates[row_plate(self._signature).name].indices if subsamples(self._signature) else None
        )
        sample_factors(self._lam(subsample, batch), self._factors, plates)

    def _centers(self) -> dict[str, Tensor]:
        return global_centers(self.shared)

    def rows(self, rows: Tensor) -> Tensor:
        """λ (B, 2 k) of some rows of the training data after their last step."""
        return self._read(rows)[:, :-1]

    def _read(self, rows: Tensor) -> Tensor:
        """λ and log (α / 0.5) of rows."""
        return self.row_table.read(rows).to(self._like["device"])

    def _lam(self, subsample: Tensor | None, batch: tuple[Any, ...]) -> Tensor:
        """λ of the batch's rows, or of the rows `subsample` of it."""
        if is_dry_run():
            initial = self._initial(len(batch[0]) if subsample is None else len(subsample))
            return ascend(self._bound, *initial, self.inner_steps, *batch, rows=subsample)[0]
        self._clear_cache_of_other_theta()
        rows = self._rows(subsample, batch)
        if rows is None:
            return self._fit(batch)
        if self.training and torch.is_grad_enabled():
            return self._improve(rows, subsample, batch)
        return self.rows(rows)

    def _rows(self, subsample: Tensor | None, batch: tuple[Any, ...]) -> Tensor | None:
        """Row numbers of the batch in the table; None for rows outside of it."""
        provided = batch_rows()
        if subsample is not None:
            provided = subsample, row_plate(self._signature).full_size
        if provided is not None:
            rows, size = provided
            if self.row_table.size != size or self._ends:
                self.row_table.resize(size)
                self._ends = []
            self._rows_provided = True
            return rows
        if self._rows_provided or not self.training:
            return None
        return self._all_rows(batch)

    def _all_rows(self, batch: tuple[Any, ...]) -> Tensor:
        """All row numbers, since none are provided.

        Raises:
            ValueError: for other rows than those of the first call.
        """
        size = len(batch[0])
        ends = [x[[0, -1]].clone() for x in batch]
        if self.row_table.size is None:
            self.row_table.resize(size)
            self._ends = ends
        if self.row_table.size != size or not all(map(_same, ends, self._ends)):
            raise ValueError(
                f"{GUIDE}: it keeps parameters of every row, and these are not the rows of its "
                f"first call ({size} now, {self.row_table.size} then, or in another order). Train "
                "by fit, which provides the rows of a batch; or provide them: with "
                "ppl_lvm.programs.row_state.ProvideBatchRows(rows, num_rows=N): svi.step(x[rows]); "
                "or call guide.eval() to fit them to rows outside of training."
            )
        return torch.arange(size)

    def _initial(self, rows: int) -> tuple[Tensor, Tensor]:
        """λ and α of new rows."""
        lam = torch.zeros(rows, 2 * self._bound.size, **self._like)
        return lam, torch.full((rows, 1), FIRST_STEP, **self._like)

    def _improve(self, rows: Tensor, subsample: Tensor | None, batch: tuple[Any, ...]) -> Tensor:
        """λ of these rows after `inner_steps`, taken once at every θ."""
        if self._improved is not None and _same(self._improved[0], rows):
            return self._improved[1]
        lam, log_alpha = self._read(rows).split([2 * self._bound.size, 1], dim=-1)
        alpha = FIRST_STEP * log_alpha.exp()
        lam, alpha = ascend(self._bound, lam, alpha, self.inner_steps, *batch, rows=subsample)
        # Bounded below, so that a row whose steps were rejected can move again at another θ.
        log_alpha = (alpha / FIRST_STEP).clamp(min=1e-3).log()
        self.row_table.write(rows, torch.cat([lam, log_alpha], dim=-1))
        self._improved = rows, lam
        self._store_theta()
        return lam

    def _fit(self, batch: tuple[Any, ...]) -> Tensor:
        """λ fitted to a batch of rows outside of the table."""
        for known, lam in self._cache:
            if len(known) == len(batch) and all(map(_same, known, batch)):
                return lam
        parts = []
        for index in torch.arange(len(batch[0])).split(CHUNK):
            part = tuple(x[index] for x in batch)
            initial = self._initial(len(index))
            parts.append(ascend(self._bound, *initial, self.fit_steps, *part, enough=ENOUGH)[0])
        fitted = torch.cat(parts)
        self._cache.append((batch, fitted))
        self._store_theta()
        while len(self._cache) > 1 and sum(len(lam) for _, lam in self._cache) > CACHED_ROWS:
            del self._cache[0]
        return fitted

    def _clear_cache_of_other_theta(self) -> None:
        """Clear λ that were fitted at other parameters of the model."""
        current = self._current_theta()
        if len(current) != len(self._theta) or not all(map(_same, current, self._theta)):
            self._improved, self._cache = None, []

    def _store_theta(self) -> None:
        """Store the parameters at which λ was fitted; the model has run, so that all exist."""
        self._theta = [value.detach().clone() for value in self._current_theta()]

    def _current_theta(self) -> list[Tensor]:
        model = self._model[0]
        theta = list(model.parameters()) if isinstance(model, nn.Module) else []
        theta += list(self.parameters())  # of the global latents
        theta += pyro.get_param_store()._params.values()
        return list({id(parameter): parameter for parameter in theta}.values())


def _same(a: Tensor, b: Tensor) -> bool:
    """True if two tensors are equal, where NaN equals NaN."""
    if a is b:
        return True
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
