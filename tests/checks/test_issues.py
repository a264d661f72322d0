"""Printed issues, and checks without side effects."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.checks import Issue, check
from ppl_lvm.checks.issues import Issues
from ppl_lvm.guides import auto_guide
from ppl_lvm.models import VAE


def _model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def _outside(x: Tensor) -> None:
    pyro.param("idle", torch.zeros(2))
    pyro.sample("y", dist.Normal(x[:, 1], 1.0).to_event(1), obs=x[:, 1])
    _model(x)


def test_check_has_no_issues_for_a_valid_pair(x: Tensor) -> None:
    issues = check(_model, _guide, x)
    assert len(issues) == 0
    assert issues.ok
    assert str(issues).startswith("Nothing found: the guide fits the model.\n\nObjectives")


def test_issues_print_errors_first_with_place_and_remedy(x: Tensor) -> None:
    issues = check(_outside, _guide, x, num_rows=2 * len(x))
    assert not issues.ok
    assert [issue.severity for issue in issues] == ["error", "warning"]
    assert issues.codes == ["outside-data-plate", "no-gradient"]
    assert f"({Path(__file__).relative_to(Path.cwd())}:" in str(issues)
    assert "remedy: Move pyro.sample('y', ...)" in str(issues)


def test_issues_drop_duplicates() -> None:
    one = Issue("code", "note", "z", "What.", "Why.", "Do.")
    assert len(Issues([one, one])) == 1


def test_issue_prints_the_absolute_path_of_a_file_outside_the_directory() -> None:
    one = Issue("code", "note", "z", "What.", "Why.", "Do.", "/elsewhere/mine.py", 3)
    assert "(/elsewhere/mine.py:3)" in str(one)


class _Normed(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.net(x).squeeze(-1), 1.0))


def _local(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def test_check_has_no_side_effects(x: Tensor) -> None:
    guide = _Normed()
    pyro.param("mine", torch.tensor(3.0))
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    check(_local, guide, x)
    assert torch.equal(state, torch.get_rng_state())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    for name, value in guide.state_dict().items():
        assert torch.equal(before[name], value)
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_check_runs_a_vae_a_few_times() -> None:
    """Its time is a small part of any fit's: one run takes no longer than a step."""
    x = (torch.rand(128, 64) > 0.5).float()
    model = VAE(8)
    model.initialize(x)
    guide = auto_guide(model, x)
    runs: list[nn.Module] = []
    for program in (model, guide):
        program.register_forward_pre_hook(lambda program, _: runs.append(program))
    assert check(model, guide, x).ok
    assert 2 <= len(runs) <= 80  # 62 when this was written


@pytest.mark.parametrize("setting", [True, False])
def test_check_enables_gradients_in_every_mode_of_the_caller(setting: bool, x: Tensor) -> None:
    with torch.set_grad_enabled(setting):
        assert len(check(_model, _guide, x)) == 0
