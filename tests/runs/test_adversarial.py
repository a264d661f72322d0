"""Directories of adversarial runs: save, load, resume, refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import ppl_lvm.training.iterate
from ppl_lvm import fit_adversarial
from ppl_lvm.cli import app
from ppl_lvm.core.storage import save_checkpoint
from ppl_lvm.models.implicit import Implicit
from ppl_lvm.runs.adversarial import Adversaries, load_adversaries
from ppl_lvm.runs.directory import load_run

OPTIONS: dict[str, Any] = {"settings": {"latent": 1, "hidden": (8,)}, "batch_size": 16}
OPTIONS |= {"num_steps": 12, "progress": False}


def _rows() -> Tensor:
    return torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + 3.0


def _same(a: Adversaries, b: Adversaries) -> None:
    assert a.history == b.history
    for one, other in ((a.generator, b.generator), (a.discriminator, b.discriminator)):
        theirs = other.state_dict()
        assert all(torch.equal(t, theirs[name]) for name, t in one.state_dict().items())


@pytest.mark.slow
def test_load_adversaries_restores_a_saved_run(tmp_path: Path) -> None:
    adversaries = fit_adversarial(Implicit, _rows(), validation=20, directory=tmp_path, **OPTIONS)
    loaded = load_adversaries(tmp_path)
    _same(adversaries, loaded)
    assert loaded.results == adversaries.results
    assert torch.equal(loaded.sample(5, seed=3), adversaries.sample(5, seed=3))
    x = _rows()
    assert loaded.two_sample(x) == adversaries.two_sample(x)
    assert adversaries.results["two_sample_of"] == "held-out rows"
    assert adversaries.record["data"]["held_out_rows"] == 20
    pictures = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert pictures == {"training.png", "samples.png"}


@pytest.mark.slow
def test_interrupted_adversarial_run_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, count = {**OPTIONS, "checkpoint_seconds": 0.0}, 0
    complete = fit_adversarial(Implicit, _rows(), directory=tmp_path / "complete", **options)

    def interrupt(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        save_checkpoint(*arguments)

    monkeypatch.setattr(ppl_lvm.training.iterate, "save_checkpoint", interrupt)
    directory = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        fit_adversarial(Implicit, _rows(), directory=directory, **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has not finished"):
        load_adversaries(directory)
    with pytest.raises(ValueError, match="options differs in penalty"):
        fit_adversarial(Implicit, _rows(), directory=directory, resume=True, penalty=1.0, **options)
    resumed = fit_adversarial(Implicit, _rows(), directory=directory, resume=True, **options)
    _same(complete, resumed)
    other_seed = fit_adversarial(Implicit, _rows(), seed=1, **options)
    assert other_seed.history != complete.history
    _same(complete, fit_adversarial(Implicit, _rows(), directory=directory, resume=True, **options))


def test_load_adversaries_requires_a_discriminator_that_the_user_passed(tmp_path: Path) -> None:
    discriminator = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    adversaries = fit_adversarial(
        Implicit, _rows(), discriminator=discriminator, directory=tmp_path, **OPTIONS
    )
    with pytest.raises(ValueError, match=r"was a user's Sequential. Pass it"):
        load_adversaries(tmp_path)
    _same(adversaries, load_adversaries(tmp_path, discriminator=discriminator))


def test_load_run_and_fit_adversarial_reject_programs_of_the_other_kind(tmp_path: Path) -> None:
    fit_adversarial(Implicit, _rows(), directory=tmp_path, **OPTIONS)
    with pytest.raises(
        ValueError,
        match=r"adversarial run of Implicit, a model without a likelihood.*load_adversaries",
    ):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"Linear has no draw\(n\)"):
        fit_adversarial(nn.Linear(2, 2), _rows(), num_steps=1)
    with pytest.raises(ValueError, match=r"Unknown objective 'minmax'.*Did you mean minimax"):
        fit_adversarial(Implicit, _rows(), objective="minmax")


def test_fit_adversarial_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("a,b\n" + "\n".join(f"{a:.3f},{b:.3f}" for a, b in _rows()))
    arguments = ["fit", "ppl_lvm.models.implicit:Implicit", "--data", "x.csv", "--num-steps", "3"]
    arguments += ["--batch-size", "16"]
    objective = ["--objective", "adversarial(objective='minimax', penalty=0.01)"]
    result = CliRunner().invoke(app, [*arguments, *objective, "--json"], catch_exceptions=False)
    results = json.loads(result.stdout.splitlines()[-1])
    adversaries = load_adversaries(results["directory"])
    assert adversaries.record["objective"] == "minimax"
    assert adversaries.record["options"]["penalty"] == 0.01
    assert len(adversaries.history["generator"]) == results["steps"] == 3
    untested = CliRunner().invoke(
        app, [*arguments, *objective, "--validation", "10"], catch_exceptions=False
    )
    assert "not tested: fewer than 20 rows" in untested.stdout
    assert max(map(len, untested.stdout.splitlines())) <= 80
