"""Errors for losses, gradients and values that are not finite."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Categorical, MultivariateNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import load_data, signature
from ppl_lvm.core.errors import NonFiniteError
from ppl_lvm.core.storage import load_checkpoint
from ppl_lvm.estimators import ELBO, IWAE
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import GaussianMixture
from small_programs import Counts, Exploding, nothing

pytestmark = pytest.mark.usefixtures("no_figures")

REPLAYED: list[Any] = ["captured", pytest.param("compiled", marks=pytest.mark.slow)]


def test_value_outside_the_support_names_its_row() -> None:
    x = torch.ones(40, 2)
    x[17, 1] = -1.0
    with pytest.raises(NonFiniteError, match=r"site 'x'.*support of Poisson.*row 18 \(index 17\)"):
        fit(Counts(), nothing, x, batch_size=8, num_steps=20)


def test_nan_saves_the_last_finite_parameters_and_names_the_site(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"site 'x' of the model has a loc that is NaN") as e:
        fit(
            Exploding(),
            nothing,
            torch.full((5,), -5.0),
            optimizer="SGD(lr=0.3)",
            num_steps=50,
            directory=tmp_path,
        )
    assert "are kept" in str(e.value)
    tensors, data = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(t).all() for n, t in tensors.items() if n.startswith("state/"))
    assert data["step"] == len(tensors["history/bound"])


class Root(PyroModule):
    """Square root of a parameter, with a NaN gradient once the parameter is negative."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.mean = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            root = (self.a * (self.a > 0)).sqrt()
            pyro.sample("x", Normal(self.mean + root, 1.0), obs=x)


def test_nan_gradient_of_a_finite_loss_names_the_parameter() -> None:
    with pytest.raises(NonFiniteError, match=r"Step 2: the gradient of parameter 'a' is NaN"):
        fit(Root(0.005), nothing, -torch.ones(5), num_steps=3)


def test_nan_gradient_at_the_initial_parameters_is_refused_before_any_step() -> None:
    with pytest.raises(ValueError, match=r"gradient-not-finite: log p of 'x' is finite, but its"):
        fit(Root(0.0), nothing, torch.ones(5), num_steps=3)


def failure(program: Any, x: Tensor, path: Path, **options: Any) -> tuple[str, dict[str, Any], int]:
    """Message of a failed fit, tensors and step of its checkpoint."""
    with pytest.raises(NonFiniteError) as raised:
        fit(program, nothing, x, directory=path, **options)
    tensors, data = load_checkpoint(path / "checkpoint.safetensors")
    return str(raised.value), tensors, data["step"]


@pytest.mark.parametrize("level", REPLAYED)
@pytest.mark.parametrize("per_call", [1, 5])
def test_nan_error_and_checkpoint_are_equal_at_every_level(
    level: Any, per_call: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"optimizer": "SGD(lr=0.1)", "num_steps": 50}
    options["schedule"] = "ExponentialLR(gamma=0.99)"
    x = torch.full((5,), -5.0)
    message, tensors, step = failure(Exploding(), x, tmp_path / "a", engine="eager", **options)
    assert "site 'x' of the model has a loc that is NaN" in message
    assert step % 5  # within a call
    options |= {"engine": level, "steps_per_call": per_call}
    message_at_level, tensors_at_level, step_at_level = failure(
        Exploding(), x, tmp_path / "b", **options
    )
    assert message_at_level.replace("/b/", "/a/") == message
    assert step_at_level == step
    for name in ("state/model/m", "history/bound"):
        assert torch.allclose(tensors_at_level[name], tensors[name], rtol=1e-5), name


@pytest.mark.parametrize("level", REPLAYED)
@pytest.mark.filterwarnings("ignore:.*its constructor arguments .'a'. are not kept")
def test_nan_gradient_names_the_parameter_in_replayed_steps(level: Any, tmp_path: Path) -> None:
    message, tensors, step = failure(
        Root(0.005), -torch.ones(5), tmp_path, num_steps=3, engine=level, clip_norm=1.0
    )
    assert "gradient of parameter 'a' is NaN" in message
    assert step == 1
    assert float(tensors["state/model/mean"]) == pytest.approx(-0.01, rel=1e-3)


def test_value_outside_the_support_is_refused_in_replayed_steps(tmp_path: Path) -> None:
    """The log-density of a Poisson is finite at 0.5."""
    x = torch.ones(40, 2)
    x[17, 1] = 0.5
    message, _, step = failure(
        Counts(), x, tmp_path, batch_size=8, num_steps=20, engine="captured", seed=1
    )
    assert "outside the support of Poisson" in message
    assert "row 18 (index 17)" in message
    assert step > 0


@pytest.mark.slow
def test_overflow_of_cubo_has_a_hint_of_its_objective() -> None:
    with pytest.raises(
        NonFiniteError,
        match=r"^Step \d+: the gradient of parameter .* every log-probability is finite\. "
        r"CUBO: the exponential of log-weights overflows\. Start from a guide fitted by ELBO",
    ):
        fit(
            "ppl_lvm.models:LatentDirichletAllocation",
            "ppl_lvm.guides:LocalNormal",
            "bars(n=60)",
            objective="CUBO",
            num_steps=20,
        )


def _masked(x: Tensor) -> None:
    mean = pyro.param("mean", torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=~x.isnan()):
        pyro.sample("x", Normal(mean, 1.0), obs=x)


def test_nan_behind_a_mask_is_an_error_with_its_remedy() -> None:
    x = torch.ones(40)
    x[30] = torch.nan
    data = load_data(x, missing="keep")
    with pytest.raises(ValueError, match=r"(?s)gradient-not-finite: log p of 'x'.*without_missing"):
        fit(_masked, nothing, load_data(x[20:], missing="keep"))
    # Rows that the check before training does not see.
    with pytest.raises(NonFiniteError, match=r"'x' of the model observes NaN at .*row 31 .*nan_to"):
        fit(_masked, nothing, data, batch_size=8, num_steps=20)


def test_loss_of_an_impossible_row_is_infinite() -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor([0.5, 0.5]))
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", Categorical(p), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(0.0, 1.0), obs=x)
            pyro.factor("impossible", torch.where(x > 0, -torch.inf, 0.0) + p[k].log())

    for objective in (ELBO(), IWAE(num_particles=2)):
        loss = objective.differentiable_loss(model, nothing, torch.tensor([-1.0, 1.0]))
        assert loss.item() == torch.inf
        assert objective.loss(model, nothing, torch.tensor([-1.0, 1.0])) == torch.inf


class Covariance(PyroModule):
    """Normal whose covariance is a plain parameter, which a large step makes indefinite."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.eye(2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", MultivariateNormal(torch.zeros(2), self.c), obs=x)


@pytest.mark.parametrize("level", ["eager", *REPLAYED])
def test_failing_factorization_names_step_and_line_and_keeps_the_parameters(
    level: Any, tmp_path: Path
) -> None:
    x = 0.01 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"optimizer": "SGD(lr=0.6)", "num_steps": 50, "engine": level}
    message, tensors, step = failure(Covariance(), x, tmp_path, **options)
    assert f"Step {step + 1}: the model fails after site 'data' (" in message
    assert "not positive-definite" in message
    assert "Lower the learning rate" in message
    assert tensors["state/model/c"].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [1, 2])
def test_diverging_mixture_names_the_parameter(restarts: int) -> None:
    with pytest.raises(NonFiniteError, match=r"Step \d+: parameter 'scale_tril' is infinite"):
        fit(
            GaussianMixture(3),
            None,
            "iris",
            optimizer="SGD(lr=30.0)",
            num_steps=60,
            restarts=restarts,
            progress=False,
        )


def test_argument_outside_its_constraint_is_named() -> None:
    def model(x: Tensor) -> None:
        s = pyro.param("s", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(0.0, s), obs=x)

    with pytest.raises(NonFiniteError, match="a scale that must be positive and is not"):
        fit(model, nothing, 0.01 * torch.ones(5), optimizer="SGD(lr=0.3)", num_steps=50)


def test_nan_in_the_first_run_is_named_without_its_tensor() -> None:
    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.zeros(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z + m / m, 1.0), obs=x)

    with pytest.raises(ValueError, match="argument loc of 'x' ~ Normal must be real, but is nan"):
        fit(model, None, torch.ones(500))
    with pytest.raises(ValueError, match=r"but it is nan at \(0,\) \(") as raised:
        signature(model, torch.ones(500))
    assert len(str(raised.value)) < 500
