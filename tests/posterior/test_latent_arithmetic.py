"""Latent arithmetic of a linear model, against closed forms."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm.fitting.svi import fit
from ppl_lvm.posterior import latent_arithmetic
from ppl_lvm.posterior.latent_arithmetic import (
    attribute_vector,
    edit,
    evaluate_edit,
    linear_path,
    spherical_path,
    traverse,
)
from ppl_lvm.runs.run import Run

W = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, -1.0], [1.0, 1.0]])  # (P, D)
ENCODE = torch.linalg.pinv(W)  # (D, P)


class Linear(PyroModule):
    """z_n ~ N(0, I) (N, 2);  x_n ~ N(W z_n, s²) (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(z @ W.T, self.log_scale.exp()).to_event(1), obs=x)


def inverse(x: Tensor) -> None:
    """A guide whose mean is the least-squares code."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(x @ ENCODE.T, 0.1).to_event(1))


@pytest.fixture(scope="module")
def run() -> Run:
    return fit(Linear(), inverse, torch.randn(10, 4), num_steps=1)


def test_attribute_vector_is_the_difference_of_class_means(run: Run) -> None:
    x = torch.randn(30, 4)
    has = torch.arange(30) % 3 == 0
    z = x @ ENCODE.T
    exact = z[has].mean(0) - z[~has].mean(0)
    torch.testing.assert_close(attribute_vector(run, x, has), exact)
    torch.testing.assert_close(attribute_vector(run, x, has.long()), exact)
    torch.testing.assert_close(attribute_vector(run, x, ~has), -exact)


def test_edit_shifts_the_mean_by_the_decoded_vector(run: Run) -> None:
    x, a = torch.randn(5, 4), torch.tensor([1.0, -2.0])
    plain = x @ ENCODE.T @ W.T
    torch.testing.assert_close(edit(run, x, a, 0.0)["x"], plain)
    torch.testing.assert_close(edit(run, x, a, 1.5)["x"], plain + 1.5 * a @ W.T)
    torch.testing.assert_close(run.edit(x, a, 1.5)["x"], plain + 1.5 * a @ W.T)


def test_linear_paths_have_even_steps_and_spherical_paths_even_angles() -> None:
    a, b = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    line = linear_path(a, b, 5)
    torch.testing.assert_close(line[0], a)
    torch.testing.assert_close(line[-1], b)
    torch.testing.assert_close(line.diff(dim=0), ((b - a) / 4).expand(4, 3, 5))
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    arc = spherical_path(a, b, 5)
    torch.testing.assert_close(arc[0], a)
    torch.testing.assert_close(arc[-1], b)
    torch.testing.assert_close(arc.norm(dim=-1), torch.ones(5, 3).double())
    angles = (arc[1:] * arc[:-1]).sum(-1).acos()
    torch.testing.assert_close(angles, ((a * b).sum(-1).acos() / 4).expand(4, 3))
    assert (linear_path(a, b, 5)[2].norm(dim=-1) < 0.99).any()  # the line is no arc


def test_spherical_path_between_parallel_codes_is_the_line() -> None:
    a = torch.randn(2, 3)
    torch.testing.assert_close(spherical_path(a, 2 * a, 4), linear_path(a, 2 * a, 4))
    assert spherical_path(a, -a, 4).isfinite().all()
    assert spherical_path(a[0], a[1], 4).shape == (4, 3)


def test_traverse_changes_one_coordinate() -> None:
    z, values = torch.randn(3, 5), torch.tensor([-2.0, 0.0, 2.0, 3.0])
    moved = traverse(z, 1, values)
    assert moved.shape == (4, 3, 5)
    torch.testing.assert_close(moved[..., 1], values[:, None].expand(4, 3))
    others = [0, 2, 3, 4]
    torch.testing.assert_close(moved[..., others], z[:, others].expand(4, 3, 4))
    assert traverse(z[0], 0, values).shape == (4, 5)


def test_evaluate_edit_measures_changed_attribute_and_preserved_class(run: Run) -> None:
    """The attribute is the first coordinate of the code, the class the sign of the second."""
    torch.manual_seed(0)
    z = torch.randn(600, 2)
    z[:, 0] = torch.where(torch.arange(600) % 2 == 0, 3.0, -3.0) + 0.3 * z[:, 0]
    z[:, 1] += 3 * z[:, 1].sign()
    x = z @ W.T + 0.1 * torch.randn(600, 4)
    good = evaluate_edit(run, x, z[:, 0] > 0, z[:, 1] > 0)
    assert good.changed == pytest.approx(1, abs=0.02)
    assert good.preserved == pytest.approx(1, abs=0.02)
    assert good.success > good.control + 0.3
    assert 130 < good.rows < 170
    half = evaluate_edit(run, x, z[:, 0] > 0, z[:, 1] > 0, strength=0.1)
    assert half.changed < 0.05  # not far enough
    assert "otherwise preserved" in str(good)
    entangled = evaluate_edit(run, x, z[:, 0] > 0, z[:, 0] > 0)  # the class is the attribute
    assert entangled.success < 0.02
    error = math.sqrt(half.success * (1 - half.success) / half.rows)
    assert half.standard_error == pytest.approx(error)


def test_evaluate_edit_uses_rows_outside_of_the_training_half(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is classified as having the attribute before the edit is not changed by it."""
    torch.manual_seed(0)
    z = torch.randn(400, 2)
    z[:, 0] = torch.where(torch.arange(400) % 2 == 0, 3.0, -3.0) + 0.3 * z[:, 0]
    x, has = z @ W.T, z[:, 0] > 0
    training: list[Tensor] = []

    def record_rows(run: Run, rows: Tensor, labels: Tensor, **options: Any) -> Tensor:
        training.append(rows)
        return attribute_vector(run, rows, labels, **options)

    monkeypatch.setattr(latent_arithmetic, "attribute_vector", record_rows)
    monkeypatch.setattr(latent_arithmetic, "_classifier", lambda x, y: _AlwaysTrue())
    evaluation = evaluate_edit(run, x, has, z[:, 1] > 0)
    assert len(training[0]) == 200
    test = [row for row in x[~has] if not (row == training[0]).all(1).any()]
    assert evaluation.rows == len(test)
    assert evaluation.changed == 0
    assert evaluation.preserved == 1
    assert evaluation.control == 0


class _AlwaysTrue:
    """A classifier that predicts the attribute for every row."""

    def predict(self, x: Tensor) -> Any:
        return torch.ones(len(x)).numpy()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3), r"labels of shape \(5,\), got \(3,\)"),
        (torch.arange(5), "labels == k"),
        (torch.ones(5), "All labels are equal"),
    ],
)
def test_attribute_vector_rejects_invalid_labels(run: Run, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attribute_vector(run, torch.randn(5, 4), labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run, x: edit(run, x, torch.zeros(3)), r"has shape \(2,\), got \(3,\)"),
        (lambda run, x: edit(run, x, torch.zeros(2), site="w"), "codes are .'z'.; got site='w'"),
        (lambda run, x: linear_path(x, x, 1), "at least 2, got 1"),
        (lambda run, x: spherical_path(x, x[:2]), r"one shape; got \(5, 4\) and \(2, 4\)"),
        (lambda run, x: traverse(x, 4, torch.zeros(2)), "dimensions 0 to 3; got dimension=4"),
        (
            lambda run, x: evaluate_edit(run, x, torch.tensor([0, 1, 0, 1, 0]), torch.ones(5)),
            "`rest` is one class",
        ),
    ],
)
def test_latent_arithmetic_rejects_invalid_arguments(run: Run, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(run, torch.randn(5, 4))
