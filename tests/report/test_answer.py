"""Answer of a report by rows of a diagnosis."""

from typing import Any

import pytest

from ppl_lvm.diagnostics import DIAGNOSTICS
from ppl_lvm.diagnostics.base import USES
from ppl_lvm.diagnostics.finding import VERDICTS, Finding, Verdict
from ppl_lvm.report.answer import GLYPHS, SENTENCES, USE_NAMES, answer
from ppl_lvm.report.remedies import RULES

QUESTIONS = {d.slug: d.question for d in DIAGNOSTICS}


def rows(**verdicts: Verdict) -> list[Finding]:
    """A row for each diagnostic: good, or of the given verdict."""
    by_slug: dict[str, Any] = {d.slug: "good" for d in DIAGNOSTICS} | verdicts
    return [
        Finding(question=QUESTIONS[s], name=f"name of {s}", value=1.0, verdict=v, slug=s)
        for s, v in by_slug.items()
    ]


def uses(findings: list[Finding]) -> dict[str, str]:
    names = {text: use for use, text in USE_NAMES.items()}
    return {names[u.name]: u.verdict for u in answer(findings).uses}


def test_every_diagnostic_has_words_a_rule_and_known_uses() -> None:
    assert {d.question for d in DIAGNOSTICS} == set(SENTENCES)
    assert {d.slug for d in DIAGNOSTICS} == set(RULES)
    assert {use for d in DIAGNOSTICS for use in d.spoils} == set(USES) == set(USE_NAMES)
    assert set(GLYPHS) == set(VERDICTS)


def test_sound_fit_is_trusted() -> None:
    result = answer(rows())
    assert result.verdict == "good"
    assert {u.verdict for u in result.uses} == {"good"}
    assert not [q for q in result.questions if q.verdict != "good"]


@pytest.mark.parametrize(
    ("slug", "spoiled"),
    [("khat", {"uncertainty"}), ("latents", {"codes"}), ("predictive", {"samples"}),
     ("stability", {"groups"}), ("generalization", {"density", "samples"})],
)  # fmt: skip
def test_fault_spoils_its_uses_only(slug: str, spoiled: set[str]) -> None:
    bad = rows(**{slug: "bad"})
    assert {use for use, verdict in uses(bad).items() if verdict == "bad"} == spoiled
    assert answer(bad).verdict == "warning"
    assert answer(bad).questions[0].name == QUESTIONS[slug]
    care = rows(**{slug: "warning"})
    assert {use for use, verdict in uses(care).items() if verdict == "warning"} == spoiled


def test_sentence_names_the_refused_use_and_its_reason_first() -> None:
    """A narrow guide: the gap of the bound spoils no use, and comes after what does."""
    narrow = answer(rows(tightness="bad", khat="bad"))
    assert narrow.sentence.startswith("Not for uncertainty of the latents. The guide is far from")
    assert "name of khat: 1." in narrow.sentence.lower()
    assert "Also: The bound is far below log p(x)." in narrow.sentence
    doubtful = answer(rows(tightness="bad", khat="warning"))
    assert doubtful.sentence.startswith("The bound is far below log p(x).")


def test_unfinished_training_comes_before_everything() -> None:
    result = answer(rows(convergence="bad", khat="bad"))
    assert result.verdict == "bad"
    assert result.sentence.startswith("Training has not finished.")
    assert {u.verdict for u in result.uses} == {"bad"}
    assert len(result.grouped_uses) < len(result.uses)
    assert answer(rows(), degenerate="Column 1 has no noise").verdict == "bad"


def test_untested_fit_is_not_trusted() -> None:
    nothing: dict[str, Any] = {d.slug: "unknown" for d in DIAGNOSTICS}
    assert answer(rows(**nothing)).verdict == "unknown"
    assert answer([]).verdict == "unknown"
    untested = rows(calibration="unknown", khat="unknown", vsbc="unknown")
    assert uses(untested)["uncertainty"] == "unknown"
    exact = answer(rows(khat="exact", calibration="exact", vsbc="exact"))
    assert exact.verdict == "good"
    verdicts = {q.name: q.verdict for q in exact.questions}
    assert verdicts[QUESTIONS["khat"]] == verdicts[QUESTIONS["calibration"]] == "exact"
