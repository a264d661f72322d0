"""Posterior of the discrete sites that a model sums out.

Given values of the guide's latents z, the enumerated sites c = (c_1, …, c_n) have

    p(c | z, x) = exp Σ_j f_j(c) / Σ_c' exp Σ_j f_j(c'),

with the factors f_j of the model. `draw` samples this joint distribution and `most_likely`
maximizes it: factors are summed (or maximized) forward, then each site is drawn given those that
were summed after it. Independent draws from the marginals p(c_i | z, x) would lose the dependence
between sites. By Pyro's tensor message passing a Markov chain of T sites takes T steps.

Reference:
    Scott (2002). Bayesian methods for hidden Markov models.
    https://doi.org/10.1198/016214502753479464
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import LogRing, MapRing, SampleRing
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles.enumeration import has_enumerated_dim, packed_factors
from ppl_lvm.particles.plate_dependence import run_plainly
from ppl_lvm.particles.structure import without_side_effects
from ppl_lvm.particles.tracing import (
    ReplayValues,
    Sites,
    is_scored,
    log_prob,
    plate_frames,
    trace_program,
)


@dataclass
class _Factors:
    """Log-densities that depend on enumerated sites, packed, by the plates around them.

    Attributes:
        tree: symbols of the plates -> factors; a plate of one member has no symbol.
        prior: enumerated site -> its factor.
        sizes: symbol -> size of the dimension.
        trace: the symbols.
    """

    tree: OrderedDict[frozenset[str], list[Tensor]] = field(default_factory=OrderedDict)
    prior: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    trace: Trace = field(default_factory=Trace)

    def symbol(self, name: str) -> str:
        """The symbol of an enumerated site's states."""
        symbol: str = self.trace.nodes[name]["infer"]["_enumerate_symbol"]
        return symbol

    def plates(self, name: str, dims: str) -> frozenset[str]:
        """Symbols among `dims` of the plates around a site."""
        frames = self.trace.nodes[name]["cond_indep_stack"]
        symbols = (self.trace.plate_to_symbol[f.name] for f in frames if f.vectorized)
        return frozenset(symbols).intersection(dims)

    @property
    def sum_dims(self) -> set[str]:
        return {self.symbol(name) for name in self.prior} & self.sizes.keys()

    def contract(self, name: str, symbols: set[str], ring: LogRing) -> Tensor:
        """log Σ of all factors over the states of sites other than `symbols`, up to a constant.

        Each at its dimension, in the plates around the site `name`.
        """
        return self.unpack(
            contract_to_tensor(
                self.tree,
                self.sum_dims,
                target_ordinal=self.plates(name, "".join(self.sizes)),
                target_dims=symbols,
                ring=ring,
            )
        )

    def unpack(self, value: Tensor) -> Tensor:
        """A packed tensor with its dimensions at their places, counted from the right."""
        unpacked: Tensor = packed.unpack(value, self.trace.symbol_to_dim)
        return unpacked


class EnumeratedSites:
    """The latent sites of a model that its guide lacks: summed out in training.

    Attributes:
        sites: name -> site of a single run, in the order of the program.
    """

    def __init__(self, model: Program, guide: Program, batch: Batch) -> None:
        self._model, self._batch = model, batch
        with without_side_effects():
            guide_sites, model_sites = run_plainly(model, guide, batch, {})
        self.sites: Sites = {
            name: site
            for name, site in model_sites.items()
            if is_scored(site) and not site["is_observed"] and name not in guide_sites
        }
        both = {**model_sites, **guide_sites}
        plain = {n: site for n, site in both.items() if not site_is_subsample(site)}
        self._batch_shapes = {n: site["fn"].batch_shape for n, site in plain.items()}
        self._observed = {n for n, site in plain.items() if site["is_observed"]}
        sites = (*guide_sites.values(), *model_sites.values())
        self._nesting = -min((f.dim for site in sites for f in plate_frames(site)), default=0)

    def num_values(self, values: Tensors) -> tuple[int, int]:
        """Values of all log-densities under enumeration in a single run, and of the largest."""
        if not self.sites:
            return 0, 0
        factors = [t.numel() for terms in self._factors(values, None).tree.values() for t in terms]
        return sum(factors), max(factors)

    def as_particles(self, draws: Sequence[Tensors]) -> dict[str, Tensor]:
        """Latents of K single runs as particles, (K, plates, event)."""
        values = {}
        for name in draws[0]:
            value = torch.stack([draw[name] for draw in draws])
            missing = self._nesting - len(self._batch_shapes[name])
            values[name] = value.reshape(len(draws), *[1] * missing, *value.shape[1:])
        return values

    def draw(self, values: Tensors, particles: int | None = None) -> dict[str, Tensor]:
        """One draw of all sites from their joint posterior.

        Args:
            values: latents of a single run; with `particles` K values of each, (K, plates, event).
            particles: K: one draw given each of the K values, (K, plates, event).
        """
        return self._backward(values, particles, SampleRing)

    def most_likely(self, values: Tensors) -> dict[str, Tensor]:
        """The states of highest joint posterior probability."""
        return self._backward(values, None, MapRing)

    def marginals(self, values: Tensors) -> dict[str, Tensor]:
        """Site -> posterior probabilities of its states (..., states)."""
        factors = self._factors(values, None)
        probabilities = {}
        with shared_intermediates() as cache:
            ring = LogRing(cache, factors.sizes)
            for name in factors.prior:
                symbol, shape = factors.symbol(name), (*self._batch_shapes[name], 1)
                if symbol not in factors.sizes:  # a single state
                    probabilities[name] = factors.prior[name].new_ones(shape)
                    continue
                logits = factors.contract(name, {symbol}, ring)
                logits = logits[..., None].transpose(-1, factors.trace.symbol_to_dim[symbol] - 1)
                states = (*shape[:-1], logits.shape[-1])
                probabilities[name] = _broadcast(logits.softmax(-1), states)
        return probabilities

    def means(
        self, values: Tensors, names: Iterable[str], mean: Callable[[Any], Tensor]
    ) -> dict[str, Tensor]:
        """Site -> E[mean(fn) | values] (plates, event) over the enumerated sites without a value.

        The observed values of the model are ignored, so that its sites are predictions.
        """
        factors = self._factors(values, None, free=True)
        means = {}
        with shared_intermediates() as cache:
            ring = LogRing(cache, factors.sizes)
            for name in names:
                site = factors.trace.nodes[name]
                value = mean(site["fn"])  # (states, plates, event)
                batch_dims = len(site["fn"].batch_shape)
                events = value.dim() - batch_dims
                symbols = site["infer"]["_dim_to_symbol"]
                states = [d for d in range(-batch_dims, 0) if symbols.get(d) in factors.sum_dims]
                if states:
                    logits = factors.contract(name, {symbols[d] for d in states}, ring)
                    weights = (logits - logits.logsumexp(states, keepdim=True)).exp()
                    weighted = weights[(..., *[None] * events)] * value
                    value = weighted.sum([d - events for d in states], keepdim=True)
                shape = self._batch_shapes[name] + value.shape[value.dim() - events :]
                means[name] = _broadcast(value, shape)
        return means

    def _backward(
        self, values: Tensors, particles: int | None, ring: type[LogRing]
    ) -> dict[str, Tensor]:
        """Eliminate the sites forward, then choose their states backward."""
        if not self.sites.keys() - values.keys():
            return {}
        factors = self._factors(values, particles)
        for factor in factors.prior.values():
            require_backward(factor)
        with shared_intermediates() as cache:
            contracted = contract_tensor_tree(
                factors.tree, factors.sum_dims, ring=ring(cache, factors.sizes)
            )
        for terms in contracted.values():
            for term in terms:
                if hasattr(term, "_pyro_backward"):
                    term._pyro_backward()
        return {name: self._states(factors, name, particles) for name in factors.prior}

    def _states(self, factors: _Factors, name: str, particles: int | None) -> Tensor:
        """The chosen states of a site, (plates, event) or (K, plates, event)."""
        fn, shape = self.sites[name]["fn"], tuple(self._batch_shapes[name])
        if particles is not None:
            shape = (particles, *[1] * (self._nesting - len(shape)), *shape)
        support = fn.enumerate_support(expand=False)
        support = support.reshape(len(support), *fn.event_shape)
        chosen: Any = factors.prior[name]._pyro_backward_result  # type: ignore[attr-defined]
        if chosen is None:  # a single state
            return support[0].expand(*shape, *fn.event_shape).clone()
        index = chosen[chosen._pyro_sample_dims.index(factors.symbol(name))]
        index._pyro_dims = chosen._pyro_dims[1:]
        return support[_broadcast(factors.unpack(index), shape)]

    def _factors(self, values: Tensors, particles: int | None, free: bool = False) -> _Factors:
        """The factors of the sites without a value; `free` leaves observations out."""
        enumerated = self.sites.keys() - values.keys()
        nodes = trace_program(
            poutine.uncondition(self._model) if free else self._model,
            self._batch,
            {},
            particles=particles,
            nesting=self._nesting,
            replay=ReplayValues(values),
            enumerated=frozenset(enumerated),
        )
        factors, rank = _Factors(), self._nesting + (particles is not None)
        factors.trace.nodes.update({n: s for n, s in nodes.items() if not site_is_subsample(s)})
        factors.trace.symbolize_dims()
        densities = {}
        for name, site in factors.trace.nodes.items():
            if is_scored(site) and not (free and name in self._observed):
                log_p = log_prob(site)
                if has_enumerated_dim(site, log_p, rank):
                    densities[name] = log_p
        # The scale of the sum acts outside of it and leaves the posterior unchanged.
        _, terms = packed_factors(factors.trace.nodes, densities, None)
        for name, term in terms.items():
            dims: str = term._pyro_dims  # type: ignore[attr-defined]
            factors.sizes |= dict(zip(dims, term.shape, strict=True))
            factors.tree.setdefault(factors.plates(name, dims), []).append(term)
            if name in enumerated:
                factors.prior[name] = term
        return factors


def _broadcast(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A copy of this shape; `value` may have more dimensions of size 1 on the left."""
    extra = max(0, value.dim() - len(shape))
    return value.reshape(value.shape[extra:]).expand(shape).clone()
