"""The smaller last batch of an epoch."""

from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import check, fit


class Decoder(PyroModule):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), norm(4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), norm(4), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.1).to_event(1))


def pair(model: Any, guide: Any) -> tuple[Any, Any]:
    return Decoder(model), Encoder(guide)


X = torch.randn(33, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("norms", "roles"),
    [
        ((nn.BatchNorm1d, nn.LayerNorm), ["model"]),
        ((nn.LayerNorm, nn.BatchNorm1d), ["guide"]),
        ((nn.BatchNorm1d, nn.BatchNorm1d), ["model", "guide"]),
    ],
)
def test_check_reports_a_batch_norm_of_a_last_batch_of_one_row(
    norms: tuple[Any, Any], roles: list[str]
) -> None:
    issues = check(*pair(*norms), X[:16], num_rows=33)
    assert issues.codes == ["last-batch"] * len(roles)
    names = {"model": "net.1", "guide": "encoder.1"}
    for issue, role in zip(issues, roles, strict=True):
        assert issue.message == (
            "batch_size=16: of 33 rows the last batch has 1, and the "
            f"{role}'s {names[role]!r} (BatchNorm1d) has no variance of one row."
        )
        assert "batch_size=17" in issue.remedy
        assert "nn.LayerNorm" in issue.remedy


@pytest.mark.parametrize(
    ("norm", "batch", "num_rows"),
    [
        (nn.LayerNorm, 16, 33),  # a norm of each row
        (nn.BatchNorm1d, 17, 33),  # the remedy
        (nn.BatchNorm1d, 11, 33),
        (nn.BatchNorm1d, 33, 33),
    ],
)
def test_check_accepts_norms_and_batches_that_train(norm: Any, batch: int, num_rows: int) -> None:
    assert "last-batch" not in check(*pair(norm, norm), X[:batch], num_rows=num_rows).codes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Particles run one by one")
def test_fit_rejects_the_last_batch_before_training() -> None:
    options: dict[str, Any] = {"num_steps": 6, "progress": False, "engine": "eager"}
    programs = pair(nn.BatchNorm1d, nn.BatchNorm1d)
    with pytest.raises(ValueError, match=r"cannot be trained[\s\S]*batch_size=16.*'net\.1'"):
        fit(*programs, X, batch_size=16, **options)
    assert len(fit(*programs, X, batch_size=17, **options).history["bound"]) == 6


def test_check_names_the_remedy_for_batches_of_one_row() -> None:
    issues = check(*pair(nn.BatchNorm1d, nn.LayerNorm), X[:1], num_rows=33)
    assert issues.codes == ["model-fails"]
    assert "batch_size=2 or more" in issues[0].remedy
