"""Results as tables or as one line of JSON."""

import json
from typing import Any

from rich.console import Console

from ppl_lvm.core.console import UNWRAPPED, Records, plain_text
from ppl_lvm.core.messages import for_caller, nats
from ppl_lvm.posterior.evidence_text import evidence_text


def print_table(result: Any) -> None:
    """Print a table at the width and in the colors of a terminal, elsewhere unwrapped lines."""
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        with console.capture() as captured:
            console.print(result)
        print(for_caller(captured.get()), end="")
    else:
        print(for_caller(plain_text(result, UNWRAPPED)))


def print_json(result: Any) -> None:
    """Print plain data as one JSON object in the last line."""
    print(json.dumps(result))


def print_file(kind: str, path: Any, as_json: bool, **more: Any) -> None:
    """Print the path of a file that was written, as one JSON object with `more` or by itself."""
    if as_json:
        print_json({kind: str(path), **more})
    else:
        print(path)


def print_list(result: Any, as_json: bool) -> None:
    """Print a diagnosis, a comparison or the like: one JSON list in the last line, or a table."""
    if as_json:
        print_json(result.to_json())
    else:
        print_table(result)


def print_results(run: Any, as_json: bool = False) -> None:
    """Print the results of a fit: one JSON object in the last line, or a table."""
    if as_json:
        from ppl_lvm.core.storage import jsonable

        print_json(jsonable(run.results))
        return
    rows = _adversarial_rows(run) if run.record["guide"] is None else _run_rows(run)
    results = run.results
    for name, reason in results.get("not_computed", {}).items():
        rows.append((name, f"not computed: {reason}"))
    rows.append(("steps", f"{results['steps']} in {results['seconds']:.1f} s"))
    print_table(Records(("", ""), rows))
    if run.directory is not None:  # on one line however long, to be copied
        print(f"directory: {run.directory}")


def _run_rows(run: Any) -> list[tuple[str, str]]:
    """Rows of the table of a `Run`."""
    results = run.results
    error = results.get("bound_monte_carlo_error") or 0.0
    weight = run.record["options"].get("kl_weight", 1.0)
    tempered = "" if weight == 1 else f", KL term times {weight:g}"
    tempered += ": no bound on log p(x)" if weight < 1 else ""
    rows = (
        []
        if results["bound"] is None
        else [
            (
                "bound",
                f"{results['bound']:.4f} ± {error:.4f} nats per row (training rows{tempered})",
            )
        ]
    )
    if results["held_out"] is not None:
        error = results["held_out_monte_carlo_error"]
        # The bound has the KL of the global latents, which the training rows share.
        shared = results.get("log_evidence_kind") in ("predictive", "pointwise")
        joining = ", the KL of global latents shared with the training rows" if shared else ""
        of = f" ({(joining + tempered)[2:]})" if joining or tempered else ""
        rows.append(("held out", f"{results['held_out']:.4f} ± {error:.4f} nats per row{of}"))
    if results["log_evidence"] is not None:
        rows.append(("log evidence", evidence_text(results, results["log_evidence_of"])))
    if results.get("converged") is False:
        em = "Raise num_steps, or the tolerance: --objective 'em(tolerance=1e-4)'."
        remedy = results.get("remedy", em)
        rows.append(("converged", f"NO, after {results['steps']} iterations. {remedy}"))
    return rows + _restart_rows(run.restarts)


def _restart_rows(restarts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The range of the bounds, and a row for each degenerate restart."""
    rows = []
    if len(restarts) > 1 and any(r["bound"] is not None for r in restarts):
        bounds = sorted(r["bound"] for r in restarts if r["bound"] is not None)
        median = bounds[len(bounds) // 2]
        text = f"{len(bounds)}: bound {bounds[0]:.4f} to {bounds[-1]:.4f}, median {median:.4f}"
        if error := max(r.get("bound_monte_carlo_error") or 0.0 for r in restarts):
            text += f", each ± {error:.4f} at most"
        rows.append(("restarts", text))
    for restart in restarts:
        if restart["degenerate"]:
            chosen = "CHOSEN, for every restart failed" if restart["chosen"] else "not chosen"
            text = f"bound {nats(restart['bound'])}, {chosen}: {restart['degenerate']}"
            rows.append((f"seed {restart['seed']}", text))
    return rows


def _adversarial_rows(adversaries: Any) -> list[tuple[str, str]]:
    """Rows of the table of `Adversaries`."""
    results = adversaries.results
    divergence = f"{results['jensen_shannon']:.4f} nats, a lower bound; 0: draws are like data"
    if "two-sample test" in results.get("not_computed", {}):
        return [("Jensen-Shannon", divergence)]
    if results["accuracy"] is None:
        test = "not tested: fewer than 20 rows; hold out more"
    else:
        test = (
            f"{results['accuracy']:.2f} of the {results['two_sample_of']} and as many draws "
            f"classified correctly (0.50: by chance), p = {results['p_value']:.3f}"
        )
    return [("Jensen-Shannon", divergence), ("two-sample test", test)]
