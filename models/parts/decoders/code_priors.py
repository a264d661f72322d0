"""Priors of a VAE's codes with exact densities.

    normal                              z ~ N(0, I)
    vamp(components=50)                 z ~ 1/K Σ_k q(z | u_k),  q the encoder, u_k learned rows
    flow(layers=4, scalar="spline")     z = T(ε), ε ~ N(0, I),   T a normalizing flow

The best prior of a VAE is the average of its posteriors, 1/N Σ_n q(z | x_n). The VampPrior is such
an average over K learned pseudo-inputs u_k. Its encoder belongs to the prior;
`ppl_lvm.guides:vamp_prior_guide` makes a guide of the same encoder. Under any other guide it is an
ordinary mixture of normals. A flow transforms the normal itself.

References:
    Tomczak, Welling (2018). VAE with a VampPrior. https://arxiv.org/abs/1705.07120, equation 9
    Chen, Kingma, Salimans, Duan, Dhariwal, Schulman, Sutskever, Abbeel (2017). Variational lossy
    autoencoder. https://arxiv.org/abs/1611.02731 (section 3.2: a flow for the prior)
"""

from typing import Any

import torch
from pyro.distributions import Categorical, MixtureSameFamily, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.authoring import build, parse_call
from ppl_lvm.core.messages import unknown
from ppl_lvm.models.normalizing_flow import NormalizingFlow
from ppl_lvm.nn import RowEncoder
from ppl_lvm.nn.units import InUnits


class NormalPrior(PyroModule):
    """N(0, I)."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def forward(self, x: Tensor) -> Any:
        """p(z), in the dtype of floating-point rows `x`."""
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return Normal(x.new_zeros(self.latent, dtype=dtype), 1.0).to_event(1)

    def initialize(self, x: Tensor) -> None:
        """Nothing to initialize."""


class VampPrior(PyroModule):
    """1/K Σ_k q(z | u_k), with q(z | u) = N(μ(u), diag σ²(u)) and (μ, log σ) = encoder(u).

    Args:
        latent: D.
        components: K.
        hidden: widths of the encoder's hidden layers.
    """

    pseudo: Tensor  # u (K, P)

    def __init__(self, latent: int, components: int = 50, hidden: tuple[int, ...] = (128,)) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"A VampPrior needs components >= 1, got {components}.")
        self.latent, self.components, self.hidden = latent, components, tuple(hidden)
        self.encoder: RowEncoder | None = None

    def forward(self, x: Tensor) -> Any:
        """p(z); the first rows `x` set sizes and units."""
        if self.encoder is None:
            self._build_encoder(x)
        assert self.encoder is not None
        loc, log_scale = self.encoder(self.pseudo).chunk(2, dim=-1)  # (K, D) each
        each = Categorical(logits=loc.new_zeros(self.components))
        return NormalMixture(each, Normal(loc, log_scale.exp()).to_event(1))

    def initialize(self, x: Tensor) -> None:
        """Start the pseudo-inputs at rows of the data, drawn under torch's seed."""
        if self.encoder is None:
            self._build_encoder(x)
        self.pseudo = x[torch.randint(len(x), (self.components,))].to(self.pseudo)

    def _build_encoder(self, x: Tensor) -> None:
        self.encoder = RowEncoder(x, outputs=2 * self.latent, hidden=self.hidden)
        like = next(self.encoder.parameters())
        pseudo = x[torch.randint(len(x), (self.components,))].to(like)
        self.pseudo = PyroParam(pseudo, InUnits(self.encoder.units, constraints.real, "location"))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        pseudo = state.get(prefix + "pseudo_unconstrained")
        if self.encoder is None and pseudo is not None:
            self._build_encoder(pseudo)
        super()._load_from_state_dict(state, prefix, *rest)


class FlowPrior(PyroModule):
    """T(ε) for ε ~ N(0, I) and T a chain of coupling layers, initially near the identity.

    Args:
        latent: D, two or more.
        layers, hidden, scalar: see `NormalizingFlow`.
    """

    def __init__(
        self,
        latent: int,
        layers: int = 4,
        hidden: tuple[int, ...] = (64,),
        scalar: str = "spline",
    ) -> None:
        super().__init__()
        self.flow = NormalizingFlow(latent, layers, tuple(hidden), scalar)

    def forward(self, x: Tensor) -> Any:
        """p(z), in the dtype of floating-point rows `x`."""
        if x.is_floating_point() and x.dtype != self.flow.means.dtype:
            self.flow.to(x)
        return self.flow.density()

    def initialize(self, x: Tensor) -> None:
        """Nothing to initialize."""


class NormalMixture(MixtureSameFamily):
    """A mixture of normals of one event dimension, its support declared as real vectors."""

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, 1)


PRIORS = {"normal": NormalPrior, "vamp": VampPrior, "flow": FlowPrior}


def make_prior(spec: str, latent: int) -> Any:
    """A prior of D = `latent` codes from call syntax: "vamp(components=50)".

    Raises:
        ValueError: for an unknown name or argument.
    """
    name, settings = parse_call(spec)
    if name not in PRIORS:
        raise ValueError(unknown("prior", name, PRIORS))
    return build(PRIORS[name], latent, settings=settings, what=f"prior {name!r}")
