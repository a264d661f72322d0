"""Idioms of Pyro programs in captured steps."""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ppl_lvm import CannotCaptureError, CompiledSVI

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 3, generator=GENERATOR), torch.randn(20, generator=GENERATOR)
CODES = torch.arange(20) % 4


class BayesianRegression(PyroModule):
    """y_n ~ N(w·x_n + b, 1) with priors that `expand` has made before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", Normal(mean, 1.0), obs=y)


class Groups(PyroModule):
    """y_n ~ N(w_g[n], 1), groups as one-hot codes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, codes: Tensor, y: Tensor) -> None:
        mean = self.linear(one_hot(codes, 4).float()).squeeze(-1)
        with pyro.plate("data", len(codes)):
            pyro.sample("y", Normal(mean, 1.0), obs=y)


class Annealed(PyroModule):
    """y_n ~ N(w·x_n + z_n, 1) with the KL term times β."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.branches = branches
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, y: Tensor, beta: float = 1.0) -> None:
        mean = x @ self.w
        if self.branches and beta > 2:
            mean = mean + 1
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=beta):  # type: ignore[arg-type]
                z = pyro.sample("z", Normal(0 * mean, 1.0))
            pyro.sample("y", Normal(mean + z, 1.0), obs=y)


class AnnealedGuide(PyroModule):
    """q(z_n) = N(v·x_n, 1) with the weight β."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, y: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=beta):  # type: ignore[arg-type]
            pyro.sample("z", Normal(x @ self.v, 1.0))


@dataclass
class Settings:
    """Settings of `configured`."""

    scale: float = 2.0


def configured(settings: Any, y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        mean = pyro.param("mean", torch.tensor(0.0)).expand(len(y))
        pyro.sample("y", Normal(mean, settings.scale), obs=y)


def nothing(*args: Any) -> None:
    """A guide without sites."""


class Shift(Messenger):
    """A handler of a package that changes values of a site."""

    def __init__(self, name: str, by: float) -> None:
        super().__init__()
        self.name, self.by = name, by

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            msg["value"] = msg["value"] + self.by


def treated(x: Tensor, y: Tensor) -> None:
    """y_n ~ N(w t_n, 1), t_n ~ N(x_n, 1)."""
    w = pyro.sample("w", Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        t = pyro.sample("t", Normal(x[:, 0], 1.0))
        pyro.sample("y", Normal(w * t, 1.0), obs=y)


def handled(handler: Callable[[Any], Any]) -> Callable[[], Any]:
    def programs() -> Any:
        model = handler(treated)
        return model, AutoNormal(model)

    return programs


def losses(make: Callable[..., Any], programs: Any, batches: Any, elbo: Any) -> tuple[Any, Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = programs()
    svi = make(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    pyro.set_rng_seed(1)
    return [svi.step(*batch) for batch in batches], svi


def annealed(**options: Any) -> Any:
    return lambda: (Annealed(**options), AnnealedGuide())


def with_guide(model: Callable[[], Any], guide: Any) -> Any:
    def programs() -> Any:
        instance = model()
        return instance, guide(instance)

    return programs


IDIOMS: dict[str, Any] = {
    "expanded priors": (with_guide(BayesianRegression, AutoNormal), [(X, Y)] * 8),
    "one-hot codes": (lambda: (Groups(), nothing), [(CODES, Y)] * 8),
    "a weight that grows": (annealed(), [(X, Y, 0.05 * t) for t in range(1, 12)]),
    "a weight that stays": (annealed(), [(X, Y, min(1.0, 0.3 * t)) for t in range(1, 12)]),
    "a namespace": (lambda: (configured, nothing), [(argparse.Namespace(scale=2.0), Y)] * 8),
    "a simple namespace": (lambda: (configured, nothing), [(SimpleNamespace(scale=2.0), Y)] * 8),
    "a dataclass": (lambda: (configured, nothing), [(Settings(), Y)] * 8),
    "a class": (lambda: (configured, nothing), [(Settings, Y)] * 8),
    "a partial": (
        lambda: (functools.partial(configured, Settings()), nothing),
        [(Y,)] * 8,
    ),
    "an intervention": (handled(lambda m: pyro.poutine.do(m, {"t": torch.ones(20)})), [(X, Y)] * 8),
    "a handler of a package": (handled(Shift("t", 0.5)), [(X, Y)] * 8),
    "a smaller last batch": (annealed(), [(X[:15], Y[:15]), (X[15:], Y[15:])] * 5),
}


@pytest.mark.parametrize("name", IDIOMS)
def test_idiom_is_captured_with_the_losses_of_svi(name: str) -> None:
    programs, batches = IDIOMS[name]
    expected, _ = losses(SVI, programs, batches, Trace_ELBO())
    ours, svi = losses(CompiledSVI, programs, batches, Trace_ELBO())
    assert svi.capture_error is None
    assert svi.num_captures == (2 if "batch" in name else 1)
    assert ours == pytest.approx(expected, rel=1e-5)


def test_traced_elbo_of_pyro_is_captured_in_its_untraced_form() -> None:
    programs, batches = annealed(), [(X, Y)] * 8
    expected, _ = losses(SVI, programs, batches, Trace_ELBO())
    ours, svi = losses(CompiledSVI, programs, batches, JitTrace_ELBO())
    assert svi.num_captures == 1
    assert ours == pytest.approx(expected, rel=1e-5)


def test_number_that_a_branch_reads_stays_a_number() -> None:
    batches = [(X, Y, 0.5 * t) for t in range(1, 10)]
    expected, _ = losses(SVI, annealed(branches=True), batches, Trace_ELBO())
    ours, svi = losses(CompiledSVI, annealed(branches=True), batches, Trace_ELBO())
    assert svi.capture_error is None
    assert ours == pytest.approx(expected, rel=1e-5)


def test_changed_attribute_of_a_namespace_is_captured_again() -> None:
    settings = [argparse.Namespace(scale=s) for s in [2.0] * 5 + [3.0] * 5]
    batches = [(s, Y) for s in settings]
    expected, _ = losses(SVI, lambda: (configured, nothing), batches, Trace_ELBO())
    ours, svi = losses(CompiledSVI, lambda: (configured, nothing), batches, Trace_ELBO())
    assert svi.num_captures == 2
    assert ours == pytest.approx(expected, rel=1e-5)


def test_tensor_inside_a_namespace_is_refused_by_name() -> None:
    batches = [(argparse.Namespace(scale=torch.tensor(2.0)), Y)] * 5
    captured = functools.partial(CompiledSVI, engine="captured")
    with pytest.raises(CannotCaptureError, match="the tensor 'scale'"):
        losses(captured, lambda: (configured, nothing), batches, Trace_ELBO())


def test_code_out_of_range_is_an_error_in_captured_steps_too() -> None:
    batches = [(CODES, Y)] * 6 + [(CODES + 1, Y)]
    with pytest.raises((IndexError, RuntimeError)):
        losses(CompiledSVI, lambda: (Groups(), nothing), batches, Trace_ELBO())
