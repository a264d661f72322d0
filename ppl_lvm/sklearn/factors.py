"""Linear factor models by maximum likelihood."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ppl_lvm import models
from ppl_lvm.core.types import Array
from ppl_lvm.models.parts.factors.linear_gaussian import posterior
from ppl_lvm.sklearn.base import EMEstimator

NEWTON_STEPS, NEWTON_COLUMNS = 3, 64


class LinearFactors(EMEstimator):
    """Base of PPCA and factor analysis, whose codes are posterior means E[z | x] (N, D).

    Factors are rotated to the model's principal axes, the largest first: the columns of W are
    orthogonal, for PPCA in the units of x and for factor analysis in those of the noise.

    Attributes:
        mean_: μ (P,).
        noise_variance_: σ² or ψ (P,).
    """

    n_components: int

    def _codes(self, x: Tensor) -> Tensor:
        return posterior(self._fitted._doubles(), x.double())[0].to(x)

    def _decoded(self, z: Tensor) -> Tensor:
        means: Tensor = z @ self._fitted.W.mT + self._fitted.mu
        return means

    def _log_prob(self, x: Tensor) -> Tensor:
        log_prob: Tensor = self._fitted.log_evidence(x)
        return log_prob

    def _set_attributes(self) -> None:
        model = self._fitted
        state = self._rescaled(model.em_state())
        noise = state["noise"].sqrt().expand(len(state["mu"]))[:, None]
        U, S, _ = torch.linalg.svd(state["W"] / noise, full_matrices=False)
        largest = U.abs().argmax(0, keepdim=True)
        U = U * torch.sign(U.gather(0, largest))  # scikit-learn's rule for the signs of PCA
        model.set_em_state({**state, "W": noise * U * S})
        self._axes = np.asarray(U.mT)
        self.loadings_ = np.asarray(model.W.detach().mT)
        self.mean_ = np.asarray(model.mu.detach())
        self.noise_variance_ = np.asarray(model.noise.detach())

    def _rescaled(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state

    def _starts_at_maximum(self, x: Tensor) -> bool:
        return not bool(x.isnan().any())

    def get_covariance(self) -> Array:
        """Covariance of x under the model, W Wᵀ + noise: (P, P)."""
        check_is_fitted(self)
        noise = np.broadcast_to(self.noise_variance_, self.mean_.shape)
        covariance: Array = self.loadings_.T @ self.loadings_ + np.diag(noise)
        return covariance

    def _num_parameters(self) -> int:
        check_is_fitted(self)
        D, P = self.loadings_.shape
        return P * D - D * (D - 1) // 2 + P + np.size(self.noise_variance_)


class PPCA(LinearFactors):
    """Probabilistic principal component analysis.

    Complete rows have a closed form, equal to scikit-learn's `PCA`: the same `components_`,
    `explained_variance_`, `noise_variance_` and `score`. Rows with missing values are fitted by
    expectation-maximization. Codes are posterior means, in units of the prior: those of PCA,
    divided by the standard deviations of the axes and shrunken.

    Args:
        n_components: D.
        correction: 1 divides the covariance by N - 1, as scikit-learn's PCA does; 0 by N, the
            maximum of the likelihood.
        tol: largest remaining gain at convergence, nats per row, where values are missing.
        floor: smallest noise variance, as a share of the columns' mean variance.
        max_iter: largest number of iterations.
        random_state: seed of the initial values and of `sample`.

    Attributes:
        components_: principal axes (D, P).
        explained_variance_: variance of x along them (D,).
        loadings_: Wᵀ (D, P).
    """

    least_columns = 2
    n_init = 1

    def __init__(
        self,
        n_components: int = 1,
        *,
        correction: int = 1,
        tol: float = 1e-8,
        floor: float = 1e-6,
        max_iter: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.correction = correction
        self.tol = tol
        self.floor = floor
        self.max_iter = max_iter
        self.random_state = random_state

    def _model(self) -> Any:
        if not 1 <= self.n_components <= self.n_features_in_:
            raise ValueError(
                f"n_components={self.n_components}: X has {self.n_features_in_} columns. Ask for 1 "
                f"to {self.n_features_in_}."
            )
        return models.PPCA(self.n_components, floor=self.floor)

    def _set_start(self, model: Any, x: Tensor, weights: Tensor | None) -> None:
        w = torch.ones(len(x)) if weights is None else weights
        w, x, D = w.double(), x.double(), self.n_components
        self._rows = float(w.sum())
        if not self._starts_at_maximum(x):
            return
        mean = (w @ x) / w.sum()
        _, S, V = torch.linalg.svd(w.sqrt()[:, None] * (x - mean), full_matrices=False)
        values = torch.nn.functional.pad(S.square() / w.sum(), (0, max(0, x.shape[1] - len(S))))
        rest = values[D:].mean() if len(values) > D else torch.zeros(())
        noise = rest.clamp(min=model.least.double())
        W = torch.zeros_like(model.W, dtype=torch.float64)
        W[:, : len(V[:D])] = V[:D].mT * (values[: len(V[:D])] - noise).clamp(min=0).sqrt()
        model.set_em_state({"W": W, "mu": mean, "noise": noise})

    def _rescaled(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        ratio = self._rows / (self._rows - self.correction)
        return {**state, "W": state["W"] * ratio**0.5, "noise": state["noise"] * ratio}

    def _set_attributes(self) -> None:
        super()._set_attributes()
        self.components_ = self._axes
        self.explained_variance_ = (self.loadings_**2).sum(1) + self.noise_variance_


class FactorAnalysis(LinearFactors):
    """Factor analysis: one noise variance per column.

    Equal to scikit-learn's class of this name, up to a rotation of the factors. Where all rows are
    complete, the likelihood is maximized over the noise by L-BFGS, with W in closed form, so that
    the result does not depend on a seed; else by expectation-maximization.

    Args:
        n_components: D.
        tol: largest remaining gain at convergence, nats per row, where values are missing.
        floor: smallest noise variance, as a share of its column's variance.
        max_iter: largest number of iterations.
        random_state: seed of the initial values where values are missing, and of `sample`.

    Attributes:
        components_: Wᵀ (D, P).

    Reference:
        Lawley, Maxwell (1971). Factor analysis as a statistical method. Chapter 4.
    """

    n_init = 1

    def __init__(
        self,
        n_components: int = 1,
        *,
        tol: float = 1e-8,
        floor: float = 1e-6,
        max_iter: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.tol = tol
        self.floor = floor
        self.max_iter = max_iter
        self.random_state = random_state

    def _model(self) -> Any:
        return models.FactorAnalysis(self.n_components, floor=self.floor)

    def _set_start(self, model: Any, x: Tensor, weights: Tensor | None) -> None:
        if not self._starts_at_maximum(x):
            return
        w = torch.ones(len(x)).double() if weights is None else weights.double()
        mean = (w @ x.double()) / w.sum()
        S = x.double().mT.cov(correction=0, aweights=w).reshape(len(mean), -1)
        W, noise = _profile_maximum(S.numpy(), self.n_components, self.floor)
        state = {"W": torch.from_numpy(W), "noise": torch.from_numpy(noise)}
        model.set_em_state({"mu": mean, **state})

    def _set_attributes(self) -> None:
        super()._set_attributes()
        self.components_ = self.loadings_


def _profile_maximum(S: Array, latent: int, floor: float) -> tuple[Array, Array]:
    """W (P, D) and ψ (P,) of the largest likelihood for a covariance S (P, P).

    With eigenvalues e of ψ^-½ S ψ^-½, largest first, W = ψ^½ U_D (e_D - 1)^½, and minus two log-
    likelihoods per row are, up to a constant, f(ψ) = Σ_{e > 1, first D} (log e + 1 - e) + tr e +
    log det ψ; its gradient in log ψ_p is 1 - (S - W Wᵀ)_pp / ψ_p at the optimal W.
    """
    variance = np.diag(S).copy()
    variance[variance == 0] = 1.0

    def loadings(log_noise: Array) -> tuple[Array, Array]:
        scale = np.sqrt(np.exp(log_noise))
        e, U = np.linalg.eigh(S / scale / scale[:, None])
        e, U = e[::-1][:latent], U[:, ::-1][:, :latent]
        return scale[:, None] * U * np.sqrt(np.clip(e - 1, 0, None)), e

    def objective(log_noise: Array) -> tuple[float, Array]:
        W, e = loadings(log_noise)
        e = np.clip(e, 1.0, None)
        ratio = np.diag(S) / np.exp(log_noise)
        value = float((np.log(e) + 1 - e).sum() + ratio.sum() + log_noise.sum())
        return value, 1 - (np.diag(S) - (W**2).sum(1)) / np.exp(log_noise)

    least = np.log(2 * floor * variance)
    bounds = list(zip(least, np.log(variance), strict=True))
    settings = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9}
    start = np.maximum(np.log(0.5 * variance), least)
    best = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=settings)
    x = best.x
    free = x > least + 1e-6
    for _ in range(NEWTON_STEPS if free.sum() <= NEWTON_COLUMNS else 0):
        gradient = objective(x)[1][free]
        steps = 1e-5 * np.eye(len(x))[free]
        rows = [(objective(x + h)[1] - objective(x - h)[1])[free] / 2e-5 for h in steps]
        new = x.copy()
        new[free] -= np.linalg.lstsq(np.array(rows), gradient, rcond=1e-9)[0]
        if not np.abs(objective(new)[1][free]).max() < np.abs(gradient).max():
            break
        x = np.clip(new, least, np.log(variance))
    return loadings(x)[0], np.exp(x)
