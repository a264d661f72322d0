"""Bases of the estimators.

An estimator turns rows into a tensor, fits a program, and reads the answers from the run. A class
declares its constructor, its program, and what its fitted attributes are called. Classes that are
fitted by expectation-maximization have a likelihood in closed form, hence `aic` and `bic`.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.tracebacks import trims_traceback
from ppl_lvm.core.types import Array
from ppl_lvm.data import Data, load_data
from ppl_lvm.fitting.em import run_em
from ppl_lvm.programs.precision import default_dtype
from ppl_lvm.runs.run import Run
from ppl_lvm.training.options import EMOptions

LARGEST_SEED = 2**31 - 1


class LatentVariableEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of all estimators: rows X (N, P) to codes (N, D).

    Attributes:
        run_: the fit, a `ppl_lvm.Run`.
        n_features_in_, feature_names_in_: columns of X.
    """

    allows_missing: ClassVar[bool] = False  # NaN in X is marginalized
    least_rows: ClassVar[int] = 2
    least_columns: ClassVar[int] = 1

    run_: Run
    random_state: Any

    @trims_traceback
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit the model to rows X (N, P).

        Args:
            X: an array or a data frame; NaN where a value is missing, in models that allow it.
            y: ignored.
            sample_weight: weights of the rows (N,); a weight of 2 counts as two equal rows.
        """
        rows = self._validated(X, reset=True)
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, rows, dtype=np.float64, ensure_non_negative=True
            )
            if not weights.any():
                raise ValueError("sample_weight: all weights are zero. Give a positive weight.")
            rows, weights = rows[weights > 0], weights[weights > 0]
            sample_weight = torch.from_numpy(weights)
        self._fit_rows(self._tensor(rows), sample_weight)
        return self

    @trims_traceback
    def transform(self, X: Any) -> Array:
        """Codes of rows X: posterior means, or probabilities of the classes, (N, D)."""
        return self._answer(self._codes, X)

    @trims_traceback
    def inverse_transform(self, X: Any) -> Array:
        """Means of rows given codes X (N, D): (N, P)."""
        check_is_fitted(self)
        codes = np.asarray(X, dtype=self._dtype)
        return np.asarray(self._decoded(torch.from_numpy(codes)).detach())

    @trims_traceback
    def score_samples(self, X: Any) -> Array:
        """log p(x_n) of rows X, in nats: (N,)."""
        return self._answer(self._log_prob, X)

    @trims_traceback
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log p(x_n) of rows X, nats per row; `y` is ignored."""
        return float(np.average(self.score_samples(X), weights=sample_weight))

    def sample(self, n_samples: int = 1) -> Any:
        """Draw rows from the model: (n_samples, P)."""
        return self._draws(n_samples)["x"]

    @property
    def _n_features_out(self) -> int:
        return int(self._codes(self.run_.example_rows[0][:2]).shape[1])

    def _draws(self, n_samples: int) -> dict[str, Array]:
        """Site -> draws (n_samples, …)."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples: {n_samples} rows. Ask for one or more.")
        draws = self.run_.sample(int(n_samples), seed=self._seed())
        return {name: np.asarray(value) for name, value in draws.items()}

    def _fit_rows(self, x: Tensor, weights: Tensor | None) -> None:
        """Set `run_` and the fitted attributes from rows `x` (N, P)."""
        raise NotImplementedError

    def _codes(self, x: Tensor) -> Tensor:
        """Codes (N, D) of rows."""
        return torch.cat([code.flatten(1) for code in self.run_.encode(x).values()], 1)

    def _decoded(self, z: Tensor) -> Tensor:
        """Means (N, P) at codes."""
        return self.run_.decode(z)["x"]

    def _log_prob(self, x: Tensor) -> Tensor:
        """log p(x_n), (N,)."""
        return self.run_.log_evidence(x).per_row

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(LARGEST_SEED))

    @property
    def _dtype(self) -> Any:
        """NumPy's type of the rows of the fit."""
        return self.run_.example_rows[0].numpy().dtype

    def _validated(self, X: Any, reset: bool = False) -> Array:
        rows: Array = validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32] if reset else self._dtype,
            ensure_all_finite="allow-nan" if self.allows_missing else True,
            ensure_min_samples=self.least_rows if reset else 1,
            ensure_min_features=self.least_columns if reset else 1,
        )
        return rows

    def _data(self, x: Tensor) -> Data:
        """Rows with the names of their columns, in the precision of `x`."""
        with default_dtype(x.dtype):
            data = load_data(x, missing="keep" if self.allows_missing else "error")
        names = getattr(self, "feature_names_in_", None)
        return data if names is None else replace(data, columns=[str(name) for name in names])

    def _tensor(self, rows: Array) -> Tensor:
        return torch.from_numpy(np.array(rows, order="C"))

    def _answer(self, function: Callable[[Tensor], Tensor], X: Any) -> Array:
        """`function` of rows X, as an array."""
        check_is_fitted(self)
        x = self._tensor(self._validated(X))
        with torch.no_grad():
            return np.asarray(function(x).detach())

    def _warn(self, sentence: str) -> None:
        warnings.warn(f"{type(self).__name__}: {sentence}", ConvergenceWarning, stacklevel=4)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.allows_missing
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """State without the training rows, except of models whose answers depend on them."""
        state: dict[str, Any] = dict(super().__getstate__())
        if isinstance(self, EMEstimator) and "run_" in state:
            run = state["run_"] = copy.copy(state["run_"])
            run.training_data = run.held_out_data = None
        return state


class EMEstimator(LatentVariableEstimator):
    """Base of the estimators that expectation-maximization fits.

    Attributes:
        converged_: whether the remaining gain is below `tol`.
        n_iter_: iterations of the best restart.
        lower_bound_: its log-likelihood, nats per row.
    """

    allows_missing = True
    n_init: int
    tol: float
    max_iter: int

    def _model(self) -> Any:
        """The program that is fitted."""
        raise NotImplementedError

    def _set_start(self, model: Any, x: Tensor, weights: Tensor | None) -> None:
        """Change the initial values of a model that is initialized."""

    def _starts_at_maximum(self, x: Tensor) -> bool:
        """True if `_set_start` sets the maximum, so that no iteration is needed."""
        return False

    def _set_attributes(self) -> None:
        """Set the fitted attributes from the model."""
        raise NotImplementedError

    def _num_parameters(self) -> int:
        """Number of free parameters."""
        raise NotImplementedError

    @property
    def _fitted(self) -> Any:
        return self.run_.model

    @public_call(checks_arguments=False)
    def _fit_rows(self, x: Tensor, weights: Tensor | None) -> None:
        options = EMOptions(
            seed=self._seed(),
            weights=weights,
            max_iterations=1 if self._starts_at_maximum(x) else self.max_iter,
            tolerance=self.tol,
            restarts=self.n_init,
        )

        def set_start(model: Any) -> None:
            self._set_start(model, x, weights)

        with default_dtype(x.dtype):
            self.run_ = run_em(
                self._model(), self._data(x), options, examine=False, set_start=set_start
            )
        results = self.run_.results
        if self._starts_at_maximum(x):
            results["converged"] = True
        self.n_iter_, self.converged_ = results["steps"], results["converged"]
        self.lower_bound_ = results["bound"]
        self._set_attributes()
        if results["degenerate"]:
            self._warn(results["degenerate"])
        if not self.converged_:
            self._warn(f"not converged in {self.n_iter_} iterations. Raise max_iter or tol.")

    def bic(self, X: Any) -> float:
        """Bayesian information criterion of rows X; lower is better."""
        return self._deviance(X) + self._num_parameters() * float(np.log(self._count(X)))

    def aic(self, X: Any) -> float:
        """Akaike information criterion of rows X; lower is better."""
        return self._deviance(X) + 2 * self._num_parameters()

    def _deviance(self, X: Any) -> float:
        return -2 * float(self.score_samples(X).sum())

    def _count(self, X: Any) -> int:
        return int(np.shape(X)[0])


class Classes:
    """Methods of models with a class in each row, whose codes are p(class | row) (N, K)."""

    transform: Any

    @trims_traceback
    def predict_proba(self, X: Any) -> Array:
        """p(class | row) of rows X: (N, K)."""
        probabilities: Array = np.asarray(self._answer(self._codes, X))  # type: ignore[attr-defined]
        return probabilities

    @trims_traceback
    def predict(self, X: Any) -> Array:
        """The most probable class of rows X: (N,)."""
        classes: Array = self.predict_proba(X).argmax(1)
        return classes

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Array:
        """Fit to rows X, and return their classes (N,)."""
        return self.fit(X, y, sample_weight).predict(X)  # type: ignore[attr-defined]
