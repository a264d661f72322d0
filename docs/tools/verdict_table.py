"""Verdicts on normals of known quality: `python docs/tools/verdict_table.py verdicts.json`.

For each of 25 posteriors of posteriordb the normal with the moments of its chains, and seven of
known errors. Draws and verdict are those of a method that ends at this normal: weights
correct the draws where they are reliable. The truth is that of the draws, against the reference.
The table replaces that of docs/posteriors.md.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.approximation.automatic import find_posterior
from ppl_lvm.approximation.methods import judged
from ppl_lvm.approximation.normal import DenseNormal
from ppl_lvm.approximation.unconstrained import LogDensity
from ppl_lvm.benchmarks.posteriors import load, outcome, references

PAGE = Path(__file__).parents[1] / "posteriors.md"
BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"
SLOW = ("one_comp", "hmm", "garch", "lotka", "gp_pois")  # programs of many operations


def _shifted(by: float) -> Callable[[DenseNormal], DenseNormal]:
    def make(q: DenseNormal) -> DenseNormal:
        direction = torch.ones(q.dim) / q.dim**0.5
        return DenseNormal(q.loc + by * q.stretched(direction), q.scale_tril)

    return make


def _scaled(by: float) -> Callable[[DenseNormal], DenseNormal]:
    return lambda q: DenseNormal(q.loc, by * q.scale_tril)


def _mean_field(q: DenseNormal) -> DenseNormal:
    """The normal of independent values that is nearest in KL(q ‖ p): variances 1 / Λ_dd."""
    return DenseNormal(q.loc, torch.linalg.inv(q.covariance).diagonal().rsqrt().diag())


def _started(q: DenseNormal) -> DenseNormal:
    """A fit of few steps: means 2 sd off, and scales a third of the right ones."""
    return DenseNormal(q.loc + 2 * q.sd, 0.3 * q.sd.diag())


KINDS: dict[str, Callable[[DenseNormal], DenseNormal]] = {
    "the posterior's moments": lambda q: q,
    "too few steps": _started,
    "mean field": _mean_field,
    "a wrong mode, 8 sd away": _shifted(8.0),
    "mean off by 0.5 sd": _shifted(0.5),
    "scales halved": _scaled(0.5),
    "scales doubled": _scaled(2.0),
    "scales times 1.2": _scaled(1.2),
}


def measure(name: str) -> list[dict[str, Any]]:
    """One row per kind of normal."""
    known, reference = load(name), references()[name]
    target, generator = LogDensity(known.model, known.batch), torch.Generator().manual_seed(0)
    exact = find_posterior(target, generator).normal
    assert isinstance(exact, DenseNormal)
    rows = []
    for kind, make in KINDS.items():
        result = judged(target, make(exact), "normal", generator)
        draws = known.read(target.constrain(result.thinned()))
        rows.append(
            {
                "posterior": name,
                "kind": kind,
                "outcome": _outcome(draws, reference),
                "k_hat": result.k_hat,
                "reasons": result.reasons,
            }
        )
    return rows


def _outcome(draws: dict[str, Tensor], reference: dict[str, Any]) -> str:
    means, ratios = [], []
    for parameter, (mean, sd) in reference.items():
        x = draws[parameter].double()
        means.append(abs(float(x.mean()) - mean) / sd)
        ratios.append(float(x.std()) / sd)
    return outcome(max(means), min(ratios), max(ratios))


def tables(rows: list[dict[str, Any]]) -> str:
    """By kind, and by test as a classifier of draws that are visibly wrong."""
    kinds = []
    for kind in KINDS:
        of = [row for row in rows if row["kind"] == kind]
        wrong = [row for row in of if row["outcome"] == "visibly wrong"]
        right = [row for row in of if row["outcome"] != "visibly wrong"]
        missed = sum(not row["reasons"] for row in wrong)
        alarms = sum(bool(row["reasons"]) for row in right)
        kinds.append([kind, len(of), len(wrong), missed, len(right), alarms])
    header = ["normal", "fits", "visibly wrong", "of these called good", "others", "not good"]
    tests = []
    for title, test in TESTS.items():
        rates = []
        for label in ("visibly wrong", "close"):
            of = [row for row in rows if row["outcome"] == label]
            rates.append(f"{sum(map(test, of))} of {len(of)}")
        tests.append([title, *rates])
    columns = ["test", "alarms where visibly wrong", "alarms where close"]
    return f"{_table(header, kinds)}\n\n{_table(columns, tests)}"


TESTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "k̂ of all weights above 0.7": lambda row: row["k_hat"] > 0.7,
    "k̂ of all weights above 0.5": lambda row: row["k_hat"] > 0.5,
    "short chains move a mean by 0.3 sd": lambda row: any("move" in r for r in row["reasons"]),
    "short chains change a sd by a third": lambda row: any("change" in r for r in row["reasons"]),
    "verdict: any of them (k̂ above 0.7)": lambda row: bool(row["reasons"]),
}


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    torch.set_default_dtype(torch.float64)
    measured = json.loads(path.read_text()) if path.exists() else []
    done = {row["posterior"] for row in measured}
    warnings.simplefilter("ignore")
    for posterior in references():
        if posterior in done or any(part in posterior for part in SLOW):
            continue
        measured += measure(posterior)
        path.write_text(json.dumps(measured))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(measured)}\n{END}{rest.partition(END)[2]}")
