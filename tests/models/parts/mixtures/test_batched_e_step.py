"""The shared products against one start at a time."""

import pytest
import torch
from torch import Tensor

from ppl_lvm.models.gmm import COVARIANCES, GaussianMixture
from ppl_lvm.models.parts.mixtures import batched_e_step as mixture_features
from ppl_lvm.models.parts.mixtures import em as mixture_em

State = dict[str, Tensor]


pytestmark = pytest.mark.usefixtures("doubles")


def _starts(x: Tensor, covariance: str, R: int) -> State:
    model, states = GaussianMixture(4, covariance=covariance, floor=1e-12), []
    for seed in range(R):
        torch.manual_seed(seed)
        model.initialize(x)
        states.append(model.em_state())
    return {name: torch.stack([s[name] for s in states]) for name in states[0]}


def _close(result: tuple[State, Tensor], state: State, x: Tensor, covariance: str) -> None:
    for r in range(len(result[1])):
        one = {name: t[r] for name, t in state.items()}
        sums, log_likelihood = mixture_em.expect(one, x, covariance)
        torch.testing.assert_close(result[1][r], log_likelihood, rtol=1e-12, atol=0)
        for name, t in sums.items():
            torch.testing.assert_close(result[0][name][r], t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_batched_e_step_equals_the_e_step_of_each_restart(covariance: str) -> None:
    x = torch.randn(300, 3) * torch.tensor([1.0, 100.0, 1e-3]) + 1e4
    state = _starts(x, covariance, 3)
    _close(mixture_features.expect(state, x, covariance), state, x, covariance)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_batched_e_step_uses_the_accurate_e_step_for_narrow_components(
    covariance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    centers = torch.randn(4, 3)[torch.arange(300) % 4]
    x = centers + 1e-5 * torch.randn(300, 3)
    state = _starts(x, covariance, 3)
    state["variance"][0] += 0.1 * (torch.eye(3) if covariance in ("full", "tied") else 1)
    _close(mixture_features.expect(state, x, covariance), state, x, covariance)
    monkeypatch.setattr(mixture_features, "LOST", torch.inf)  # the wrong twin: features for all
    with pytest.raises(AssertionError):
        _close(mixture_features.expect(state, x, covariance), state, x, covariance)


def test_batched_e_step_takes_missing_values() -> None:
    x = torch.randn(60, 3)
    x[::7, 1] = torch.nan
    state = _starts(x, "full", 2)
    _close(mixture_features.expect(state, x, "full"), state, x, "full")
