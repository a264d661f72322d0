"""Public callables with right arguments.

Callables are read from the `__all__` of the package and its public sub-packages, and the public
methods from the classes there, so that a new one is tested without an entry here. An argument
without default has its right value by its name, in `values`; `SPECIAL` has those of callables that
need others.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from pyro.distributions import Bernoulli, Dirichlet, Normal
from sklearn.base import BaseEstimator
from torch import Tensor

import ppl_lvm as lvm
from ppl_lvm.guides.parts.site_guide import Latents
from ppl_lvm.models import PPCA, VAE, DeepMarkovModel, Diffusion, HierarchicalVAE

X = torch.linspace(-1.0, 1.0, 24).reshape(12, 2)
BITS = (torch.arange(48).reshape(8, 6) % 5 > 2).float()

# Their arguments are fields that the package fills in.
RECORDS = ("Run", "Data", "Signature", "Site", "Plate", "Fitted", "CoverageResult")
RECORDS += ("CoverageResults", "AutoGuide", "LazilySized")


@dataclass(frozen=True)
class Subject:
    """A public callable.

    Attributes:
        name: its dotted name.
        function: what is called.
        right: argument -> a value that is right.
        parameters: names of its arguments.
    """

    name: str
    function: Callable[..., Any]
    right: Mapping[str, Any]
    parameters: tuple[str, ...] = field(default=())

    def call(self, /, **wrong: Any) -> Any:
        """Call it with its right arguments and these."""
        arguments = {**self.right, **wrong}
        positional: list[Any] = []
        parameters = inspect.signature(self.function).parameters.values()
        several = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        if several in arguments:
            for parameter in parameters:
                if parameter.name == several:
                    break
                positional.append(arguments.pop(parameter.name, parameter.default))
            value = arguments.pop(several)
            spread = isinstance(value, tuple) and value is self.right.get(several)
            positional += value if spread else [value]
        return self.function(*positional, **arguments)


def _bits(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        b = pyro.sample("b", Bernoulli(torch.full((2,), 0.5)).to_event(1))
        pyro.sample("x", Normal(b.sum(-1), 1.0), obs=x[:, 0])


def _proportions(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        p = pyro.sample("p", Dirichlet(torch.ones(3)))
        pyro.sample("x", Normal(p[..., 0], 1.0), obs=x[:, 0])


def _mean(x: Tensor) -> None:
    w = pyro.sample("w", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(w, 1.0), obs=x[:, 0])


def _labeled(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        loc = z.sum(-1, keepdim=True) + torch.zeros(x.shape[-1])
        pyro.sample("x", Normal(loc, 1.0).to_event(1), obs=x)
        pyro.sample("y", Bernoulli(logits=z[..., 0]), obs=y)


SERVED: dict[Latents, Callable[[], tuple[Any, Any]]] = {
    Latents.LOCAL_CONTINUOUS: lambda: (PPCA(1, 2), X),
    Latents.LOCAL_DISCRETE: lambda: (_bits, X),
    Latents.LOCAL_SIMPLEX: lambda: (_proportions, X),
    Latents.GLOBAL_CONTINUOUS: lambda: (_mean, X),
    Latents.SEQUENCES: lambda: (DeepMarkovModel(2, 2, (8,), 8), BITS.reshape(8, 3, 2)),
    Latents.LABELED_ROWS: lambda: (_labeled, (BITS, BITS[:, 0])),
    Latents.LAYERS: lambda: (HierarchicalVAE((2, 2), hidden=(8,)), BITS),
    Latents.ENCODER_PRIOR: lambda: (VAE(2, hidden=(8,), prior="vamp(components=3)"), BITS),
    Latents.DIFFUSION: lambda: (Diffusion(steps=4, hidden=(8,)), BITS),
}
QUICK = {"num_steps": 1, "progress": False}


def subjects(folder: Path, *packages: str) -> Iterator[Subject]:
    """All public callables, or those of sub-packages.

    Args:
        folder: where runs are saved.
        packages: names of sub-packages; without any, runs are fitted too.

    Raises:
        LookupError: an argument has no right value; it needs one in `values` or `special`.
    """
    runs = {} if packages else _runs(folder)
    special = _special(folder)
    for name, function, owner in _callables():
        if packages and not name.startswith(packages):
            continue
        if owner is not None:
            function = getattr(_instance(owner, name, runs), function.__name__)
        parameters = {
            p.name: p
            for p in inspect.signature(function).parameters.values()
            if p.kind is not p.VAR_KEYWORD and (name, p.name) != ("authoring.build", "arguments")
        }
        right = dict(special.get(name, {}))
        for p in parameters.values():
            required = p.default is p.empty and p.name not in right
            if required and (p.kind is not p.VAR_POSITIONAL or p.name == "batch"):
                right[p.name] = _value(p.name, name, function, runs)
        yield Subject(name, function, right, tuple(parameters))


def _callables() -> Iterator[tuple[str, Callable[..., Any], type | None]]:
    """Name, function and class of a method; of the classes, the constructors too."""
    public: dict[str, Any] = {name: getattr(lvm, name) for name in lvm.__all__}
    for name, package in list(public.items()):
        if isinstance(package, ModuleType):
            public |= {f"{name}.{n}": getattr(package, n) for n in package.__all__}
    for name, thing in public.items():
        if isinstance(thing, ModuleType) or not callable(thing):
            continue
        if not inspect.isclass(thing):
            yield name, thing, None
        elif not issubclass(thing, BaseException) and not getattr(thing, "_is_protocol", False):
            if issubclass(thing, torch.distributions.Distribution | BaseEstimator):
                continue  # torch checks its arguments; scikit-learn's are checked by `fit`
            if not inspect.isabstract(thing) and thing.__name__ not in RECORDS:
                yield name, thing, None
            if name in ("Run", "Data", "CompiledSVI"):
                yield from ((f"{name}.{m}", f, thing) for m, f in _methods(thing))


def _methods(owner: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, function in inspect.getmembers(owner, inspect.isfunction):
        ours = function.__module__.startswith("ppl_lvm")
        if ours and not name.startswith("_") and name not in ("step", "evaluate_loss"):
            yield name, function


def _runs(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    run = lvm.fit(PPCA(1), None, X, validation=4, directory=folder / "run", **QUICK)  # type: ignore[arg-type]
    posterior = lvm.fit(_mean, None, X, **QUICK)  # type: ignore[arg-type]
    generator = lvm.fit_adversarial(_Generator(), X, directory=folder / "gan", **QUICK)  # type: ignore[arg-type]
    return {"run": run, "posterior": posterior, "generator": generator}


class _Generator(torch.nn.Module):
    """x = W ε + b."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 2)

    def draw(self, n: int) -> Tensor:
        return self.net(torch.randn(n, 2))


def _instance(owner: type, name: str, runs: Mapping[str, Any]) -> Any:
    if name in ("Run.posterior", "Run.summary", "Run.predict"):
        return runs["posterior"]
    if owner is lvm.Run:
        return runs["run"]
    if owner is lvm.Data:
        return lvm.load_data(X)
    adam = pyro.optim.Adam({})
    return lvm.CompiledSVI(_mean, _guide, adam, pyro.infer.Trace_ELBO(), engine="eager")


def _guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("w", Normal(loc, 1.0))


def _value(parameter: str, name: str, function: Any, runs: Mapping[str, Any]) -> Any:
    """The right value of an argument.

    Raises:
        LookupError: the name of the argument is new.
    """
    served = getattr(function, "serves", ())
    if served and parameter in ("model", "batch"):
        model, batch = SERVED[min(served)]()
        return model if parameter == "model" else batch
    rows = {"x", "data", "source", "batch", "target", "like"}
    if parameter in rows:
        return X
    values: dict[str, Callable[[], Any]] = {
        "model": lambda: PPCA(1),
        "guide": lambda: None,
        "n": lambda: 2,
        "z": lambda: torch.zeros(3, 1),
        "attribute": lambda: torch.zeros(1),
        "divergence": lvm.divergences.ForwardKL,
        "family": lambda: lvm.models.Gaussian(2),
        "directory": lambda: runs["run"].directory if runs else "runs",
        "runs": lambda: [runs["run"], runs["run"]],
        "self": lambda: runs["run"],
        "row": lambda: 0,
        "rows": lambda: torch.tensor([0, 1]),
        "index": lambda: torch.tensor([0, 1]),
        "seed": lambda: 0,
        "held_out": lambda: 3,
        "weights": lambda: torch.ones(12),
        "exposure": lambda: torch.ones(12),
        "inputs": lambda: 2,
        "outputs": lambda: 1,
        "columns": lambda: 2,
        "categories": dict,
        "image_shape": lambda: (8, 8),
        "low": lambda: (0.0,),
        "high": lambda: (1.0,),
        "size": lambda: 12,
        "width": lambda: 2,
        "values": lambda: torch.zeros(2, 2),
        "what": lambda: "MLP",
        "settings": dict,
        "fn": lambda: Normal(0.0, 1.0),
        "comparison": lambda: lvm.compare([runs["run"], runs["run"]], num_particles=100),
        "results": lambda: lvm.divergences.fit_all(
            X, {"a": lvm.models.Gaussian(2)}, [lvm.divergences.ForwardKL()], num_steps=2
        ),
        "title": lambda: "Pictures",
        "pictures": lambda: np.zeros((2, 3, 3)),
        "names": lambda: ["a"],
        "figure": Figure,
        "elbo": pyro.infer.Trace_ELBO,
        "estimator": lvm.estimators.ELBO,
        "path": lambda: "figure.png",
        "make": lambda: functools.partial(PPCA, 1, 2),
        "factory": lambda: PPCA,
    }
    if parameter not in values:
        raise LookupError(f"{name}: the argument {parameter!r} has no right value.")
    return values[parameter]()


def _special(folder: Path) -> dict[str, dict[str, Any]]:
    """Arguments of callables that need other values, or that would take long."""
    mcem = {"max_iterations": 1, "num_draws": 1, "warmup": 1, "guide_steps": 1, "progress": False}
    svi = {"model": _mean, "guide": _guide, "loss": pyro.infer.Trace_ELBO()}
    coverage = {"families": {"a": lvm.models.Gaussian(2)}, "num_steps": 2}
    return {
        "fit": QUICK,
        "fit_em": {"max_iterations": 1},
        "fit_mcem": mcem,
        "fit_adversarial": {"generator": _Generator(), **QUICK},
        "sweep": {
            "grid": {"seed": [0]},
            "directory": folder / "sweep",
            "options": {"num_steps": 1},
            "jobs": 1,
            "progress": False,
        },
        "load_adversaries": {"directory": folder / "gan"},
        "CompiledSVI.steps": {"rows": torch.tensor([[0, 1]]), "data": X},
        "testing.check_model": {"batch": X},
        "testing.check_guide": {
            "model": PPCA(1),
            "batch": (X,),
            "guide": lvm.guides.AmortizedNormal,
        },
        "CompiledSVI": {**svi, "optim": pyro.optim.Adam({}), "engine": "eager"},
        "divergences.fit_divergence": {"num_steps": 2},
        "divergences.fit_all": {**coverage, "divergences": [lvm.divergences.ForwardKL()]},
        "divergences.divergence_by_name": {"text": "MMD"},
        "report.picture_grid": {"rows": 1, "columns": 2},
        "authoring.parse_call": {"text": "Adam(lr=0.1)"},
        "Run.log_evidence": {"num_particles": 10},
        "Run.to_arviz": {"num_samples": 4},
        "Run.predict": {"num_samples": 4},
        "Run.save": {"directory": folder / "saved"},
        "Run.diagnose": {"temperatures": 2},
        "diagnose": {"temperatures": 2},
        "compare": {"num_particles": 100},
    }
