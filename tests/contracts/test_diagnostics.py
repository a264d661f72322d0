"""Contract of the diagnostics.

Good cases are good, and every row fails in a faulty case: a diagnostic that cannot fail is a
defect. A diagnostic without cases fails here.
"""

import re
from typing import Any

import pytest
import torch
from diagnostic_cases import collect_cases
from gaussian_pairs import ExactGuide, LinearGaussian, mean_guide, mean_model
from pyro.infer import Trace_ELBO

from ppl_lvm.diagnostics import DIAGNOSTICS
from ppl_lvm.diagnostics.base import Context, Diagnostic, Restarts
from ppl_lvm.diagnostics.finding import VERDICTS, Finding
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

CASES = collect_cases()
SOUND = ("good", "exact", "not applicable")
SLUGS = [d.slug for d in DIAGNOSTICS]


def general_name(row: Finding) -> str:
    """A row's name with "…" for values that differ between fits."""
    return re.sub(r"\d+(\.\d+)?%?|\([^)]*bound\)", "…", row.name)


def test_every_diagnostic_has_cases_and_a_unique_slug() -> None:
    assert len(set(SLUGS)) == len(SLUGS)
    assert set(CASES) == set(SLUGS)


@pytest.mark.slow
@pytest.mark.parametrize("diagnostic", DIAGNOSTICS, ids=SLUGS)
def test_diagnostic_grades_good_cases_good_and_every_row_fails_in_a_faulty_one(
    diagnostic: Diagnostic,
) -> None:
    cases = CASES[diagnostic.slug]
    rows = [row for case in cases.good for row in case().findings()]
    graded = [row for row in rows if general_name(row) not in cases.ungraded]
    assert graded
    assert not [(r.name, r.formatted, r.why) for r in graded if r.verdict not in SOUND]
    faulty = [row for case in cases.faulty for row in case().findings()]
    failed = [row for row in faulty if row.verdict in ("warning", "bad")]
    unknown = {general_name(row) for row in faulty if row.verdict == "unknown"}
    never_failed = {general_name(row) for row in graded} - {general_name(row) for row in failed}
    assert not never_failed - (unknown & cases.never_bad)
    assert all(row.remedy for row in failed)
    assert {row.question for row in rows + faulty} == {diagnostic.question}
    assert all(row.verdict in VERDICTS and row.source for row in failed)


def context(pair: ModelGuidePair, x: torch.Tensor, **options: Any) -> Context:
    return Context(pair, {"bound": []}, (x,), **options)


def test_every_diagnostic_applies_to_some_pair() -> None:
    linear = LinearGaussian()
    pair = ModelGuidePair(linear, ExactGuide(linear), Trace_ELBO())
    joint = ModelGuidePair(mean_model, mean_guide(), Trace_ELBO())
    trajectory = Trajectory(responsibilities={"k": torch.ones(5, 1)})
    restarts = Restarts((0.0, 0.0), (trajectory, trajectory))
    contexts = [
        context(pair, linear.simulate(5), refits=20, restarts=restarts),
        context(joint, torch.zeros(5)),
    ]
    applied = {d.slug for d in DIAGNOSTICS if any(d.applies(c) for c in contexts)}
    assert applied == set(SLUGS)
    plain = context(pair, linear.simulate(5))
    omitted = {d.slug for d in DIAGNOSTICS if not d.applies(plain)}
    assert omitted == {"vsbc", "prior", "stability"}
