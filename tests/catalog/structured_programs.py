"""Small programs of many structures, for exact expectations of estimators.

One body is both programs of a pair: `d.draw` has the prior in the model and the posterior in the
guide, `d.observe` does nothing in the guide. Draws are bits; in a `twin` they are normals.
`log_terms` computes log-weights from Pyro's traces alone, without this package.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Categorical, Delta, Normal
from pyro.poutine.messenger import Messenger
from torch import Tensor

X = torch.tensor([0.7, -1.1], dtype=torch.float64)
PARALLEL = {"enumerate": "parallel"}
Case = dict[str, Tensor]


@dataclass(frozen=True)
class Program:
    """One program of a pair, with parameters θ and φ of five numbers each."""

    body: Callable[["Program", Tensor], None]
    is_guide: bool
    is_twin: bool
    theta: Tensor
    phi: Tensor
    bit: Callable[..., Any] = Bernoulli

    def __call__(self, x: Tensor) -> None:
        self.body(self, x)

    def draw(self, name: str, prior: Any, posterior: Any, events: int = 0, **kwargs: Any) -> Tensor:
        loc = torch.as_tensor(posterior if self.is_guide else prior)
        fn: Any = Normal(loc, 0.5) if self.is_twin else self.bit(logits=loc)
        keep = kwargs.pop("mask", None)
        fn = fn if keep is None else fn.mask(keep)
        return pyro.sample(name, fn.to_event(events), **kwargs)

    def observe(self, name: str, fn: Any, x: Tensor, **kwargs: Any) -> None:
        if not self.is_guide:
            pyro.sample(name, fn, obs=x, **kwargs)

    def under(self, *, model: Any = None, guide: Any = None) -> AbstractContextManager[Any]:
        """A scale (a number or numbers) or a mask of one program."""
        factor = guide if self.is_guide else model
        if factor is None:
            return nullcontext()
        is_mask = isinstance(factor, Tensor) and factor.dtype is torch.bool
        handler: Any = poutine.mask(mask=factor) if is_mask else poutine.scale(scale=factor)
        return handler


@dataclass(frozen=True)
class Structured:
    """A structure with its draws.

    Attributes:
        sites: guide sites that are bits, with the shape of one draw; in a twin they are normals.
        values: guide sites with another number of values than two.
        normals: guide sites that are normals in any case.
        points: guide sites that are points with a density of parameters.
        summed: sites of the model alone with their number of values, inside the plate.
        row_dim: the dimension of the rows at all sites; None if the log-weight is joint.
        ratio: N/B, the factor of each row's bound.
        rows: number of rows.
        refused: words of the reason for which all estimators refuse it.
    """

    body: Callable[[Program, Tensor], None]
    sites: dict[str, tuple[int, ...]]
    values: dict[str, int] = field(default_factory=dict)
    normals: dict[str, tuple[int, ...]] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)
    summed: dict[str, int] = field(default_factory=dict)
    row_dim: int | None = -1
    ratio: float = 1.0
    rows: int = 2
    refused: str = ""
    is_twin: bool = False

    def twin(self) -> "Structured":
        """The structure with normals in place of bits."""
        return replace(self, normals={**self.sites, **self.normals}, sites={}, is_twin=True)

    def programs(self, bit: Any = Bernoulli) -> tuple[Program, Program, list[Tensor]]:
        """Model, guide and parameters."""
        generator = torch.Generator().manual_seed(3)
        theta, phi = (
            (0.5 * torch.randn(5, generator=generator).double()).requires_grad_() for _ in range(2)
        )
        model, guide = (Program(self.body, g, self.is_twin, theta, phi, bit) for g in (False, True))
        return model, guide, [theta, phi]

    def cases(self, num_particles: int) -> Iterator[Case]:
        """All discrete draws of K particles, with one fixed noise of the normals."""
        generator = torch.Generator().manual_seed(1)
        noise = {
            name: torch.randn(num_particles, *shape, generator=generator, dtype=torch.float64)
            for name, shape in self.normals.items()
        }
        shapes = {name: torch.Size((num_particles, *shape)) for name, shape in self.sites.items()}
        numbers = [
            range(self.values.get(n, 2)) for n, s in shapes.items() for _ in range(s.numel())
        ]
        for flat in product(*numbers):
            parts = torch.tensor(flat).double().split([s.numel() for s in shapes.values()])
            values = zip(shapes.items(), parts, strict=True)
            yield {**{name: part.reshape(shape) for (name, shape), part in values}, **noise}

    def log_terms(
        self, model: Program, guide: Program, x: Tensor, case: Case, draws: Any = None
    ) -> "Terms":
        """Log-densities per row as Pyro has them, and log-probability of the discrete draws.

        `case` has the draws of one particle; `draws` is a handler that sets others.
        """
        with poutine.trace() as recorder, draws or Values(case, self.normals):
            guide(x)
        trace = recorder.trace
        drawn = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample"}
        log_mass = sum(
            (_unmasked(trace.nodes[n]["fn"]).log_prob(drawn[n]).sum() for n in self.sites),
            torch.zeros(()).double(),
        )
        parts = []
        for values in product(*(range(size) for size in self.summed.values())):
            fixed = zip(self.summed, values, strict=True)
            constant = {name: torch.full((len(x),), value) for name, value in fixed}
            with poutine.trace() as recorder, Values({**drawn, **constant}):
                model(x)
            parts.append(self._per_row(recorder.trace, len(x)))
        log_q, density = (self._per_row(trace, len(x), tempered) for tempered in (True, False))
        return Terms(torch.stack(parts).logsumexp(0), log_q, density, log_mass)

    def _per_row(self, trace: Any, rows: int, tempered: bool = True) -> Tensor:
        trace.compute_log_prob()
        total = torch.zeros(1 if self.row_dim is None else rows).double()
        for site in trace.nodes.values():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            value = site["log_prob"] / self.ratio
            if not tempered:
                is_point = isinstance(site["fn"], Delta)
                value = 0 * value if is_point else _unmasked(site["fn"]).log_prob(site["value"])
            if self.row_dim is None:
                total = total + value.sum()
            else:
                shape = torch.broadcast_shapes(value.shape, (rows, *[1] * (-1 - self.row_dim)))
                value = value.expand(shape).movedim(self.row_dim, 0)
                total = total + value.reshape(rows, -1).sum(-1)
        return total


@dataclass(frozen=True)
class Terms:
    """log p, log q and the density of the guide's draws per row, (B,), and log P(bits)."""

    log_p: Tensor
    log_q: Tensor
    density: Tensor
    log_mass: Tensor


class Values(Messenger):
    """Replace draws by values, constant if `fixed`; those of `normals` are loc + scale · value."""

    def __init__(self, values: Case, normals: Any = (), fixed: bool = False) -> None:
        super().__init__()
        self.values, self.normals, self.fixed = values, normals, fixed

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        if msg["name"] in self.normals:
            fn = _unmasked(msg["fn"])
            fn = fn if isinstance(fn, Normal) else fn.base_dist
            value = fn.loc + fn.scale * value
        value = value.detach() if self.fixed else value
        msg["value"], msg["done"] = value, True


def _unmasked(fn: Any) -> Any:
    return fn.base_dist if type(fn).__name__ == "MaskedDistribution" else fn


STRUCTURES: dict[str, Structured] = {}


def _structure(**settings: Any) -> Callable[[Any], Any]:
    """Add a body to `STRUCTURES`; keys with a tuple are sites."""

    def add(body: Any) -> Any:
        sites = {name: value for name, value in settings.items() if isinstance(value, tuple)}
        rest = {name: value for name, value in settings.items() if name not in sites}
        STRUCTURES[body.__name__.strip("_").replace("_", " ")] = Structured(body, sites, **rest)
        return body

    return add


def _rows(x: Tensor) -> Any:
    return pyro.plate("data", len(x), dim=-1)


def _flag(d: Program, x: Tensor, latent: Any = None, observed: Any = None, **kwargs: Any) -> Tensor:
    """A bit per row, with handlers around the latent and the observation."""
    with _rows(x):
        with latent or nullcontext():
            z = d.draw("z", d.theta[0], d.phi[0] + d.phi[1] * x, **kwargs)
        with observed or nullcontext():
            d.observe("x", Normal(d.theta[1] * z, d.theta[2].exp()), x)
    return z


@_structure(z=(2,))
def _plain(d: Program, x: Tensor) -> None:
    _flag(d, x)


@_structure(z=(1, 2), rows=1)
def _event(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        z = d.draw("z", theta[:2], phi[:2] + phi[2:4] * x[:, None], events=1)
        d.observe("x", Normal((z * theta[2:4]).sum(-1) + z.prod(-1), 1.0), x)


@_structure(g=(), values={"g": 3}, row_dim=None)
def _global_category(d: Program, x: Tensor) -> None:
    g = pyro.sample("g", Categorical(logits=(d.phi if d.is_guide else d.theta)[:3]))
    with _rows(x):
        d.observe("x", Normal(d.theta[g.long()], 1.0), x)


@_structure(g=(), row_dim=None)
def _global_bit(d: Program, x: Tensor) -> None:
    g = d.draw("g", d.theta[0], d.phi[0])
    with _rows(x):
        d.observe("x", Normal(d.theta[1] * g, 1.0), x)


@_structure(g=(), z=(2,), row_dim=None)
def _global_before_local(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    g = d.draw("g", theta[0], phi[0])
    with _rows(x):
        z = d.draw("z", theta[1] * g - 0.3, phi[1] + phi[2] * x + phi[3] * g)
        d.observe("x", Normal(theta[2] * z + theta[3] * g, 1.0), x)


@_structure(g=(), z=(1,), row_dim=None, rows=1)
def _global_after_local(d: Program, x: Tensor) -> None:
    phi = d.phi
    if d.is_guide:
        with _rows(x):
            z = d.draw("z", 0.0, phi[0] + phi[1] * x)
        d.draw("g", 0.0, phi[2] * z.sum(-1) - 0.2)
    else:
        _global_before_local(d, x)


@_structure(z=(2,))
def _mask_on_the_guide(d: Program, x: Tensor) -> None:
    _flag(d, x, d.under(guide=x > 0))


@_structure(z=(2,))
def _mask_in_the_distribution_of_the_guide(d: Program, x: Tensor) -> None:
    _flag(d, x, mask=x > 0 if d.is_guide else None)


@_structure(z=(2,))
def _mask_on_the_model(d: Program, x: Tensor) -> None:
    _flag(d, x, d.under(model=x > 0))


@_structure(z=(2,))
def _different_masks(d: Program, x: Tensor) -> None:
    _flag(d, x, d.under(model=x < 0, guide=x > 0))


@_structure(z=(2,))
def _scale_on_the_guide(d: Program, x: Tensor) -> None:
    _flag(d, x, d.under(guide=0.5))


@_structure(z=(2,))
def _scale_on_the_model(d: Program, x: Tensor) -> None:
    _flag(d, x, d.under(model=0.5))


@_structure(z=(2,))
def _scales_of_rows(d: Program, x: Tensor) -> None:
    scales = 1.2 + x
    _flag(d, x, d.under(model=scales, guide=scales))


@_structure(z=(2,))
def _nested_scales(d: Program, x: Tensor) -> None:
    with d.under(model=0.5, guide=2.0), d.under(guide=1.5):
        _flag(d, x, d.under(model=1.2 + x, guide=x > 0), d.under(model=x < 0))


@_structure(z=(2,))
def _scale_and_mask_by_a_draw(d: Program, x: Tensor) -> None:
    with _rows(x):
        z = d.draw("z", d.theta[0], d.phi[0] + d.phi[1] * x)
        with d.under(model=0.5 + z**2), d.under(model=(x > 0) | (z == 1)):
            d.observe("x", Normal(d.theta[1] * z, 1.0), x)


@_structure(a=(1,), z=(1,), rows=1)
def _guide_scaled_by_a_draw(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        a = d.draw("a", theta[0], phi[0])
        with d.under(guide=0.5 + a**2):
            z = d.draw("z", theta[1] * a, phi[1] + phi[2] * a)
        d.observe("x", Normal(theta[2] * a + theta[3] * z, 1.0), x)


@_structure(a=(1,), z=(1,), rows=1, refused="'a' is auxiliary")
def _auxiliary_site(d: Program, x: Tensor) -> None:
    _auxiliary(d, x, None)


@_structure(a=(1,), z=(1,), rows=1)
def _masked_auxiliary_site(d: Program, x: Tensor) -> None:
    _auxiliary(d, x, False)


def _auxiliary(d: Program, x: Tensor, mask: bool | None) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        infer = {"is_auxiliary": True}
        a = d.draw("a", 0.0, phi[0].expand(len(x)), mask=mask, infer=infer) if d.is_guide else 0.0
        z = d.draw("z", theta[0], phi[1] + phi[2] * a)
        d.observe("x", Normal(theta[1] * z, 1.0), x)


@_structure(z=(2,), refused="'penalty' is a pyro.factor")
def _factor_of_the_guide(d: Program, x: Tensor) -> None:
    with _rows(x):
        z = d.draw("z", d.theta[0], d.phi[0] + d.phi[1] * x)
        d.observe("x", Normal(d.theta[1] * z, 1.0), x)
        if d.is_guide:
            pyro.factor("penalty", d.phi[2] * z, has_rsample=False)


@_structure(z=(2,))
def _detached_parameters(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        z = d.draw("z", theta[0], phi[0].detach() + phi[1] * x)
        rounded = theta[1].round() + (theta[1] - theta[1].detach())  # straight-through
        d.observe("x", Normal(rounded * z + theta[3].detach(), 1.0), x)


@_structure(z=(2,), row_dim=None)
def _observation_reads_another_row(d: Program, x: Tensor) -> None:
    with _rows(x):
        z = d.draw("z", d.theta[0], d.phi[0] + d.phi[1] * x)
        d.observe("x", Normal(d.theta[1] * z.roll(1, -1), 1.0), x)


@_structure(z=(2,), normals={"s": (2,)}, row_dim=None)
def _guide_reads_another_row(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        z = d.draw("z", theta[0], phi[0] + phi[1] * x)
        loc = phi[2] + phi[3] * z.roll(1, -1) if d.is_guide else theta[3] + theta[2] * z
        s = pyro.sample("s", Normal(loc, 0.5))
        d.observe("x", Normal(theta[1] * z + s, 1.0), x)


@_structure(z=(2,), row_dim=None)
def _factor_outside_the_plate(d: Program, x: Tensor) -> None:
    z = _flag(d, x)
    if not d.is_guide:
        pyro.factor("penalty", d.theta[3] * z.prod(-1))


@_structure(z=(2,), row_dim=None)
def _observation_outside_the_plate(d: Program, x: Tensor) -> None:
    z = _flag(d, x)
    d.observe("y", Normal(d.theta[3] * z.sum(-1), 1.0), torch.tensor(0.4).double())


@_structure(z=(2,), ratio=5.0)
def _mini_batch(d: Program, x: Tensor) -> None:
    with pyro.plate("data", 5 * len(x), subsample=torch.arange(len(x)), dim=-1):
        z = d.draw("z", d.theta[0], d.phi[0] + d.phi[1] * x)
        d.observe("x", Normal(d.theta[1] * z, d.theta[2].exp()), x)


@_structure(c=(2,), z=(1,), row_dim=None, rows=1)
def _sibling_plates(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with pyro.plate("items", 2, dim=-1):
        c = d.draw("c", theta[0], phi[0])
    with _rows(x):
        z = d.draw("z", theta[1] * c.sum(-1, keepdim=True), phi[1] + phi[2] * x)
        d.observe("x", Normal(theta[2] * z, 1.0), x)


@_structure(z=(1, 1), u=(1, 2), row_dim=-2, rows=1)
def _nested_plates(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with pyro.plate("data", len(x), dim=-2):
        z = d.draw("z", theta[:1], phi[0] + phi[1] * x[:, None])
        with pyro.plate("features", 2, dim=-1):
            u = d.draw("u", theta[1] * z + theta[2], phi[2] * z + phi[3:5])
            loc = theta[3] * u + theta[4] * z
            d.observe("x", Normal(loc, 1.0), x[:, None].expand(-1, 2))


@_structure(c=(2, 1), z=(1,), row_dim=None, rows=1)
def _crossed_plates(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    items, rows = pyro.plate("items", 2, dim=-2), _rows(x)
    with items:
        c = d.draw("c", theta[:1], phi[:1])
    with rows:
        z = d.draw("z", theta[1], phi[1] + phi[2] * x + phi[3] * c.sum(-2))
    with items, rows:
        d.observe("x", Normal(theta[2] * c + theta[3] * z * c, 1.0), x.expand(2, -1))


@_structure(z=(2,), summed={"m": 3})
def _site_summed_out(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        m = None if d.is_guide else pyro.sample("m", Categorical(logits=theta[:3]), infer=PARALLEL)
        z = d.draw("z", theta[3], phi[0] + phi[1] * x)
        if m is not None:
            d.observe("x", Normal(theta[m.long()] * z + theta[4], 1.0), x)


@_structure(c=(2,), normals={"u": (2,), "v": (2,)})
def _normals_around_a_bit(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        u = pyro.sample(
            "u", Normal(phi[0] * x, phi[1].exp()) if d.is_guide else Normal(theta[0], 1.0)
        )
        c = d.draw("c", theta[1] * u, phi[2] * u)
        v = pyro.sample(
            "v", Normal(phi[3] * c + phi[4] * u if d.is_guide else theta[2] * c + u, 0.7)
        )
        d.observe("x", Normal(v + theta[3] * c, 1.0), x)


@_structure(c=(2,), normals={"u": ()}, row_dim=None)
def _global_normal_after_bits(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    if d.is_guide:
        with _rows(x):
            c = d.draw("c", 0.0, phi[2] * x + phi[3])
        pyro.sample("u", Normal(phi[0] * c.sum(-1), phi[1].exp()))
    else:
        u = pyro.sample("u", Normal(theta[0], 1.0))
        with _rows(x):
            c = d.draw("c", theta[1] * u, 0.0)
            d.observe("x", Normal(u + theta[3] * c, 1.0), x)


@_structure(z0=(1,), z1=(1,), rows=1)
def _steps_of_a_chain(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        z = torch.zeros(len(x)).double()
        for t in pyro.markov(range(2)):
            z = d.draw(f"z{t}", theta[0] * z + theta[t] * x, phi[t] + phi[2] * z)
            d.observe(f"x{t}", Normal(theta[3] * z, 1.0), x)


@_structure(z0=(), z1=(), row_dim=None)
def _rows_in_a_loop(d: Program, x: Tensor) -> None:
    for b in pyro.plate("data", len(x)):
        z = d.draw(f"z{b}", d.theta[0], d.phi[b])
        d.observe(f"x{b}", Normal(d.theta[1] * z, 1.0), x[b])


@_structure(z=(2,))
def _index_from_the_left(d: Program, x: Tensor) -> None:
    with _rows(x):
        z = d.draw("z", d.theta[0].expand(len(x)), d.phi[0] + d.phi[1] * x)
        loc = torch.stack([z[i] for i in range(len(x))]) if z.dim() == 1 else z.flip(-1)
        d.observe("x", Normal(d.theta[1] * loc, 1.0), x)


@_structure(z=(1,), x_unobserved=(1,), rows=1)
def _observation_mask(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        z = d.draw("z", theta[0], phi[0] + phi[1] * x)
        if d.is_guide:
            d.draw("x_unobserved", 0.0, phi[2] * z)
        else:
            fn: Any = Normal(theta[1] * z, 0.5) if d.is_twin else Bernoulli(logits=theta[1] * z)
            pyro.sample("x", fn, obs=(x > 0).double(), obs_mask=x < 0)


@_structure(z=(2,), points=["s"])
def _point_with_a_density(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        point = Delta(phi[0] * x, log_density=phi[3] * x)
        s = pyro.sample("s", point if d.is_guide else Normal(0.0, 1.0))
        z = d.draw("z", theta[0] * s, phi[1] * s + phi[2])
        d.observe("x", Normal(theta[1] * z + s, 1.0), x)


@_structure(normals={"a": (2,)}, points=["s"])
def _point_of_an_auxiliary_draw(d: Program, x: Tensor) -> None:
    theta, phi = d.theta, d.phi
    with _rows(x):
        if d.is_guide:
            a = pyro.sample("a", Normal(phi[0] * x, 0.5), infer={"is_auxiliary": True})
            s = pyro.sample(
                "s", Delta(phi[1] + phi[2].exp() * a, log_density=-phi[2].expand(len(x)))
            )
        else:
            s = pyro.sample("s", Normal(theta[0], 1.0))
        d.observe("x", Normal(theta[1] * s, 1.0), x)
