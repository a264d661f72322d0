"""What adversarial training leaves behind: kept, loaded, resumed bit for bit, and refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import ppl_lvm.training.iterate
from ppl_lvm.cli import app
from ppl_lvm.core.storage import save_checkpoint
from ppl_lvm.fitting.adversarial import Adversaries, fit_adversarial, load_adversaries
from ppl_lvm.models.implicit import Implicit
from ppl_lvm.runs.directory import load_run

ASKED: dict[str, Any] = {"settings": {"latent": 1, "hidden": (8,)}, "batch_size": 16}
ASKED |= {"num_steps": 12, "progress": False}


def _rows() -> Tensor:
    return torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + 3.0


def _same(a: Adversaries, b: Adversaries) -> None:
    assert a.history == b.history
    for one, other in ((a.generator, b.generator), (a.discriminator, b.discriminator)):
        theirs = other.state_dict()
        assert all(torch.equal(t, theirs[name]) for name, t in one.state_dict().items())


def test_a_run_comes_back_whole(tmp_path: Path) -> None:
    found = fit_adversarial(Implicit, _rows(), validation=20, directory=tmp_path, **ASKED)
    again = load_adversaries(tmp_path)
    _same(found, again)
    assert again.results == found.results
    assert torch.equal(again.sample(5, seed=3), found.sample(5, seed=3))
    x = _rows()
    assert again.two_sample(x) == found.two_sample(x)
    assert found.results["two_sample_of"] == "held-out rows"
    assert found.record["data"]["held_out_rows"] == 20
    pictures = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert pictures == {"training.png", "samples.png"}


def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, count = {**ASKED, "checkpoint_seconds": 0.0}, 0
    whole = fit_adversarial(Implicit, _rows(), directory=tmp_path / "whole", **asked)

    def cut_off(*given: Any) -> None:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        save_checkpoint(*given)

    monkeypatch.setattr(ppl_lvm.training.iterate, "save_checkpoint", cut_off)
    place = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        fit_adversarial(Implicit, _rows(), directory=place, **asked)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has not finished"):
        load_adversaries(place)
    with pytest.raises(ValueError, match="options differs in penalty"):
        fit_adversarial(Implicit, _rows(), directory=place, resume=True, penalty=1.0, **asked)
    resumed = fit_adversarial(Implicit, _rows(), directory=place, resume=True, **asked)
    _same(whole, resumed)
    other_seed = fit_adversarial(Implicit, _rows(), seed=1, **asked)
    assert other_seed.history != whole.history
    _same(whole, fit_adversarial(Implicit, _rows(), directory=place, resume=True, **asked))


def test_a_discriminator_of_ones_own_is_asked_for(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    found = fit_adversarial(Implicit, _rows(), discriminator=own, directory=tmp_path, **ASKED)
    with pytest.raises(ValueError, match="was a Sequential of your own; pass it"):
        load_adversaries(tmp_path)
    _same(found, load_adversaries(tmp_path, discriminator=own))


def test_what_has_a_likelihood_and_what_has_none_are_told_apart(tmp_path: Path) -> None:
    fit_adversarial(Implicit, _rows(), directory=tmp_path, **ASKED)
    with pytest.raises(
        ValueError,
        match=r"adversarial run of Implicit, a model without a likelihood.*load_adversaries",
    ):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"Linear has no draw\(n\)"):
        fit_adversarial(nn.Linear(2, 2), _rows(), num_steps=1)
    with pytest.raises(ValueError, match=r"Unknown objective 'minmax'.*Did you mean minimax"):
        fit_adversarial(Implicit, _rows(), objective="minmax")


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("a,b\n" + "\n".join(f"{a:.3f},{b:.3f}" for a, b in _rows()))
    words = ["fit", "ppl_lvm.models.implicit:Implicit", "--data", "x.csv", "--num-steps", "3"]
    words += ["--batch-size", "16"]
    way = ["--objective", "adversarial(objective='minimax', penalty=0.01)"]
    done = CliRunner().invoke(app, [*words, *way, "--json"], catch_exceptions=False)
    results = json.loads(done.stdout.splitlines()[-1])
    found = load_adversaries(results["directory"])
    assert found.record["objective"] == "minimax"
    assert found.record["options"]["penalty"] == 0.01
    assert len(found.history["generator"]) == results["steps"] == 3
    told = CliRunner().invoke(app, [*words, *way, "--validation", "10"], catch_exceptions=False)
    assert "not tested: fewer than 20 rows" in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 80
