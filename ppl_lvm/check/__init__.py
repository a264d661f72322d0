"""Does this guide fit this model? Findings, each with its remedy.

    findings = check(model, guide, *batch)
    print(findings)
    assert findings.ok

The pair is run a few times on the batch and never trained; the caller's random state, parameter
store and modules are as they were afterwards. Each file here holds one family of findings.
"""

from collections.abc import Callable
from typing import Any

import torch

from ppl_lvm.check.density import check_density, check_enumeration
from ppl_lvm.check.findings import Finding, Findings
from ppl_lvm.check.look import Run, look, place_of
from ppl_lvm.check.parameters import check_parameters
from ppl_lvm.check.plates import check_plates
from ppl_lvm.check.repeats import check_repeats
from ppl_lvm.check.sites import check_shapes, check_sites
from ppl_lvm.check.supports import check_supports

__all__ = ["Finding", "Findings", "check"]


def check(model: Callable[..., Any], guide: Callable[..., Any], *batch: Any) -> Findings:
    """What is wrong with a pair, on the batch it is to be trained on (some rows are enough)."""
    with torch.enable_grad():
        seen = look(model, guide, *batch)
        failed = [*_failures(seen.model, "model"), *_failures(seen.guide, "guide")]
        if failed:
            return Findings(failed)
        pairing = [*check_sites(seen), *check_shapes(seen)]
        single = [*check_plates(seen), *check_supports(seen), *check_repeats(seen)]
        found = [*pairing, *single, *check_parameters(seen)]
        # One fault shows in many ways: what it explains is not reported again.
        blamed = {finding.site for finding in found if finding.severity == "error"}
        found += check_density(seen, {site for site in blamed if site is not None})
        if not any(finding.severity == "error" for finding in found):
            found += check_enumeration(seen)
    return Findings(found)


def _failures(one: Run, what: str) -> list[Finding]:
    """A program that does not even run: the line it stopped at."""
    if one.error is None:
        return []
    said = (str(one.error).strip().splitlines() or [""])[0]
    file, line = place_of(one.error) or (None, None)
    # The site whose line it is, where that can be told.
    site = next((name for name, place in one.places.items() if place == (file, line)), None)
    site = site or next(reversed(one.places), None)
    code, remedy = f"{what}-fails", "Call it by itself on the batch, and mend the line named."
    if "collide" in said:
        code = "plates-collide"
        remedy = "Give nested plates different dims: dim=-1 inside, dim=-2 for the next."
    elif "Multiple" in said and "named" in said:
        code = "duplicate-site"
        remedy = 'Give every site a name of its own, in a loop f"z_{i}".'
    return [
        Finding(
            code,
            "error",
            site,
            f"The {what} does not run: {type(one.error).__name__}: {said} (at or after {site!r})",
            "Nothing can be trained that does not run once.",
            remedy,
            file,
            line,
        )
    ]
