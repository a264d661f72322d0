"""Programs of installed packages, at small sizes, with made-up data.

`pip install --no-deps scvi-tools cell2location cellbender muvi pyroved tyxe chirho`, and what they
import but torch: their pins of torch and Pyro exclude each other.
"""

import functools
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_mean
from torch import Tensor, nn

from ppl_lvm.benchmarks.package_suite.base import Fit


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _counts(rows: int, genes: int, rate: float = 2.0) -> Tensor:
    generator = _generator()
    rates = rate * torch.rand(genes, generator=generator).expand(rows, genes)
    return torch.poisson(rates, generator=generator)


def amortized_lda() -> Fit:
    """Topics of cells, scvi-tools."""
    from scvi.module import AmortizedLDAPyroModule

    module: Any = AmortizedLDAPyroModule(200, 10, 64)
    x = _counts(128, 200)
    args = (x, x.sum(1), 1000)
    return Fit(module.model, module.guide, TraceMeanField_ELBO(), args)


def decipher() -> Fit:
    """Two levels of latents of cells, scvi-tools."""
    from scvi.external.decipher._module import DecipherPyroModule

    module: Any = DecipherPyroModule(200)
    return Fit(module.model, module.guide, Trace_ELBO(), (_counts(64, 200),))


def cell2location() -> Fit:
    """Cell types at places of a tissue."""
    import pyro.infer.autoguide.utils as utils

    # A function of Pyro 1.8 that the package imports.
    utils.deep_getattr = lambda value, name: functools.reduce(getattr, name.split("."), value)
    from cell2location.models import _cell2location_module as module

    rows, genes, types = 100, 60, 8
    signatures = np.random.default_rng(0).gamma(2.0, 0.5, (genes, types))
    prefix = "LocationModelLinearDependentWMultiExperiment"
    name = f"{prefix}LocationBackgroundNormLevelGeneAlphaPyroModel"
    model = getattr(module, name)(rows, genes, types, 2, signatures.astype(np.float32), n_groups=10)
    model = model.to(torch.get_default_dtype())
    args = (_counts(rows, genes), torch.arange(rows), torch.arange(rows).view(-1, 1) % 2)
    guide = AutoNormal(model, init_loc_fn=init_to_mean, create_plates=model.create_plates)
    return Fit(model, guide, Trace_ELBO(), args)


def cellbender() -> Fit:
    """Counts with background, which branches on the data."""
    from cellbender.remove_background.model import RemoveBackgroundPyroModel
    from cellbender.remove_background.vae.decoder import Decoder
    from cellbender.remove_background.vae.encoder import (
        CompositeEncoder,
        EncodeNonZLatents,
        EncodeZ,
    )

    rows, genes = 128, 100
    x = _counts(rows, genes, 8.0)
    x[: rows // 2] = _counts(rows // 2, genes, 0.4)
    profile = torch.ones(genes) / genes
    cells, empty = 400.0, 20.0
    crossover = float(np.log(90.0))
    priors = {
        "d_std": 0.3, "cell_counts": cells, "empty_counts": empty, "d_empty_std": 0.3,
        "cell_logit": 0.0, "chi_ambient": profile, "chi_bar": profile,
    }  # fmt: skip
    z = EncodeZ(genes, [32], 8, use_batch_norm=False, use_layer_norm=False,
                input_transform="normalize")  # fmt: skip
    other = EncodeNonZLatents(
        genes, 8, crossover, np.log1p(cells), np.log1p(40.0), 0.0, input_transform="log_normalize"
    )
    decoder = Decoder(
        input_dim=8, hidden_dims=[32], use_batch_norm=True, use_layer_norm=False, output_dim=genes
    )
    encoder = CompositeEncoder({"z": z, "other": other})
    names = np.arange(genes)
    model = RemoveBackgroundPyroModel(
        "full", encoder, decoder, priors, genes, rows, names, 40, crossover, False
    )
    return Fit(model.model, model.guide, TraceEnum_ELBO(max_plate_nesting=1), (x,))


def muvi() -> Fit:
    """Factors of several views with prior sets of features."""
    import pyro.infer.autoguide.guides as guides

    guides.deep_getattr = lambda value, name: functools.reduce(getattr, name.split("."), value)
    from muvi.core.models import MuVIGuide, MuVIModel

    rows, features, factors = 100, [60, 40], 8
    generator = _generator()
    prior = [torch.rand(factors, n, generator=generator) * 0.9 + 0.1 for n in features]
    model = MuVIModel(
        rows, n_features=features, n_factors=factors, prior_scales=prior, n_covariates=0,
        likelihoods=["normal", "normal"], reg_hs=True, nmf=[False, False], pos_transform=nn.ReLU(),
        scale_elbo=True, device=torch.device("cpu"),
    )  # fmt: skip
    obs = torch.randn(rows, sum(features), generator=generator)
    loss = TraceMeanField_ELBO(retain_graph=True, num_particles=1, vectorize_particles=True)
    scaled = [pyro.poutine.scale(part, scale=1 / rows) for part in (model, MuVIGuide(model))]
    return Fit(scaled[0], scaled[1], loss, (None, obs, torch.ones_like(obs).bool()))


def _pyroved() -> Any:
    """The package, without torchvision, of which it needs one function for pictures."""
    if "torchvision" not in sys.modules:
        stub: Any = ModuleType("torchvision")
        stub.utils = sys.modules["torchvision.utils"] = ModuleType("torchvision.utils")
        stub.utils.make_grid = None
        sys.modules["torchvision"] = stub
        try:
            import pyroved
        finally:
            del sys.modules["torchvision"], sys.modules["torchvision.utils"]
    import pyroved

    return pyroved


def _images(rows: int, side: int) -> Tensor:
    return (torch.rand(rows, side, side, generator=_generator()) < 0.3).to(
        torch.get_default_dtype()
    )


def _invariant(invariances: list[str] | None) -> Fit:
    model = _pyroved().models.iVAE((16, 16), 2, invariances, hidden_dim_e=[64], hidden_dim_d=[64])
    return Fit(model.model, model.guide, Trace_ELBO(), (_images(64, 16),))


def ivae() -> Fit:
    """Autoencoder of images, rotated and moved."""
    return _invariant(["r", "t"])


def rvae() -> Fit:
    """Autoencoder of rotated images."""
    return _invariant(["r"])


def ved() -> Fit:
    """Spectra from images by convolutions with batch normalization."""
    model = _pyroved().models.VED(
        (16, 16), (32,), hidden_dim_e=[(8,), (8, 8)], hidden_dim_d=[(8, 8), (8,)], batchnorm=True
    )
    generator = _generator()
    x = torch.rand(32, 1, 16, 16, generator=generator)
    y = torch.rand(32, 1, 32, generator=generator)
    return Fit(model.model, model.guide, Trace_ELBO(), (x, y))


def bayesian_network() -> Fit:
    """Regression by a Bayesian network with normal weights, TyXe."""
    import tyxe

    net = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 1))
    x = torch.randn(64, 4, generator=_generator())
    y = x.sum(-1, keepdim=True).sin()
    prior = tyxe.priors.IIDPrior(dist.Normal(0.0, 1.0))
    likelihood = tyxe.likelihoods.HomoskedasticGaussian(len(x), scale=0.1)
    bnn = tyxe.VariationalBNN(net, prior, likelihood, AutoNormal)
    return Fit(bnn.model, bnn.guide, TraceMeanField_ELBO(), ((x,), y))


def counterfactual() -> Fit:
    """A confounded treatment in two worlds, chirho."""
    from chirho.counterfactual.handlers import MultiWorldCounterfactual
    from chirho.interventional.handlers import do
    from chirho.observational.handlers import condition

    generator = _generator()
    x = torch.randn(100, generator=generator)
    t, y = x + torch.randn(100, generator=generator), torch.randn(100, generator=generator)

    def causal(rows: int) -> Any:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", rows, dim=-1):
            z = pyro.sample("x", dist.Normal(0.0, 1.0))
            treated = pyro.sample("t", dist.Normal(w[0] * z, 1.0))
            return pyro.sample("y", dist.Normal(w[1] * z + w[2] * treated, scale))

    def observed() -> Any:
        values = {"x": x, "t": t, "y": y}
        with (
            MultiWorldCounterfactual(first_available_dim=-3),
            do(actions={"t": torch.tensor(1.0)}),
            condition(data=values),
        ):
            return causal(len(x))

    return Fit(observed, AutoNormal(pyro.poutine.block(observed, hide=["x", "t", "y"])),
               Trace_ELBO(), ())  # fmt: skip
