"""No encoder: every datum has its own λ_n, kept in a table outside of the optimiser.

    q(z_n) = N(μ_n, diag σ_n²) pushed onto the site's support,    λ_n = (μ_n, log σ_n)

Before each step on the model's parameters θ, the λ_n of the batch's rows take `inner_steps` steps
up their own bound (`ascent.py`) at the present θ, from where they were when they were last seen;
each row keeps the length α_n of its next step beside its λ_n. Rows that are not in the batch are
not touched, so that a step costs the same for every N. There is no amortisation gap, and nothing
to tell an encoder about: this is stochastic variational inference as it was before encoders.

Which rows a batch holds. `fit` says it; a plate "data" with a `subsample_size` of its own says it;
under plain `pyro.infer.SVI` the batch is taken to be the whole data, in one order; and elsewhere
say it yourself:

    with DataRows(rows, num_rows=N):      # of ppl_lvm.programs.row_state
        svi.step(x[rows])

In evaluation mode (`guide.eval()`, and everything a `Run` does) rows have no λ_n of their own:
they are fitted to whatever batch comes, at the present θ, from the start, until they rise no more.
So a bound on held-out rows is that of λ fitted to these very rows, which is what the model would
cost on them, and not what an encoder would have known of them beforehand.

The λ_n climb the ELBO, whatever objective moves θ. They are no parameters: an optimiser does not
see them, and a checkpoint of `fit` keeps them in a file of their own. A step cannot be captured.

Serves models whose local latents are continuous, or enumerated, and whose rows are independent
given what they share; that gets a `GlobalNormal` (`shared_part.py`), the global q of the paper.

Reference:
    Hoffman, Blei, Wang, Paisley (2013). Stochastic variational inference.
    https://arxiv.org/abs/1206.7051, section 2.3: optimise the local parameters of the sampled
    data, then step on the global ones.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.guides.parts.encoder_guide import sample_factors, supported_sites
from ppl_lvm.guides.parts.global_part import global_centers, split_globals
from ppl_lvm.guides.parts.natural_gradient import LocalBound, ascend
from ppl_lvm.guides.parts.support_transform import open_plates, subsamples
from ppl_lvm.guides.parts.variational_families import DiagonalFamily, TransformedFactor
from ppl_lvm.programs.dry_run import is_dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.row_state import RowTable, batch_rows
from ppl_lvm.programs.signatures import signature

FIRST_STEP = 0.5  # α of a row that was never seen
ENOUGH = 1e-6  # nats: fitting stops when no row rises by more
CHUNK = 4096  # rows that are fitted together
REMEMBERED = 20_000  # rows whose fitted λ are kept while θ stays


class LocalNormal(PyroModule):
    """q(z_n) = N(μ_n, diag σ_n²) with parameters of each datum's own.

    Args:
        model: the model; it is run inside the guide.
        batch: what the model is called with: some rows.
        inner_steps: steps of the batch's λ_n before each step on θ.
        draws: K, points that stand for q in a datum's bound; None: 2 k of a datum's k numbers,
            at least 16.
        fit_steps: steps at most, where λ is fitted to rows outside of training.

    Attributes:
        table: rows λ_n, log (α_n / 0.5).

    Raises:
        ValueError: for a model it does not serve, naming the site and what to do; when called,
            for a batch of unknown rows.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *batch: Tensor,
        inner_steps: int = 3,
        draws: int | None = None,
        fit_steps: int = 200,
    ) -> None:
        super().__init__()
        if inner_steps < 1 or fit_steps < 1:
            raise ValueError(
                f"LocalNormal needs inner_steps and fit_steps >= 1, got {inner_steps}, {fit_steps}."
            )
        self.inner_steps, self.fit_steps = inner_steps, fit_steps
        self.shared, self._signature = split_globals(model, signature(model, *batch), batch)
        own = supported_sites(self._signature, "LocalNormal", sampled=True)
        self._factors = [TransformedFactor(site, self._signature, DiagonalFamily()) for site in own]
        self.sites = [*(self.shared.sites if self.shared is not None else ()), *own]
        self._model = (model,)  # in a tuple: its parameters are not the guide's
        self._bound = LocalBound(
            model, self._signature, self._factors, batch, draws, "LocalNormal", self._centers
        )
        like = next((x for x in batch if x.is_floating_point()), torch.empty(0))
        self._like: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.table = RowTable(2 * self._bound.size + 1, like.dtype)
        self._told = False  # whether anybody has ever said which rows a batch holds
        self._seen: list[Tensor] = []  # of the whole data: its first and its last row
        self._theta: list[Tensor] = []
        self._improved: tuple[Tensor, Tensor] | None = None  # rows and their λ, at this θ
        self._fitted: list[tuple[tuple[Any, ...], Tensor]] = []  # batches and their λ, at this θ

    def forward(self, *batch: Tensor) -> None:
        self.draw(open_plates(self.sites, self._signature, len(batch[0])), *batch)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        if self.shared is not None:
            self.shared.draw(plates, *batch)
        own = plates[DATA_PLATE].indices if subsamples(self._signature) else None
        sample_factors(self._lam(own, batch), self._factors, plates)

    def _centers(self) -> dict[str, Tensor]:
        return global_centers(self.shared)

    def rows(self, rows: Tensor) -> Tensor:
        """λ (B, 2 k) of some rows of the training data, as their last step left them."""
        return self._read(rows)[:, :-1]

    def _read(self, rows: Tensor) -> Tensor:
        """λ and log (α / 0.5) of rows."""
        return self.table.read(rows).to(self._like["device"])

    def _lam(self, own: Tensor | None, batch: tuple[Any, ...]) -> Tensor:
        if is_dry_run():
            start = self._start(len(batch[0]) if own is None else len(own))
            return ascend(self._bound, *start, self.inner_steps, *batch, rows=own)[0]
        self._forget_other_theta()
        rows = self._rows(own, batch)
        if rows is None:
            return self._fit(batch)
        if self.training and torch.is_grad_enabled():
            return self._improve(rows, own, batch)
        return self.rows(rows)

    def _rows(self, own: Tensor | None, batch: tuple[Any, ...]) -> Tensor | None:
        """Which rows of the table these are; None if they are none of them."""
        told = batch_rows()
        if own is not None:
            told = own, self._signature.plate(DATA_PLATE).full_size
        if told is not None:
            rows, size = told
            if self.table.size != size or self._seen:
                self.table.resize(size)
                self._seen = []
            self._told = True
            return rows
        if self._told or not self.training:
            return None
        return self._whole(batch)

    def _whole(self, batch: tuple[Any, ...]) -> Tensor:
        """All rows, since nobody said anything else."""
        size = len(batch[0])
        ends = [x[[0, -1]].clone() for x in batch]
        if self.table.size is None:
            self.table.resize(size)
            self._seen = ends
        if self.table.size != size or not all(map(_same, ends, self._seen)):
            raise ValueError(
                "LocalNormal keeps numbers for every row, and these are not the rows it was first "
                f"called with ({size} now, {self.table.size} then, or in another order). Train by "
                "fit, which says which rows a batch holds; or say it: with "
                "ppl_lvm.programs.row_state.DataRows(rows, num_rows=N): svi.step(x[rows]); or call "
                "guide.eval() to have them fitted to rows outside of training."
            )
        return torch.arange(size)

    def _start(self, rows: int) -> tuple[Tensor, Tensor]:
        """λ and α of rows never seen."""
        lam = torch.zeros(rows, 2 * self._bound.size, **self._like)
        return lam, torch.full((rows, 1), FIRST_STEP, **self._like)

    def _improve(self, rows: Tensor, own: Tensor | None, batch: tuple[Any, ...]) -> Tensor:
        """The λ of these rows after `inner_steps`, once at every θ."""
        if self._improved is not None and _same(self._improved[0], rows):
            return self._improved[1]
        lam, log_alpha = self._read(rows).split([2 * self._bound.size, 1], dim=-1)
        alpha = FIRST_STEP * log_alpha.exp()
        lam, alpha = ascend(self._bound, lam, alpha, self.inner_steps, *batch, rows=own)
        # A row whose steps were refused again and again starts anew, at another θ.
        log_alpha = (alpha / FIRST_STEP).clamp(min=1e-3).log()
        self.table.write(rows, torch.cat([lam, log_alpha], dim=-1))
        self._improved = rows, lam
        self._remember_theta()
        return lam

    def _fit(self, batch: tuple[Any, ...]) -> Tensor:
        """λ fitted to a batch of rows that are none of the table's."""
        for known, lam in self._fitted:
            if len(known) == len(batch) and all(map(_same, known, batch)):
                return lam
        parts = []
        for index in torch.arange(len(batch[0])).split(CHUNK):
            part = tuple(x[index] for x in batch)
            start = self._start(len(index))
            parts.append(ascend(self._bound, *start, self.fit_steps, *part, enough=ENOUGH)[0])
        fitted = torch.cat(parts)
        self._fitted.append((batch, fitted))
        self._remember_theta()
        while len(self._fitted) > 1 and sum(len(lam) for _, lam in self._fitted) > REMEMBERED:
            del self._fitted[0]
        return fitted

    def _forget_other_theta(self) -> None:
        """What was found at other parameters of the model counts no more."""
        now = self._parameters_now()
        if len(now) != len(self._theta) or not all(map(_same, now, self._theta)):
            self._improved, self._fitted = None, []

    def _remember_theta(self) -> None:
        """These parameters are those at which λ was found; the model has run, and has them all."""
        self._theta = [value.detach().clone() for value in self._parameters_now()]

    def _parameters_now(self) -> list[Tensor]:
        model = self._model[0]
        found = list(model.parameters()) if isinstance(model, nn.Module) else []
        found += list(self.parameters())  # of what all data share
        found += pyro.get_param_store()._params.values()
        return list({id(parameter): parameter for parameter in found}.values())


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN being itself."""
    if a is b:
        return True
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
