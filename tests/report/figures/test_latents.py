"""Figures of codes: traversal supports, chains, levels, topics."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import PPCA, VAE, BernoulliVAE, Diffusion, LatentDirichletAllocation, ProdLDA
from ppl_lvm.posterior.topics import coherence
from ppl_lvm.report import run_figures
from ppl_lvm.report.figures.latents import _traversal_codes, chain, reconstruct
from ppl_lvm.report.figures.topics import draw as draw_topics
from ppl_lvm.report.figures.topics import topics
from ppl_lvm.report.run_view import RunView


def fitted_view(model: object, source: object) -> RunView:
    data = load_data(source)
    run = fit(model, None, data, num_steps=2, engine="eager")  # type: ignore[arg-type]
    return RunView(run, data, data.tensors)


def test_traversals_stay_in_the_support_of_the_code() -> None:
    view = fitted_view(LatentDirichletAllocation(topics=3), "bars(n=20)")
    z = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]])
    values, moved = _traversal_codes(view, "theta", z, torch.tensor([0, 2]))
    assert torch.allclose(moved.sum(-1), torch.ones(2, 9))
    assert (moved >= 0).all()
    assert torch.allclose(moved[1, :, 2], values[1])
    assert torch.allclose(
        moved[1, 4, :2], torch.tensor([0.25, 0.25])
    )  # the others keep their ratio
    bits = fitted_view(BernoulliVAE(2, hidden=(4,)), torch.eye(6))
    values, moved = _traversal_codes(bits, "z", torch.rand(6, 2), torch.tensor([1]))
    assert (values.min(), values.max()) == (0, 1)
    assert torch.equal(moved[0, :, 1], values[0])
    free = fitted_view(PPCA(latent=2), "iris")
    values, _ = _traversal_codes(free, "z", torch.randn(50, 2), torch.tensor([0]))
    assert values.min() < -1


@pytest.mark.slow
def test_chain_figure_goes_from_noise_to_rows() -> None:
    view = fitted_view(Diffusion(steps=3, hidden=(4,)), "moons")
    assert view.chain == ["z_3", "z_2", "z_1", "z_0"]
    figure = chain(view)
    assert figure is not None
    assert [a.get_title() for a in figure.axes[:5]] == ["z_3", "z_2", "z_1", "z_0", "x"]
    assert fitted_view(PPCA(), "iris").chain == []


def test_categories_are_drawn_as_levels() -> None:
    x = torch.randint(0, 5, (30, 6)).float()
    view = fitted_view(VAE(2, hidden=(4,), likelihood="categorical", categories=5), x)
    back = reconstruct(view)
    assert back is not None
    assert back.shape == x.shape
    assert 0 <= back.min() < back.max() <= 4
    assert view.decoded["x"].shape == (30, 6, 5)


def test_topics_figure_uses_the_topics_of_the_model() -> None:
    view = fitted_view(ProdLDA(topics=3), "bars(n=20, size=3)")
    figure = topics(view)
    assert figure is not None
    shown = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)[:3, :3]
    assert np.allclose(shown.ravel(), view.run.model.topic_words()[0])  # type: ignore[attr-defined]
    table = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]])
    bars = draw_topics(table, words=["a", "b", "c"]).axes
    assert [t.get_text() for t in bars[0].get_yticklabels()] == ["b", "c", "a"]
    assert [t.get_text() for t in bars[1].get_yticklabels()] == ["a", "c", "b"]
    counts = torch.tensor([[1.0, 0.0, 2.0], [3.0, 1.0, 1.0], [0.0, 2.0, 0.0]])
    titles = [a.get_title("left") for a in draw_topics(table, counts=counts).axes]
    each = coherence(table, counts, 3)
    assert titles == [f"topic {k}, coherence {each[k].item():.2f}" for k in range(2)]
    six = draw_topics(torch.full((6, 4), 0.25), (2, 2)).axes[0].get_yticklabels()
    assert [t.get_text() for t in six] == ["0–4", "5"]


def test_failing_figure_is_named_and_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(view: RunView) -> None:
        raise ValueError("no paper")

    figure = dataclasses.replace(run_figures.RUN_FIGURES["density"], draw=broken)
    monkeypatch.setitem(run_figures.RUN_FIGURES, "density", figure)
    view = fitted_view(PPCA(), "iris")
    with pytest.warns(UserWarning, match="'density' could not be drawn: no paper"):
        drawn = run_figures.figures(view.run, view.data)
    assert "samples" in drawn


def test_figures_omit_rows_with_missing_values() -> None:
    x = load_data("iris").tensors[0].clone()
    x[::7, 1] = torch.nan
    data = load_data(x, missing="keep")
    run = fit(PPCA(), None, data, num_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "samples" in run_figures.figures(run, data)
