"""Figures of sequences and hidden states, read back."""

import numpy as np
import torch

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import HiddenMarkovModel
from ppl_lvm.report.figures.sequences import (
    data_and_samples,
    sampled_sequences,
    state_probabilities,
    states,
)
from ppl_lvm.report.run_view import RunView

DRAW = np.random.default_rng(0)


def test_data_and_samples_are_left_and_right() -> None:
    x, samples = DRAW.normal(size=(2, 4, 7, 2))
    figure = data_and_samples(x, samples, back=x + 1)
    assert len(figure.axes) == 8  # a row of two plots for each sequence
    left, right = figure.axes[2], figure.axes[3]  # the second sequence
    assert np.array_equal([line.get_ydata() for line in left.lines[:2]], x[1].T)
    assert np.array_equal(left.lines[3].get_ydata(), x[1, :, 1] + 1)
    assert np.array_equal(right.lines[1].get_ydata(), samples[1, :, 1])


def test_state_probabilities_are_stacked() -> None:
    x, p = DRAW.normal(size=(1, 5, 1)), DRAW.dirichlet(np.ones(3), (1, 5))
    behind = state_probabilities(x, p).axes[1]
    tops = [c.get_paths()[0].vertices[:, 1].max() for c in behind.collections]
    assert np.allclose(tops, p[0].cumsum(1).max(0))


def test_gaps_are_not_samples_as_values() -> None:
    x = torch.randn(5, 9)
    x[0, 3:5] = torch.nan
    data = load_data(x, missing="keep")
    run = fit(HiddenMarkovModel(states=2), None, data, num_steps=2)
    view = RunView(run, data, data.tensors)
    figure = sampled_sequences(view)
    assert figure is not None
    first = np.asarray(figure.axes[0].lines[0].get_ydata())
    assert np.array_equal(np.isnan(first), x[0].isnan().numpy())
    assert states(view) is not None
