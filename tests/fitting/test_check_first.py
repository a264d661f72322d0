"""The check of a pair that every fit makes first."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import check, fit, fit_adversarial, fit_em, fit_mcem

X, Y = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))


class Regression(PyroModule):
    """z_n ~ N(0, 1);  y_n ~ N(w · x_n + z_n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("y", Normal(self.net(x).squeeze(-1) + z, 1.0), obs=y)


def regression_guide(x: Tensor, y: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(loc, 1.0))


class Factors(PyroModule):
    """z_n ~ N(0, I);  x_n ~ N(W z_n, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(self.net(z), 1.0).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self, *layers: nn.Module, site: str = "z") -> None:
        super().__init__()
        self.site, self.net = site, nn.Sequential(nn.Linear(3, 2), *layers)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample(self.site, Normal(self.net(x), 1.0).to_event(1))


def no_plate(x: Tensor) -> None:
    w = pyro.param("w", torch.ones(2, 3))
    z = pyro.sample("z", Normal(torch.zeros(len(x), 2), 1.0).to_event(2))
    pyro.sample("x", Normal(z @ w, 1.0).to_event(2), obs=x)


@pytest.mark.parametrize("guide", [regression_guide, None], ids=["guide", "default"])
def test_fit_names_the_shape_of_labels_with_a_second_axis(guide: Any) -> None:
    with pytest.raises(ValueError, match=r"value-shape: 'y' .* \(12, 1\)(?s:.*)squeeze\(-1\)"):
        fit(Regression(), guide, (X, Y[:, :1]), num_steps=1)


@pytest.mark.parametrize("guide", [regression_guide, None], ids=["guide", "default"])
@pytest.mark.parametrize("model", [Regression, Regression()], ids=["class", "instance"])
def test_fit_names_an_argument_that_the_data_lack(model: Any, guide: Any) -> None:
    message = r"call-signature: The .* 1 tensor of the data: .*'y'(?s:.*)Pass data with one array"
    with pytest.raises(ValueError, match=message):
        fit(model, guide, X, num_steps=1)


def test_fit_names_a_site_that_the_model_lacks() -> None:
    with pytest.raises(ValueError, match="missing-in-model: The guide samples 'codes'"):
        fit(Factors(), Encoder(site="codes"), X, num_steps=1)


@pytest.mark.parametrize("guide", [Encoder(), None], ids=["guide", "default"])
def test_fit_names_a_missing_plate_of_mini_batches(guide: Any) -> None:
    with pytest.raises(ValueError, match=r'pyro\.plate\("data", len\(x\)\)'):
        fit(no_plate, guide, X, batch_size=4, num_steps=1)


@pytest.mark.parametrize(
    ("rows", "batch_size", "remedy"),
    [(12, 1, "batch_size=2 or more"), (1, None, "nn.LayerNorm"), (12, 11, "batch_size=12")],
)
def test_fit_names_a_batch_norm_of_one_row(rows: int, batch_size: Any, remedy: str) -> None:
    guide = Encoder(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=f"'net.1' .*no variance of one(?s:.*){remedy}") as error:
        fit(Factors(), guide, X[:rows], batch_size=batch_size, num_steps=1)
    assert "Expected more than 1 value" not in str(error.value)


def test_check_names_the_batch_norm_of_a_closure() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(net(x), 1.0).to_event(1))

    issues = check(Factors(), guide, X[:1])
    assert "(BatchNorm1d) has no variance of one" in issues[0].message


def test_fit_shows_warnings_without_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    class Spare(Factors):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.zeros(3))

    fit(Spare(), Encoder(), X, num_steps=1, progress=False)
    assert "warning no-gradient" in (printed := capsys.readouterr().err)
    assert "'spare'" in printed


def test_check_of_a_fit_leaves_the_draws_of_late_parameters_to_its_seed() -> None:
    class Late(Factors):
        def forward(self, x: Tensor) -> None:
            if not hasattr(self, "scale"):
                self.scale = nn.Parameter(torch.rand(3))
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", Normal(self.net(z), self.scale.exp()).to_event(1), obs=x)

    scales = []
    for seed in (0, 0, 1):
        run = fit(Late(), Encoder(), X, num_steps=1, seed=seed, optimizer="SGD(lr=1e-9)")
        scales.append(run.parameters()["scale"])
    assert torch.equal(scales[0], scales[1])
    assert (scales[0] - scales[2]).abs().max() > 1e-3


def generator_without_gradient() -> nn.Module:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3))

        def draw(self, n: int) -> Tensor:
            return torch.randn(n, 3) + self.shift.detach()

    return Constant()


def generator_of_columns(count: int) -> nn.Module:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(count))

        def draw(self, n: int) -> Tensor:
            return torch.randn(n, count) + self.shift

    return Wide()


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (
            lambda: fit_em("ppl_lvm.models:GaussianMixture", (X, Y)),
            r"initialize\(x\) cannot be called .* \(2\)",
        ),
        (lambda: fit_mcem(Regression(), X, max_iterations=1), "call-signature"),
        (lambda: fit_mcem(Factors(), X, guide=Encoder(site="a"), max_iterations=1), "'a'"),
        (lambda: fit_adversarial(generator_without_gradient(), X, num_steps=1), "no gradient"),
        (lambda: fit_adversarial(generator_of_columns(4), X, num_steps=1), r"\(2, 4\)"),
    ],
)
def test_other_fits_check_their_programs_first(fails: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fails()
