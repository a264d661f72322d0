"""The ways to fit: what each takes is what its function takes, and anything else is a mistake."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ppl_lvm.cli import app
from ppl_lvm.cli.dispatch import _ALWAYS, _GRADIENT, FIT_METHODS, FitMethod
from ppl_lvm.cli.fit_command import fit, print_results
from ppl_lvm.fitting.svi import fit as fit_pair
from ppl_lvm.models import VAE, BayesianGaussianMixture, GaussianMixture
from ppl_lvm.programs.loading import load_program
from ppl_lvm.runs.directory import load_run


@pytest.mark.parametrize("way", [*FIT_METHODS.values(), _GRADIENT], ids=lambda way: way.function)
def test_what_a_way_takes_is_what_its_function_takes(way: FitMethod) -> None:
    taken = inspect.signature(load_program(way.function)).parameters
    assert set(way.options.values()) | way.arguments <= taken.keys()
    offered = inspect.signature(fit).parameters.keys() - {"context"}
    assert way.options.keys() <= offered


def test_every_option_serves_some_way() -> None:
    offered = inspect.signature(fit).parameters.keys() - {"context"}
    assert offered == _ALWAYS | _GRADIENT.options.keys()


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    z = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    x = (z * torch.tensor([2.0, 1.0, -1.0]) > 0).int().tolist()
    (tmp_path / "x.csv").write_text("a,b,c\n" + "\n".join(",".join(map(str, r)) for r in x))
    words = ["fit", "ppl_lvm.models:FactorModel", "--data", "x.csv", "--set", "latent=1"]
    return [*words, "--set", "likelihood=bernoulli"]


def _run(words: list[str]) -> Result:
    return CliRunner().invoke(app, words)


def test_monte_carlo_em_from_the_command_line(answers: list[str]) -> None:
    mcem = "mcem(num_draws=3, warmup=5, guide_steps=10)"
    words = [*answers, "--objective", mcem, "--num-steps", "3", "--validation", "10", "--json"]
    done = _run(words)
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout.splitlines()[-1])
    run = load_run(results["directory"])
    assert run.record["options"] == {
        "max_iterations": 3,
        "num_draws": 3,
        "warmup": 5,
        "guide_steps": 10,
        "seed": 0,
    }
    assert run.record["data"]["held_out_rows"] == results["log_evidence_rows"] == 10
    assert run.draws["z"].shape == (3, 30, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "mcem", "--restarts", "3"], "--objective mcem takes no --restarts"),
        (["--objective", "em", "--guide", "x.py:G"], "--objective em takes no --guide"),
        (["--objective", "mcem(draws=3)"], "mcem takes guide_steps, num_draws, warmup, got draws"),
        (["--objective", "mcem(max_iterations=3)"], "got iterations. Give it as --num-steps."),
        (["--objective", "MCEM"], "There is no objective 'MCEM'. Did you mean mcem?"),
        (["--objective", "em(0.6)"], "is not a name with literal keyword arguments"),
        (["--objective", "mcem", "--num-steps", "0"], "iterations must be a whole number"),
    ],
)
def test_what_a_way_does_not_take(answers: list[str], words: list[str], message: str) -> None:
    done = _run([*answers, *words])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert not Path("runs").exists()


def test_a_tempered_bound_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    """With half of the KL term it lies above log p(x)."""
    x = torch.bernoulli(torch.full((20, 4), 0.5))
    for weight, said in ((0.5, "no bound on log p(x)"), (2.0, "KL term times 2"), (1.0, "rows)")):
        run = fit_pair(
            VAE, None, x, settings={"latent": 1}, num_steps=2, kl_weight=weight, progress=False
        )
        print_results(run)
        words = " ".join(capsys.readouterr().out.split())
        assert said in words
        assert ("KL term" in words) is (weight != 1)


def test_rows_that_join_others_and_rows_on_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside global latents the bound and the evidence of rows held out are of different things."""
    x = torch.randn(40, 2)
    said = {}
    for model in (BayesianGaussianMixture, GaussianMixture):
        print_results(
            fit_pair(
                model,
                None,
                x,
                settings={"components": 2},
                validation=0.25,
                num_steps=2,
                progress=False,
            )
        )
        said[model] = " ".join(capsys.readouterr().out.split())
    assert (
        "(the KL of global latents shared with the training rows)" in said[BayesianGaussianMixture]
    )
    assert "(held-out rows as a data set of their own," in said[BayesianGaussianMixture]
    assert "global" not in said[GaussianMixture]
    assert "(held-out rows, " in said[GaussianMixture]
