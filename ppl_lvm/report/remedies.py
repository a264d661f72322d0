"""Remedies of a report as commands to paste.

Each rule maps a row that is not good to a change of the fit, or to another command. A change that
the fit has made already is not proposed again.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

from ppl_lvm.diagnostics.finding import Finding
from ppl_lvm.runs.run import Run
from ppl_lvm.training.options import FitOptions

MOST = 3
PARTICLES = 20
EM = "expectation-maximization"
# Guide -> a richer one of the same kind.
RICHER = {
    "AmortizedNormal": "ppl_lvm.guides:AmortizedMultivariateNormal",
    "AmortizedMultivariateNormal": "ppl_lvm.guides:AmortizedFlow",
    "LocalNormal": "ppl_lvm.guides:AmortizedMultivariateNormal",
    "GlobalNormal": "ppl_lvm.guides:GlobalMultivariateNormal",
    "AutoNormal": "pyro.infer.autoguide:AutoMultivariateNormal",
    "AutoDiagonalNormal": "pyro.infer.autoguide:AutoMultivariateNormal",
}
NUMBERS = ("latent", "latents", "components", "topics", "states", "factors")  # settings
ORDER = {"bad": 0, "warning": 1}
KNOWABLE = ("convergence", "generalization", "calibration")  # unknown rows that a command settles
Changes = Mapping[str, Any]  # field of `FitOptions`, "guide", or "set NAME" -> value


@dataclass(frozen=True)
class Remedy:
    """A reason to act, and the command."""

    why: str
    command: str


def remedies(run: Run, findings: Sequence[Finding]) -> list[Remedy]:
    """At most three, those of bad rows first; of an unfinished training only what finishes it."""
    settled = [f for f in findings if f.verdict == "unknown" and f.slug in KNOWABLE]
    ranked = sorted((f for f in findings if f.verdict in ORDER), key=lambda f: ORDER[f.verdict])
    ranked = [f for f in [*ranked, *settled] if f.remedy]
    if any(f.slug == "convergence" and f.verdict == "bad" for f in ranked):
        ranked = [f for f in ranked if f.slug in ("convergence", "gradient", "latents")]
    by_command: dict[str, Remedy] = {}
    for finding in ranked:
        rule = RULES.get(finding.slug)
        for command in () if rule is None else rule(run, finding):
            by_command.setdefault(command, Remedy(finding.remedy, command))
            break
    return list(by_command.values())[:MOST]


def fit_command(run: Run, changes: Changes | None = None) -> str:
    """The command that repeats a fit with changed options; a call of Python without addresses."""
    record, changes = run.record, dict(changes or {})
    source = record["data"]["source"]
    model, guide = record["model"], record["guide"] or {}
    address = model.get("address")
    options = _options(run) | {k: v for k, v in changes.items() if " " not in k and k != "guide"}
    settings = dict(model.get("settings") or {})
    settings |= {k[4:]: v for k, v in changes.items() if k.startswith("set ")}
    new_guide = changes.get("guide")
    if new_guide is None and guide.get("name") != "auto_guide":
        new_guide = _short(guide.get("address"))
    if address is None or source is None:
        words = [str(model["name"]), "guide" if new_guide is None else str(new_guide), "data"]
        words += [f"settings={settings!r}"] * bool(settings)
        words += [f"{k}={v!r}" for k, v in options.items()]
        return f"fit({', '.join(words)})"
    flags = [("--" + name.replace("_", "-"), str(value)) for name, value in options.items()]
    flags += [("--set", f"{name}={value}") for name, value in settings.items()]
    if new_guide is not None:
        flags += [("--guide", str(new_guide))]
        if "guide" not in changes:
            guide_settings = (guide.get("settings") or {}).items()
            flags += [("--set-guide", f"{name}={value}") for name, value in guide_settings]
    for name in ("labels", "missing"):
        if source.get(name) not in (None, "error"):
            flags.append((f"--{name}", str(source[name])))
    if source.get("columns"):
        flags.append(("--columns", ",".join(map(str, source["columns"]))))
    changed = {"--" + k.partition(" ")[0].replace("_", "-") for k in changes}
    flags.sort(key=lambda flag: flag[0] not in changed)  # what is new comes first
    words = ["ppl-lvm", "fit", str(_short(address)), "--data", str(source["source"])]
    words += [word for flag in flags for word in flag]
    if source.get("image_shape"):
        words += ["--image-shape", *map(str, source["image_shape"])]
    return shlex.join(words)


def _short(address: str | None) -> str | None:
    """A bundled program by its package: ppl_lvm.models:VAE."""
    if address is None:
        return None
    module, _, name = address.partition(":")
    package = ".".join(module.split(".")[:2])
    bundled = package in ("ppl_lvm.models", "ppl_lvm.guides")
    return f"{package}:{name}" if bundled and name in import_module(package).__all__ else address


def _options(run: Run) -> dict[str, Any]:
    """Options of the fit that are not the default, by field."""
    record = run.record
    results: dict[str, Any] = {}
    defaults = {f.name: f.default for f in fields(FitOptions)}
    objective = record.get("request", {}).get("objective")
    if record.get("algorithm") == EM:
        results["objective"] = "em"
    elif objective is not None:
        results["objective"] = record["objective"]
    recorded = record["options"]
    for name in defaults:
        value = recorded.get(name)
        if name in recorded and value != defaults[name] and name not in ("objective", "engine"):
            results[name] = value
    for name in ("validate_every", "batch_size"):  # where they are what the fit chose
        if results.get(name) in (100, record["data"]["train_rows"], 65536):
            results.pop(name, None)
    if results.get("num_steps") == 10_000:
        del results["num_steps"]
    validation = record["data"].get("validation")
    if isinstance(validation, int | float):
        results["validation"] = validation
    if record.get("num_restarts", 1) > 1:
        results["restarts"] = record["num_restarts"]
    return results


def _fit(run: Run, **changes: Any) -> Iterator[str]:
    yield fit_command(run, changes)


def _longer(run: Run, finding: Finding) -> Iterator[str]:
    if finding.slug == "convergence" and "restarts" in finding.name:
        return _fit(run, restarts=max(10, 2 * run.record.get("num_restarts", 1)))
    if run.record.get("algorithm") == EM:
        return _fit(run, objective="em(tolerance=1e-8)")
    steps = run.record["options"].get("num_steps") or run.results["steps"]
    return _fit(run, num_steps=3 * steps)


def _richer(run: Run, finding: Finding) -> Iterator[str]:
    if finding.verdict == "unknown" and "refits" in finding.remedy:
        return _diagnose(run, "--refits", "100")
    guide = (run.record["guide"] or {}).get("name", "")
    if guide == "auto_guide":
        guide = type(run.guide).__name__
    if guide in RICHER and "more draws" not in finding.remedy:
        return _fit(run, guide=RICHER[guide])
    K = int(getattr(run.pair.objective, "num_particles", 1))
    multi = getattr(run.pair.objective, "target", "ELBO") == "IWAE" and K > 1
    return _fit(run, objective=f"IWAE(num_particles={5 * K if multi else PARTICLES})")


def _diagnose(run: Run, *words: str) -> Iterator[str]:
    if run.directory is not None:
        yield shlex.join(["ppl-lvm", "diagnose", str(run.directory), *words])


def _temperatures(run: Run, finding: Finding) -> Iterator[str]:
    return _diagnose(run, "--temperatures", "400")


def _held_out(run: Run, finding: Finding) -> Iterator[str]:
    if finding.verdict == "unknown":
        return _fit(run, validation=0.1)
    return _fit(run, patience=10)


def _other_model(run: Run, finding: Finding) -> Iterator[str]:
    if finding.verdict == "unknown":
        return
    settings = run.record["model"].get("settings") or {}
    for name in NUMBERS:
        if isinstance(settings.get(name), int):
            yield fit_command(run, {f"set {name}": settings[name] + 1})
            return
    yield from _new(run)


def _new(run: Run) -> Iterator[str]:
    address = run.record["model"].get("address")
    if address is not None:
        yield shlex.join(["ppl-lvm", "new", "mine", "--like", str(_short(address))])


def _latents(run: Run, finding: Finding) -> Iterator[str]:
    if "prior" in finding.remedy:
        return _new(run)
    options = run.record["options"]
    if (options.get("kl_weight") or 1) > 1:
        return _fit(run, kl_weight=1)
    if not options.get("kl_annealing"):
        steps = options.get("num_steps") or run.results["steps"]
        return _fit(run, kl_annealing=max(1, steps // 3))
    return _other_model(run, finding)


def _components(run: Run, finding: Finding) -> Iterator[str]:
    settings = run.record["model"].get("settings") or {}
    if finding.name.startswith("components used") and finding.value and finding.verdict != "bad":
        for name in NUMBERS:
            if isinstance(settings.get(name), int):
                return _fit(run, **{f"set {name}": max(1, int(finding.value))})
    return _fit(run, restarts=max(10, 2 * run.record.get("num_restarts", 1)))


def _check(run: Run, finding: Finding) -> Iterator[str]:
    source = run.record["data"]["source"]
    address = run.record["model"].get("address")
    if source is not None and address is not None:
        yield shlex.join(
            ["ppl-lvm", "check", str(_short(address)), "--data", str(source["source"])]
        )


RULES: dict[str, Callable[[Run, Finding], Iterator[str]]] = {
    "convergence": _longer,
    "drift": _longer,
    "tightness": _richer,
    "sandwich": _temperatures,
    "gaps": _richer,
    "generalization": _held_out,
    "khat": _richer,
    "calibration": _richer,
    "vsbc": _richer,
    "predictive": _other_model,
    "prior": _other_model,
    "two_sample": _other_model,
    "loo": _other_model,
    "latents": _latents,
    "mixtures": _components,
    "stability": _components,
    "gradient": _check,
}
