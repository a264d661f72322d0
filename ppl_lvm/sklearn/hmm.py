"""Gaussian hidden Markov model by expectation-maximization."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ppl_lvm import models
from ppl_lvm.core.tracebacks import trims_traceback
from ppl_lvm.core.types import Array
from ppl_lvm.models.parts.state_space import baum_welch
from ppl_lvm.sklearn.base import Classes, EMEstimator


class GaussianHMM(Classes, EMEstimator):
    """Hidden Markov model with diagonal Gaussian emissions.

    The rows of X are the steps of one sequence, or of several with these `lengths`, one after the
    other. NaN where a value is missing.

    Args:
        n_components: S states.
        tol: largest remaining gain at convergence, nats per sequence.
        floor: smallest variance, as a share of the column's variance.
        max_iter: largest number of iterations.
        n_init: restarts; the most likely that has not collapsed is chosen.
        startprob_init, transmat_init, means_init, covars_init: initial π (S,), A (S, S), μ (S, P)
            and variances (S, P); None: from k-means over the steps.
        random_state: seed of the initial values and of `sample`.

    Attributes:
        startprob_, transmat_, means_, covars_: the same, fitted.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        tol: float = 1e-6,
        floor: float = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        startprob_init: Any = None,
        transmat_init: Any = None,
        means_init: Any = None,
        covars_init: Any = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.tol = tol
        self.floor = floor
        self.max_iter = max_iter
        self.n_init = n_init
        self.startprob_init = startprob_init
        self.transmat_init = transmat_init
        self.means_init = means_init
        self.covars_init = covars_init
        self.random_state = random_state

    @trims_traceback
    def fit(self, X: Any, y: Any = None, lengths: Any = None) -> Any:
        """Fit the model to the steps X (T, P) of sequences of these lengths (default: one)."""
        rows = self._validated(X, reset=True)
        self._fit_rows(_padded(torch.from_numpy(np.array(rows)), lengths), None)
        return self

    def fit_predict(self, X: Any, y: Any = None, lengths: Any = None) -> Array:
        """Fit to the steps X, and return their states (T,)."""
        return self.fit(X, y, lengths).predict(X, lengths)

    @trims_traceback
    def predict_proba(self, X: Any, lengths: Any = None) -> Array:
        """p(state | sequence) of the steps X: (T, S)."""
        return self._steps(X, lengths, lambda x: self._fitted.marginals(x))

    def transform(self, X: Any, lengths: Any = None) -> Array:
        """`predict_proba`."""
        return self.predict_proba(X, lengths)

    @trims_traceback
    def predict(self, X: Any, lengths: Any = None) -> Array:
        """States (T,) of the most probable paths (Viterbi) of the steps X."""
        return self._steps(X, lengths, lambda x: self._fitted.viterbi(x)[0])

    @trims_traceback
    def score_samples(self, X: Any, lengths: Any = None) -> Array:
        """log p(x_t | x_1 … x_{t-1}) of the steps X, in nats: (T,)."""

        def predictive(x: Tensor) -> Tensor:
            model = self._fitted
            log_b = model._log_emission(x)
            log_alpha = baum_welch.forward(model.start.log(), model.transition.log(), log_b)
            total = log_alpha.logsumexp(-1)
            return total.diff(dim=1, prepend=torch.zeros_like(total[:, :1]))

        return self._steps(X, lengths, predictive)

    def score(self, X: Any, y: Any = None, lengths: Any = None) -> float:
        """log p(x) of the sequences, divided by the number of steps; `y` is ignored."""
        return float(self.score_samples(X, lengths).mean())

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw one sequence of `n_samples` steps (n_samples, P), and its states."""
        check_is_fitted(self)
        random = np.random.default_rng(self._seed())
        states = [random.choice(self.n_components, p=self.startprob_)]
        while len(states) < n_samples:
            states.append(random.choice(self.n_components, p=self.transmat_[states[-1]]))
        z = np.array(states[:n_samples])
        noise = random.standard_normal((len(z), self.means_.shape[1]))
        return self.means_[z] + np.sqrt(self.covars_[z]) * noise, z

    def _steps(self, X: Any, lengths: Any, function: Any) -> Array:
        """`function` of padded sequences, (N, L, …), as steps (T, …)."""
        check_is_fitted(self)
        rows = torch.from_numpy(np.array(self._validated(X)))
        x = _padded(rows, lengths)
        with torch.no_grad():
            values = function(x)
        sizes = [len(rows)] if lengths is None else [int(n) for n in lengths]
        return np.asarray(torch.cat([v[:n] for v, n in zip(values, sizes, strict=True)]))

    def _codes(self, x: Tensor) -> Tensor:
        codes: Tensor = self._fitted.marginals(x).flatten(0, 1)
        return codes

    def _decoded(self, z: Tensor) -> Tensor:
        means: Tensor = z @ self._fitted.means
        return means

    @property
    def _n_features_out(self) -> int:
        return self.n_components

    def _model(self) -> Any:
        return models.HiddenMarkovModel(self.n_components, floor=self.floor)

    def _set_start(self, model: Any, x: Tensor, weights: Tensor | None) -> None:
        start = {
            "start": self.startprob_init,
            "transition": self.transmat_init,
            "means": self.means_init,
            "variance": self.covars_init,
        }
        initial = {
            name: torch.as_tensor(np.asarray(value, dtype=np.float64))
            for name, value in start.items()
            if value is not None
        }
        if initial:
            model.set_em_state({**model.em_state(), **initial})

    def _set_attributes(self) -> None:
        state = {name: np.asarray(value) for name, value in self._fitted.em_state().items()}
        self.startprob_, self.transmat_ = state["start"], state["transition"]
        self.means_, self.covars_ = state["means"], state["variance"]

    def _num_parameters(self) -> int:
        check_is_fitted(self)
        S, P = self.means_.shape
        return S * S - 1 + 2 * S * P


def _padded(rows: Tensor, lengths: Any) -> Tensor:
    """Steps (T, P) as sequences (N, L, P), padded with NaN."""
    if lengths is None:
        return rows[None]
    sizes = [int(n) for n in lengths]
    if sum(sizes) != len(rows) or min(sizes, default=0) < 1:
        raise ValueError(
            f"lengths: {sizes} add up to {sum(sizes)} steps, and X has {len(rows)}. Give positive "
            "lengths that add up to the number of rows."
        )
    parts = list(rows.split(sizes))
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=float("nan"))
