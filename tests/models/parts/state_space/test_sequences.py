"""Checks of sequences."""

from typing import Any

import pytest
import torch

from ppl_lvm import fit_em
from ppl_lvm.models import DeepMarkovModel, HiddenMarkovModel, LinearStateSpace

MODELS = (HiddenMarkovModel, LinearStateSpace, DeepMarkovModel)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("padded", [False, True])
def test_sequence_models_reject_one_series_as_sequences_of_one_step(
    model: Any, padded: bool
) -> None:
    series = torch.randn(40, 1, 1)
    x = torch.cat([series, torch.full((40, 2, 1), torch.nan)], 1) if padded else series
    message = rf"{model.__name__}: all 40 sequences have one step.* pass x\[None\] .*--one-sequence"
    with pytest.raises(ValueError, match=message):
        model(2).initialize(x)
    model(2).initialize(series.view(1, 40, 1))  # one sequence of forty steps
    x = torch.cat([x, torch.full((40, 1, 1), torch.nan)], 1)
    x[3, -1] = 0.0  # one sequence goes on
    model(2).initialize(x)


def test_linear_state_space_rejects_a_column_as_a_table_of_one_step() -> None:
    with pytest.raises(ValueError, match="LinearStateSpace: all 40 sequences have one step"):
        fit_em(LinearStateSpace(1), torch.randn(40, 1))


def test_hmm_of_one_series_learns_its_transitions() -> None:
    torch.manual_seed(0)
    state = ((torch.rand(400) < 0.05).cumsum(0) % 2).double()
    x = 4 * state + torch.randn(400)
    run = fit_em(HiddenMarkovModel(2), x[None], tolerance=1e-4)
    model: Any = run.model
    persistence = model.transition.diagonal().min().item()
    assert persistence > 0.9, persistence
