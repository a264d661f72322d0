"""Remedies as commands that the command line accepts."""

import shlex
from types import SimpleNamespace
from typing import Any

import pytest

from ppl_lvm.diagnostics.finding import Finding, Verdict
from ppl_lvm.report.remedies import fit_command, remedies


def run(**changes: Any) -> Any:
    """A run of a factor model, as far as remedies read it."""
    record: dict[str, Any] = {
        "model": {
            "name": "FactorAnalysis",
            "address": "ppl_lvm.models.factor_analysis:FactorAnalysis",
            "settings": {"latent": 2},
        },
        "guide": {
            "name": "AmortizedNormal",
            "address": "ppl_lvm.guides.amortized:AmortizedNormal",
            "settings": {},
        },
        "data": {
            "name": "iris",
            "source": {"source": "digits(binarize=8)", "columns": None},
            "train_rows": 100,
            "validation": 50,
        },
        "objective": "ELBO(num_particles=1)",
        "request": {"objective": None},
        "options": {"num_steps": 500, "optimizer": "Adam(lr=0.02)", "batch_size": 100},
        "num_restarts": 1,
    }
    objective = SimpleNamespace(num_particles=1, target="ELBO")
    record |= changes
    return SimpleNamespace(
        record=record, pair=SimpleNamespace(objective=objective), directory=None, guide=None,
        results={"steps": 500},
    )  # fmt: skip


def row(slug: str, verdict: Verdict = "bad", name: str = "", remedy: str = "Do it.") -> Finding:
    return Finding(question="?", name=name, slug=slug, verdict=verdict, remedy=remedy)


def test_command_repeats_the_fit_with_what_is_not_the_default() -> None:
    words = shlex.split(fit_command(run()))
    assert words[:5] == ["ppl-lvm", "fit", "ppl_lvm.models:FactorAnalysis", "--data",
                         "digits(binarize=8)"]  # fmt: skip
    pairs = set(zip(words[5::2], words[6::2], strict=True))
    assert pairs == {
        ("--num-steps", "500"),
        ("--optimizer", "Adam(lr=0.02)"),
        ("--set", "latent=2"),
        ("--guide", "ppl_lvm.guides:AmortizedNormal"),
        ("--validation", "50"),
    }
    nameless = run(data={"name": "x", "source": None, "train_rows": 9, "validation": None})
    assert fit_command(nameless).startswith("fit(FactorAnalysis, ppl_lvm.guides:AmortizedNormal")


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (row("convergence"), "--num-steps 1500"),
        (row("convergence", name="restarts that reached the best bound"), "--restarts 10"),
        (row("khat"), "--guide ppl_lvm.guides:AmortizedMultivariateNormal"),
        (row("predictive"), "--set latent=3"),
        (row("latents"), "--kl-annealing 166"),
        (row("mixtures", "warning", "components used of 2"), "--restarts 10"),
        (row("generalization", "unknown"), "--validation 0.1"),
        (row("gradient"), "ppl-lvm check ppl_lvm.models:FactorAnalysis"),
    ],
)
def test_remedy_is_the_fit_with_a_change_that_comes_first(finding: Finding, words: str) -> None:
    (remedy,) = remedies(run(), [finding])
    assert words in remedy.command
    assert remedy.why == finding.remedy
    if remedy.command.startswith("ppl-lvm fit"):
        place = shlex.split(remedy.command).index(words.split()[0])
        assert place == 5


def test_remedies_are_ranked_and_at_most_three_and_training_comes_first() -> None:
    rows = [row("khat", "warning"), row("predictive"), row("latents"), row("gradient")]
    commands = [r.command for r in remedies(run(), rows)]
    assert len(commands) == 3
    assert "latent=3" in commands[0]
    unfinished = [r.command for r in remedies(run(), [*rows, row("convergence")])]
    assert not any("latent=3" in c for c in unfinished)
    assert not remedies(run(), [row("drift", "unknown"), row("mixtures", "unknown")])
    tempered = run(options={"kl_weight": 8.0, "num_steps": 500})
    assert "--kl-weight 1" in remedies(tempered, [row("latents")])[0].command
