"""Answer of a report: trust, uses, and the questions behind.

Each diagnostic says what a fit that fails it should not be used for (`Diagnostic.spoils`). A use is
"no" where one of its rows is bad, "with care" where one is a warning, and "unknown" where nothing
was measured. The answer follows from the uses; an unfinished training comes before all of them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ppl_lvm.diagnostics import DIAGNOSTICS
from ppl_lvm.diagnostics.base import USES
from ppl_lvm.diagnostics.finding import Finding

GLYPHS = {
    "good": "✔",
    "exact": "✔",
    "warning": "!",
    "bad": "✘",
    "unknown": "?",
    "not applicable": "–",
}
WORDS = {
    "good": "Trust it",
    "warning": "Trust it for some things",
    "bad": "Not yet",
    "unknown": "Not enough to tell",
}
USE_NAMES = {
    "density": "density of rows and comparison of models",
    "codes": "codes of rows",
    "uncertainty": "uncertainty of the latents",
    "samples": "new samples",
    "groups": "clusters, topics or states",
}
# Question -> what to say first where its rows are good, doubtful, bad, and unknown.
SENTENCES = {
    "Has it converged?": (
        "Training has finished.",
        "Training may not have finished.",
        "Training has not finished.",
        "It is not known whether training has finished.",
    ),
    "How tight is the bound?": (
        "The bound is close to log p(x).",
        "The bound is somewhat below log p(x).",
        "The bound is far below log p(x).",
        "The distance of the bound to log p(x) is not known.",
    ),
    "Whose fault is the gap?": (
        "Little is lost by the encoder, its family, or overfitting.",
        "Something is lost by the encoder, its family, or overfitting.",
        "Much is lost by the encoder, its family, or overfitting.",
        "The loss by the encoder and by overfitting is not known.",
    ),
    "Is q a usable posterior?": (
        "The guide is close to the posterior.",
        "The guide differs from the posterior.",
        "The guide is far from the posterior.",
        "The distance of the guide to the posterior is not known.",
    ),
    "Is it calibrated?": (
        "Its uncertainties are right on simulated data.",
        "Its uncertainties are somewhat off on simulated data.",
        "Its uncertainties are wrong on simulated data.",
        "Its calibration was not tested.",
    ),
    "Does it reproduce the data?": (
        "Data of the model look like the data.",
        "Data of the model differ somewhat from the data.",
        "Data of the model differ from the data.",
        "It was not tested on new data.",
    ),
    "Is the latent space used?": (
        "The latents carry information on the rows.",
        "The latents are used in part.",
        "The latents are hardly used, or far from their prior.",
        "The use of the latents is not known.",
    ),
    "Mixtures: are the components sound?": (
        "The components are sound.",
        "Some components are empty, overlap, or depend on the restart.",
        "The components are degenerate, overlap, or depend on the restart.",
        "The components were not tested.",
    ),
    "Is the gradient good?": (
        "Every parameter learns.",
        "Some gradients are noisy.",
        "Some parameters do not learn.",
        "The gradient was not measured.",
    ),
}
EXACT = "Nothing is estimated."
SHORT = 25  # characters of a reason that says little
GRADES = ("good", "warning", "bad", "unknown")


@dataclass(frozen=True)
class Use:
    """One purpose of a fit.

    Attributes:
        name: the purpose, in words.
        verdict: "good", "warning", "bad" or "unknown".
        reason: sentence of the question that decides against it; empty where none does.
    """

    name: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Question:
    """The rows of one question: their verdict, a plain sentence, and the statistic behind it."""

    name: str
    verdict: str
    sentence: str
    statistic: str
    rows: Sequence[Finding]


@dataclass(frozen=True)
class Answer:
    """The first lines of a report.

    Attributes:
        verdict: "good", "warning", "bad" or "unknown".
        sentence: one sentence on what decides.
        uses: the purposes that apply to the model.
        questions: bad ones first, in the order of the table within a verdict.
    """

    verdict: str
    sentence: str
    uses: Sequence[Use]
    questions: Sequence[Question]

    @property
    def word(self) -> str:
        return WORDS[self.verdict]

    @property
    def grouped_uses(self) -> list[Use]:
        """Uses of the same verdict for the same reason as one."""
        groups: dict[tuple[str, str], list[str]] = {}
        for use in self.uses:
            groups.setdefault((use.verdict, use.reason), []).append(use.name)
        return [Use("; ".join(names), verdict, why) for (verdict, why), names in groups.items()]

    @property
    def glyph(self) -> str:
        return GLYPHS[self.verdict]


def grade(rows: Collection[Finding]) -> str:
    """The most serious verdict: bad, warning, good (exact too), else unknown."""
    verdicts = {f.verdict for f in rows}
    order = ("bad", "warning", "good", "exact", "unknown", "not applicable")
    return next((v for v in order if v in verdicts), "unknown").replace("exact", "good")


def questions(findings: Sequence[Finding]) -> list[Question]:
    """The questions, bad and doubtful ones first; rows that do not apply are left out."""
    shown = [f for f in findings if f.verdict != "not applicable"]
    result = []
    for name in dict.fromkeys(f.question for f in shown):
        rows = [f for f in shown if f.question == name]
        verdict = grade(rows)
        deciding = next((f for f in rows if f.verdict in (verdict, "exact")), rows[0])
        text = sentence(name, rows)
        if verdict == "good" and all(f.verdict == "exact" for f in rows):
            verdict, text = "exact", EXACT
        result.append(Question(name, verdict, text, statistic(deciding), rows))
    order = ("bad", "warning", "unknown", "good", "exact")
    return sorted(result, key=lambda q: order.index(q.verdict))


def sentence(question: str, rows: Collection[Finding]) -> str:
    """The plain sentence for the rows of a question."""
    texts = SENTENCES.get(question)
    return question if texts is None else texts[GRADES.index(grade(rows))]


def statistic(finding: Finding) -> str:
    """The number of a row with its name, or the reason for having none."""
    if finding.value is None:
        return f"{finding.name}: {finding.why}"
    return f"{finding.name}: {finding.formatted}"


def answer(
    findings: Sequence[Finding], kinds: Collection[str] = USES, degenerate: str | None = None
) -> Answer:
    """The answer by the rows of a diagnosis.

    Args:
        kinds: the purposes that the model has, of `USES`.
        degenerate: why the model rejects this fit; None if it does not.
    """
    asked = questions(findings)
    by_slug: dict[str, list[Finding]] = {}
    for f in findings:
        by_slug.setdefault(f.slug, []).append(f)
    uses = [_use(use, by_slug) for use in USES if use in kinds]
    training = grade([f for f in by_slug.get("convergence", ()) if "restarts" not in f.name])
    measured = sum(f.verdict in ("good", "warning", "bad", "exact") for f in findings)
    faults = [q for q in asked if q.verdict in ("bad", "warning")]
    worst = faults[0] if faults else None
    why = _reason(faults)
    if degenerate:
        uses = [Use(use.name, "bad", "The fit is degenerate") for use in uses]
        return Answer("bad", f"The fit is degenerate. {_with_stop(degenerate)}", uses, asked)
    if training == "bad":
        faults.sort(key=lambda q: q.name != by_slug["convergence"][0].question)
        return Answer("bad", _reason(faults), uses, asked)
    if measured < 3 or training == "unknown":
        unknown = next((q for q in asked if q.verdict == "unknown"), None)
        text = "Too little was measured." if unknown is None else unknown.sentence
        return Answer("unknown", text, uses, asked)
    if all(u.verdict == "good" for u in uses) and worst is None:
        return Answer("good", "Nothing that was tested speaks against it.", uses, asked)
    if not any(u.verdict in ("good", "warning") for u in uses):
        return Answer("bad", why or "No use of it passed its tests.", uses, asked)
    if worst is None:
        text = "Nothing that was tested speaks against it, but some uses were not tested."
        return Answer("good", text, uses, asked)
    refused = [use for use in uses if use.verdict == "bad"]
    faults.sort(key=lambda q: q.sentence.rstrip(".") not in {use.reason for use in refused})
    limit = f"Not for {' or '.join(use.name for use in refused)}. " if refused else ""
    return Answer("warning", limit + _reason(faults), uses, asked)


def _use(use: str, by_slug: dict[str, list[Finding]]) -> Use:
    rows = [f for d in DIAGNOSTICS if use in d.spoils for f in by_slug.get(d.slug, ())]
    specific = [f for d in DIAGNOSTICS if d.spoils == (use,) for f in by_slug.get(d.slug, ())]
    verdict = grade(rows)
    if verdict in ("good", "not applicable") and use != "density" and specific:
        verdict = grade(specific)  # a finished training says nothing of this use alone
    if verdict in ("good", "not applicable"):
        return Use(USE_NAMES[use], "good")
    deciding = [f for f in rows if f.verdict == verdict]
    if verdict == "unknown":
        return Use(USE_NAMES[use], verdict, "not tested")
    question = deciding[0].question
    return Use(USE_NAMES[use], verdict, sentence(question, deciding).rstrip("."))


def _reason(faults: Sequence[Question]) -> str:
    """The plain sentence of the first question with what was seen; those of two more bad ones."""
    if not faults:
        return ""
    first = faults[0]
    row = next(f for f in first.rows if f.verdict == first.verdict)
    detail = row.why or statistic(row)
    if row.slug == "khat":  # its number says how far
        detail = "; ".join(statistic(f) for f in first.rows if f.verdict == first.verdict)
    if row.slug == "convergence" and row.remedy and len(detail) < SHORT:
        detail = row.remedy.partition(". ")[0]  # the predicted gain
    text = f"{first.sentence} {_with_stop(detail)}"
    others = [q.sentence for q in faults[1:] if q.verdict == "bad"][:2]
    return f"{text} Also: {' '.join(others)}" if others else text


def _with_stop(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
