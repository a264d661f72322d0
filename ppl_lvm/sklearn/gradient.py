"""Estimators that gradient steps fit."""

from typing import Any

import numpy as np
import torch
from pyro import poutine
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ppl_lvm import models
from ppl_lvm.core.types import Array
from ppl_lvm.fitting.svi import fit
from ppl_lvm.posterior import predict
from ppl_lvm.programs.signatures import signature
from ppl_lvm.sklearn.base import Classes, LatentVariableEstimator
from ppl_lvm.training.arrival import describe_arrival


class GradientEstimator(LatentVariableEstimator):
    """Base of the estimators that `fit` trains.

    Attributes:
        converged_: whether more steps would gain less than `accuracy`; None: unknown.
        n_iter_: gradient steps.
        lower_bound_: bound on log p(x), nats per row.
    """

    objective: Any
    accuracy: float
    max_iter: int | None
    batch_size: int | None
    n_init: int

    def _programs(self) -> tuple[Any, Any, dict[str, Any]]:
        """Model, guide, and further options of `fit`."""
        raise NotImplementedError

    def _fit_rows(self, x: Tensor, weights: Tensor | None) -> None:
        model, guide, options = self._programs()
        self.run_ = fit(
            model,
            guide,
            self._data(x),
            objective=self.objective,
            accuracy=self.accuracy,
            num_steps=self.max_iter,
            batch_size=self.batch_size,
            restarts=self.n_init,
            weights=weights,
            seed=self._seed(),
            **{"progress": False, **options},
        )
        results = self.run_.results
        self.n_iter_ = int(results.get("steps") or 1)
        self.converged_ = results.get("converged")
        self.lower_bound_ = results["bound"]
        if "steps" in results and not self.converged_:
            self._warn(describe_arrival(results))


class VAE(GradientEstimator):
    """Variational autoencoder; codes are posterior means.

    Args:
        n_components: D.
        hidden_layer_sizes: widths of the decoder's hidden layers.
        likelihood: "gaussian" (one variance per column), "gaussian-shared" or "bernoulli".
        guide: None (diagonal normals from one encoder) or a guide, as in `ppl_lvm.fit`.
        objective: an estimator of the bound; None: the ELBO.
        accuracy: training ends when more steps would gain less, nats per row.
        max_iter: largest number of gradient steps; None: 10,000.
        batch_size: rows of a step; None: all.
        n_init: restarts.
        n_particles: draws behind `score_samples`.
        random_state: seed of all random numbers.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        hidden_layer_sizes: tuple[int, ...] = (128,),
        likelihood: str = "gaussian",
        guide: Any = None,
        objective: Any = None,
        accuracy: float = 0.002,
        max_iter: int | None = None,
        batch_size: int | None = None,
        n_init: int = 1,
        n_particles: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.likelihood = likelihood
        self.guide = guide
        self.objective = objective
        self.accuracy = accuracy
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.n_init = n_init
        self.n_particles = n_particles
        self.random_state = random_state

    def _programs(self) -> tuple[Any, Any, dict[str, Any]]:
        sizes = tuple(self.hidden_layer_sizes)
        model = models.VAE(self.n_components, hidden=sizes, likelihood=self.likelihood)
        return model, self.guide, {}

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.run_.log_evidence(x, self.n_particles).per_row


class BayesianGaussianMixture(Classes, GradientEstimator):
    """Gaussian mixture with a sparse prior over at most K components.

    The posterior of weights, means and covariances is approximated by `ppl_lvm.guides`' default;
    `score_samples` has the predictive density of each row. scikit-learn's class of this name has
    other priors (normal-Wishart) and a mean-field posterior, so that values differ.

    Args:
        n_components: K, an upper bound of the number of clusters.
        covariance_type: "full" or "diag".
        weight_concentration_prior: α; None: 1/K.
        objective, accuracy, max_iter, batch_size, n_init: see `VAE`.
        n_particles: posterior draws behind `score_samples`.
        random_state: seed of all random numbers.

    Attributes:
        weights_, means_: posterior means of π (K,) and μ (K, P).
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        covariance_type: str = "full",
        weight_concentration_prior: float | None = None,
        objective: Any = None,
        accuracy: float = 0.002,
        max_iter: int | None = None,
        batch_size: int | None = None,
        n_init: int = 1,
        n_particles: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.weight_concentration_prior = weight_concentration_prior
        self.objective = objective
        self.accuracy = accuracy
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.n_init = n_init
        self.n_particles = n_particles
        self.random_state = random_state

    def _programs(self) -> tuple[Any, Any, dict[str, Any]]:
        model = models.BayesianGaussianMixture(
            self.n_components,
            covariance=self.covariance_type,
            concentration=self.weight_concentration_prior,
        )
        return model, None, {}

    def _fit_rows(self, x: Tensor, weights: Tensor | None) -> None:
        super()._fit_rows(x, weights)
        run = self.run_
        with torch.no_grad(), run.pair.scope(), poutine.block():
            center = predict.center_of_globals(run.pair, run.example_rows)
        self.weights_ = np.asarray(center["weights"].detach())
        self.means_ = np.asarray(center["means"].detach())

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw rows (n_samples, P) and their components (n_samples,)."""
        draws = self._draws(n_samples)
        return draws["x"], draws["z"].astype(int)

    def _decoded(self, z: Tensor) -> Tensor:
        return z @ torch.from_numpy(self.means_).to(z)

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.run_.log_evidence(x, self.n_particles).per_row


def _has_classes(estimator: Any) -> bool:
    """True if the codes of a fitted model are the probabilities of one discrete latent."""
    run = getattr(estimator, "run_", None)
    if run is None or len(codes := run.encode(run.example_rows)) != 1:
        return False
    sites = signature(run.model, *run.example_rows).sites
    return next(site.discrete for site in sites if site.name in codes)


class LatentVariableModel(GradientEstimator):
    """Any Pyro model and guide as an estimator.

    The model takes rows x (N, P). Codes are the posterior means of its local latents, side by
    side; with one discrete latent they are p(class | row), and `predict` and `predict_proba` exist.

    Args:
        model: a Pyro program, a class of such, or its address.
        guide: a program, a builder of such, an address, or None for the default guide.
        settings, guide_settings: arguments of a model, or a guide, given as a class.
        objective, accuracy, max_iter, batch_size, n_init: see `VAE`.
        n_particles: draws behind `score_samples`.
        options: further options of `ppl_lvm.fit`.
        random_state: seed of all random numbers.
    """

    def __init__(
        self,
        model: Any,
        guide: Any = None,
        *,
        settings: dict[str, Any] | None = None,
        guide_settings: dict[str, Any] | None = None,
        objective: Any = None,
        accuracy: float = 0.002,
        max_iter: int | None = None,
        batch_size: int | None = None,
        n_init: int = 1,
        n_particles: int = 1000,
        options: dict[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.settings = settings
        self.guide_settings = guide_settings
        self.objective = objective
        self.accuracy = accuracy
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.n_init = n_init
        self.n_particles = n_particles
        self.options = options
        self.random_state = random_state

    def _programs(self) -> tuple[Any, Any, dict[str, Any]]:
        settings = {"settings": self.settings, "guide_settings": self.guide_settings}
        return self.model, self.guide, {**settings, **(self.options or {})}

    def inverse_transform(self, X: Any) -> Array:
        """Means of rows given codes X (N, D): (N, P)."""
        check_is_fitted(self)
        codes = torch.from_numpy(np.asarray(X, dtype=self._dtype))
        known = self.run_.encode(self.run_.example_rows)
        widths = [code[0].numel() for code in known.values()]
        if codes.shape[1] != sum(widths):
            raise ValueError(f"X: codes of {codes.shape[1]} values. Give {sum(widths)}.")
        parts = zip(known.items(), codes.split(widths, 1), strict=True)
        z = {name: part.reshape(-1, *code.shape[1:]) for (name, code), part in parts}
        return np.asarray(next(iter(self.run_.decode(z).values())).detach())

    @available_if(_has_classes)
    def predict_proba(self, X: Any) -> Array:
        """p(class | row) of rows X: (N, K)."""
        return self.transform(X)

    @available_if(_has_classes)
    def predict(self, X: Any) -> Array:
        """The most probable class of rows X: (N,)."""
        classes: Array = self.transform(X).argmax(1)
        return classes

    def sample(self, n_samples: int = 1) -> Array:
        """Draw rows from the model: (n_samples, P)."""
        draws = self._draws(n_samples)
        observed = predict.observed_names(self.run_.pair, self.run_.example_rows)
        return draws[observed[0]]

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.run_.log_evidence(x, self.n_particles).per_row
