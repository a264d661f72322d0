"""Mixtures by expectation-maximization."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ppl_lvm import models
from ppl_lvm.core.types import Array
from ppl_lvm.sklearn.base import Classes, EMEstimator


class Mixture(Classes, EMEstimator):
    """Base of mixtures, whose codes are p(component | row).

    Attributes:
        weights_: π (K,).
        means_: μ (K, P).
        covariances_: Σ, in the shape of the covariance type.
    """

    n_components: int

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw rows (n_samples, P) and their components (n_samples,)."""
        draws = self._draws(n_samples)
        site = next((name for name in draws if name != "x"), None)
        classes = np.zeros(n_samples, dtype=int) if site is None else draws[site].astype(int)
        return draws["x"], classes

    def _codes(self, x: Tensor) -> Tensor:
        codes: Tensor = self._fitted.responsibilities(x)
        return codes

    def _decoded(self, z: Tensor) -> Tensor:
        means: Tensor = z @ self._fitted.means
        return means

    def _log_prob(self, x: Tensor) -> Tensor:
        log_prob: Tensor = self._fitted._log_joint(x).logsumexp(-1)
        return log_prob

    def _set_attributes(self) -> None:
        model = self._fitted
        self.weights_ = np.asarray(model.weights.detach())
        self.means_ = np.asarray(model.means.detach())
        self.covariances_ = np.asarray(model.covariance_matrix.detach())


class GaussianMixture(Mixture):
    """Gaussian mixture by maximum likelihood.

    Equal to scikit-learn's class of this name from the same start, up to the floor of the
    variances and the rule that stops: `tol` bounds the log-likelihood that is left to gain.

    Args:
        n_components: K.
        covariance_type: "full", "tied", "diag" or "spherical".
        tol: largest remaining gain at convergence, nats per row.
        floor: smallest variance in any direction, as a share of the columns' variances.
        max_iter: largest number of iterations.
        n_init: restarts; the most likely that has not collapsed is chosen.
        weights_init, means_init, precisions_init: initial π (K,), μ (K, P) and Σ⁻¹ in the shape
            of `covariances_`; None: from k-means.
        random_state: seed of k-means and of `sample`.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-6,
        floor: float = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.floor = floor
        self.max_iter = max_iter
        self.n_init = n_init
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state

    def _model(self) -> Any:
        return models.GaussianMixture(
            self.n_components, covariance=self.covariance_type, floor=self.floor
        )

    def _set_start(self, model: Any, x: Tensor, weights: Tensor | None) -> None:
        state = model.em_state()
        precisions = self.precisions_init
        if precisions is not None:
            full = self.covariance_type in ("full", "tied")
            precisions = np.asarray(precisions, dtype=np.float64)
            precisions = np.linalg.inv(precisions) if full else 1 / precisions
        start = {"weights": self.weights_init, "means": self.means_init, "variance": precisions}
        for name, value in start.items():
            if value is None:
                continue
            tensor = torch.as_tensor(np.asarray(value, dtype=np.float64))
            if tensor.shape != state[name].shape:
                argument = "precisions" if name == "variance" else name
                raise ValueError(
                    f"{argument}_init: shape {tuple(tensor.shape)}. Give "
                    f"{tuple(state[name].shape)}."
                )
            state[name] = tensor
        if any(value is not None for value in start.values()):
            model.set_em_state(state)

    def _set_attributes(self) -> None:
        super()._set_attributes()
        variances = np.diagonal(self.covariances_, axis1=1, axis2=2)
        if self.covariance_type == "tied":
            self.covariances_ = self.covariances_[0]
        elif self.covariance_type == "diag":
            self.covariances_ = variances
        elif self.covariance_type == "spherical":
            self.covariances_ = variances[:, 0]
        dense = self.covariance_type in ("full", "tied")
        self.precisions_ = np.linalg.inv(self.covariances_) if dense else 1 / self.covariances_

    def _num_parameters(self) -> int:
        check_is_fitted(self)
        K, P = self.means_.shape
        matrix = P * (P + 1) // 2
        covariance = {"full": K * matrix, "tied": matrix, "diag": K * P, "spherical": K}
        return K - 1 + K * P + covariance[self.covariance_type]


class MixtureOfPPCA(Mixture):
    """Mixture of probabilistic principal component analyzers.

    Args:
        n_components: K clusters.
        n_directions: D, principal directions of a cluster.
        tol: largest remaining gain at convergence, nats per row.
        floor: smallest noise variance, as a share of the columns' mean variance.
        max_iter: largest number of iterations.
        n_init: restarts; the most likely that has not collapsed is chosen.
        random_state: seed of k-means and of `sample`.
    """

    least_columns = 2

    def __init__(
        self,
        n_components: int = 1,
        *,
        n_directions: int = 1,
        tol: float = 1e-6,
        floor: float = 1e-6,
        max_iter: int = 1000,
        n_init: int = 1,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_directions = n_directions
        self.tol = tol
        self.floor = floor
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state

    def _model(self) -> Any:
        return models.MixtureOfPPCA(self.n_components, self.n_directions, floor=self.floor)

    def _num_parameters(self) -> int:
        check_is_fitted(self)
        (K, P), D = self.means_.shape, self.n_directions
        return K - 1 + K * P + K * (P * D - D * (D - 1) // 2 + 1)
