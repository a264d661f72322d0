"""Signature of a program: sites, plates, supports and parameters.

The sites of a Pyro program are read from a trace of one run. Guides are built from the signature,
`check` compares two of them, and it prints as a table:

    >>> from pyro.distributions import Normal
    >>> def model(x):
    ...     with pyro.plate("data", len(x), dim=-1):
    ...         z = pyro.sample("z", Normal(0.0, 1.0))
    ...         pyro.sample("x", Normal(z, 1.0), obs=x)
    >>> print(signature(model, torch.zeros(5)))
    site  role      distribution  batch  event  support  values      plates  depends on
    z     latent    Normal        (5,)   ()     real     continuous  data    -
    x     observed  Normal        (5,)   ()     real     continuous  data    z
    <BLANKLINE>
    plate  dim  size  stands for  inside
    data   -1   5     5           -
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import family, unwrap_support
from ppl_lvm.core.html_tables import html_table
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.programs.dependencies import dependencies
from ppl_lvm.programs.dry_run import check_batch, dry_run
from ppl_lvm.programs.minibatch import frame_size
from ppl_lvm.programs.row_plates import RowPlates, is_row_site, row_plates


@dataclass(frozen=True)
class Plate:
    """A plate: `size` rows at batch dimension `dim`, standing for `full_size` rows.

    `dim` is None for a sequential plate (`for i in pyro.plate(...)`). `inside` names the enclosing
    plates, outermost first. `over_rows` is true of the plate over the rows of the batch.
    """

    name: str
    dim: int | None
    size: int
    full_size: int
    inside: tuple[str, ...]
    over_rows: bool


@dataclass(frozen=True)
class Site:
    """A sample site of one run.

    `batch_shape` + `event_shape` is the shape of a value. `values` is the number of values for
    enumeration (None if not enumerable), `enumerate` the entry of its `infer` dictionary.
    `depends_on` names the latent sites that its log-probability reads directly; None if unknown.
    `local` is true inside the plate over rows: one value per row.
    """

    name: str
    observed: bool
    distribution: str
    batch_shape: torch.Size
    event_shape: torch.Size
    support: Any
    values: int | None
    enumerate: str | None
    reparameterized: bool
    plates: tuple[str, ...]
    depends_on: tuple[str, ...] | None
    local: bool

    @property
    def discrete(self) -> bool:
        return bool(self.support.is_discrete) or self.values is not None

    @property
    def shape(self) -> torch.Size:
        return self.batch_shape + self.event_shape

    @property
    def from_obs_mask(self) -> bool:
        """True if Pyro made the site of a `pyro.sample(..., obs_mask=)`, by its name."""
        return not self.observed and self.name.endswith("_unobserved")


@dataclass(frozen=True)
class Parameter:
    """A parameter: the shape of its constrained value, and the constraint."""

    name: str
    shape: torch.Size
    constraint: Any


@dataclass(frozen=True, repr=False)
class Signature:
    """Sites, plates and parameters of a program, in the order of its code.

    `masking_program` is the program if it masks latents by tensors, as `obs_mask` does, else None.
    """

    sites: tuple[Site, ...]
    plates: tuple[Plate, ...]
    parameters: tuple[Parameter, ...]
    masking_program: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(f"No site {name!r}; there are {[site.name for site in self.sites]}.")

    def __contains__(self, name: object) -> bool:
        return any(site.name == name for site in self.sites)

    @property
    def latents(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if not site.observed)

    @property
    def observed(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.observed)

    @property
    def local_latents(self) -> tuple[Site, ...]:
        return tuple(site for site in self.latents if site.local)

    @property
    def global_latents(self) -> tuple[Site, ...]:
        return tuple(site for site in self.latents if not site.local)

    @property
    def row_plate(self) -> Plate | None:
        """The plate over rows, of several that of the first site; None without one."""
        return next((plate for plate in self.plates if plate.over_rows), None)

    def plate(self, name: str) -> Plate:
        for plate in self.plates:
            if plate.name == name:
                return plate
        raise KeyError(f"No plate {name!r}; there are {[plate.name for plate in self.plates]}.")

    def __str__(self) -> str:
        return "\n\n".join(_table(head, rows) for head, rows in self._tables())

    def __repr__(self) -> str:
        return str(self)

    def to_json(self) -> dict[str, list[dict[str, str]]]:
        """The rows of the tables, by "sites", "plates" and "parameters", as text."""
        tables = {
            head[0]: [dict(zip(head, row, strict=True)) for row in rows]
            for head, rows in self._tables()
        }
        return {f"{name}s": rows for name, rows in tables.items()}

    def _repr_html_(self) -> str:
        return "".join(html_table(head, rows) for head, rows in self._tables())

    def _tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """Heads and rows of the sites, plates and parameters."""
        tables = [
            (_SITE_HEAD, [_site_row(site) for site in self.sites]),
            (_PLATE_HEAD, [_plate_row(plate) for plate in self.plates]),
            (_PARAMETER_HEAD, [_parameter_row(p) for p in self.parameters]),
        ]
        return [table for n, table in enumerate(tables) if table[1] or n == 0]


@public_call(runs_programs=False)
def signature(model: Callable[..., Any], *batch: Any) -> Signature:
    """Signature of a program, from one run of `model(*batch)`.

    The caller's random state and parameters are restored. `pyro.deterministic` sites are excluded.
    A model that branches has the sites of the branch that ran. Guides have signatures too.
    """
    check_batch(model, batch)
    reads = _dependencies(model, *batch)
    plates = row_plates(model, batch=batch)
    with dry_run(model, seed=0):
        trace = pyro.poutine.trace(model).get_trace(*batch)
        result = read_signature(trace, plates, reads)
        masks = any(isinstance(trace.nodes[site.name]["mask"], Tensor) for site in result.latents)
        return replace(result, masking_program=model) if masks else result


def read_signature(
    trace: pyro.poutine.Trace,
    plates: RowPlates,
    reads: dict[str, tuple[str, ...] | None] | None = None,
) -> Signature:
    """Signature of one trace; `reads` maps a site to the sites that its log-probability reads.

    Call it inside the `dry_run` of the program, whose parameter store it reads.
    """
    nodes = [
        node
        for node in trace.nodes.values()
        if node["type"] == "sample"
        and not site_is_subsample(node)
        and not node["infer"].get("_deterministic")
    ]
    parameters = [node for node in trace.nodes.values() if node["type"] == "param"]
    return Signature(
        sites=tuple(_site(node, plates, reads) for node in nodes),
        plates=tuple(_plates(nodes, plates)),
        parameters=tuple(_parameter(node) for node in parameters),
    )


def count_values(fn: Any) -> int | None:
    """Number of values of an enumerable distribution, None for others."""
    if not getattr(fn, "has_enumerate_support", False):
        return None
    try:
        return len(fn.enumerate_support(expand=False))
    except (NotImplementedError, RuntimeError):  # an infinite support, or several dimensions
        return None


def _site(
    node: dict[str, Any], plates: RowPlates, reads: dict[str, tuple[str, ...] | None] | None
) -> Site:
    fn = node["fn"]
    return Site(
        name=node["name"],
        observed=node["is_observed"],
        distribution=family(fn),
        batch_shape=torch.Size(fn.batch_shape),  # a list in some of Pyro's distributions
        event_shape=torch.Size(fn.event_shape),
        support=_support(fn),
        values=count_values(fn),
        enumerate=node["infer"].get("enumerate"),
        reparameterized=bool(fn.has_rsample),
        plates=tuple(frame.name for frame in node["cond_indep_stack"]),
        depends_on=None if reads is None else reads.get(node["name"]),
        local=is_row_site(node, plates.names),
    )


def _support(fn: Any) -> Any:
    try:
        return _detached(fn.support)
    except NotImplementedError:  # a user's distribution without a support
        return constraints.independent(constraints.real, fn.event_dim)


def _detached(support: Any) -> Any:
    """A support whose bounds are in no graph, so that a guide that keeps it can be copied."""
    if isinstance(support, Tensor):
        return support.detach()
    if isinstance(support, list | tuple):
        return [_detached(part) for part in support]
    if not isinstance(support, constraints.Constraint) or not vars(support):
        return support
    detached = copy.copy(support)
    vars(detached).update({name: _detached(value) for name, value in vars(support).items()})
    return detached


def _plates(nodes: list[dict[str, Any]], plates: RowPlates) -> Iterator[Plate]:
    seen = set()
    for node in nodes:
        frames = node["cond_indep_stack"]
        for i, frame in enumerate(frames):
            if frame.name in seen:
                continue
            seen.add(frame.name)
            size = max(
                frame_size(other, f)
                for other in nodes
                for f in other["cond_indep_stack"]
                if f.name == frame.name
            )
            yield Plate(
                name=frame.name,
                dim=frame.dim,
                size=size,
                full_size=size if frame.full_size in (None, -1) else int(frame.full_size),
                inside=tuple(outer.name for outer in frames[:i]),
                over_rows=frame.name in plates.names,
            )


def _parameter(node: dict[str, Any]) -> Parameter:
    # With Pyro's default settings the constraint of a PyroParam is in the store, not in the site.
    stored = pyro.get_param_store().get_state()["constraints"]
    argument = node["kwargs"].get("constraint", constraints.real)
    constraint = stored.get(node["name"], argument)
    return Parameter(node["name"], node["value"].shape, constraint)


def _dependencies(
    model: Callable[..., Any], *batch: Any
) -> dict[str, tuple[str, ...] | None] | None:
    """Latent sites that each site's log-probability depends on; None if the run fails."""
    with dry_run(model, seed=0):
        try:
            return dependencies(model, *batch)
        except Exception:  # operations that cannot be followed; errors of the program come later
            return None


_SITE_HEAD = (
    "site",
    "role",
    "distribution",
    "batch",
    "event",
    "support",
    "values",
    "plates",
    "depends on",
)
_PLATE_HEAD = ("plate", "dim", "size", "stands for", "inside")
_PARAMETER_HEAD = ("parameter", "shape", "constraint")


def _site_row(site: Site) -> tuple[str, ...]:
    return (
        site.name,
        "observed" if site.observed else "latent",
        site.distribution,
        str(tuple(site.batch_shape)),
        str(tuple(site.event_shape)),
        describe(site.support),
        _values(site),
        _listed(site.plates),
        "?" if site.depends_on is None else _listed(site.depends_on),
    )


def _values(site: Site) -> str:
    if not site.discrete:
        return "continuous"
    return "discrete" if site.values is None else str(site.values)


def _plate_row(plate: Plate) -> tuple[str, ...]:
    dim = "sequential" if plate.dim is None else str(plate.dim)
    return plate.name, dim, str(plate.size), str(plate.full_size), _listed(plate.inside)


def _parameter_row(parameter: Parameter) -> tuple[str, ...]:
    return parameter.name, str(tuple(parameter.shape)), describe(parameter.constraint)


def describe(constraint: Any) -> str:
    """Short description of a constraint: `real`, `positive`, `0..3`, `[0, 1]`, `simplex`."""
    constraint = unwrap_support(constraint)
    words, name = str(constraint).removesuffix("()").lstrip("_"), type(constraint).__name__
    if words == name[1:] and not name.startswith("_"):
        words = name  # torch cuts off the first letter of every name
    if isinstance(constraint, constraints.integer_interval):
        return f"{_number(constraint.lower_bound)}..{_number(constraint.upper_bound)}"
    if isinstance(constraint, constraints.interval):
        return f"[{_number(constraint.lower_bound)}, {_number(constraint.upper_bound)}]"
    return _WORDS.get(words, words)


_WORDS = {
    "Real": "real",
    "RealVector": "real",
    "Simplex": "simplex",
    "Boolean": "0..1",
    "IntegerGreaterThan(lower_bound=0)": "0, 1, 2, …",
    "GreaterThan(lower_bound=0.0)": "positive",
    "GreaterThanEq(lower_bound=0.0)": "non-negative",
    "LowerCholesky": "lower Cholesky",
    "CorrCholesky": "correlation Cholesky",
    "PositiveDefinite": "positive definite",
}


def _number(bound: Any) -> str:
    """A bound, or `…` where it differs between elements."""
    bound = torch.as_tensor(bound)
    return f"{bound.flatten()[0].item():g}" if bound.unique().numel() == 1 else "…"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "-"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)
