"""Generators whose truth is known."""

import numpy as np
import pytest
import torch

from ppl_lvm.data import load_data


def test_bars_have_their_length_and_their_topics() -> None:
    data = load_data("bars(n=400, size=4, length=60, seed=3)")
    x = data.tensors[0]
    assert data.image_shape == (4, 4)
    assert torch.equal(x.sum(1), torch.full((400,), 60.0))
    assert data.labels is not None
    for topic in range(8):  # documents that have most of a topic use its words most
        rows = x[data.labels == topic].mean(0).reshape(4, 4)
        line = rows[topic] if topic < 4 else rows[:, topic - 4]
        others = (rows.sum() - line.sum()) / 12
        assert line.mean() > 1.5 * others


def test_grouped_lines_are_those_of_its_recipe() -> None:
    x = load_data("grouped(n=6000, groups=3, noise=0.5, seed=0)").tensors[0].double().numpy()
    for g in range(3):
        own = x[x[:, 0] == g]
        design = np.stack([np.ones(len(own)), own[:, 1]], 1)
        line, left, *_ = np.linalg.lstsq(design, own[:, 2], rcond=None)
        error = 0.5 / len(own) ** 0.5
        assert left[0] / len(own) == pytest.approx(0.25, abs=5 * 0.25 * (2 / len(own)) ** 0.5)
        assert abs(line[0] - 1) < 5
        assert error < 0.05
    sizes = np.bincount(x[:, 0].astype(int))
    assert (np.diff(sizes) < 0).all()
