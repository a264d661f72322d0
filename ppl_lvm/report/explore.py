"""Page to explore a run, with data and script.

    explore("runs/VAE-digits-1", "explore.html")

The page needs no network and has at most 5 MB: rows are thinned to at most 5,000, evenly spaced, so
that equal runs give equal pages. Values are stored as 32-bit numbers in base64. The views follow
from the model's sites, as the figures of the report do.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import ArrayLike
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.storage import write_atomic
from ppl_lvm.core.types import Array, Batch
from ppl_lvm.data import Data, load_data
from ppl_lvm.diagnostics.budget import evenly_spaced_rows
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.evidence import shares_latents
from ppl_lvm.report.figures import latents, topics
from ppl_lvm.report.figures.style import COLORS
from ppl_lvm.report.run_view import RunView
from ppl_lvm.runs.directory import load_run
from ppl_lvm.runs.run import Run

MOST_ROWS = 5_000
MOST_FLOATS = 700_000  # at 5.3 bytes each
GRID, STEPS = 15, 11  # decoded points of the plane, and of a latent
MOST_SLIDERS, MOST_DECODED = 16, 4_000  # latents; columns of a decoded row
DRAWS, GLOBAL_DRAWS, PARTICLES = 50, 300, 200
MOST_GLOBALS = 60  # values
Fields = dict[str, Any]


@public_call
def explore(
    run: str | Path | Run,
    path: str | Path,
    *,
    data: Any = None,
    trust: bool | Sequence[str] = False,
) -> Path:
    """Write a page to explore a run.

    Args:
        run: a run or its directory.
        data: the rows to show (default: those of the fit, or those that the run keeps).
        trust: that of `load_run`.

    Raises:
        FileNotFoundError, ValueError: the run does not exist, or its data cannot be loaded.
    """
    loaded = run if isinstance(run, Run) else load_run(run, trust=trust)
    fields = page_data(loaded, _data(loaded, data))
    environment = Environment(
        loader=PackageLoader("ppl_lvm.report", "."), autoescape=True, undefined=StrictUndefined
    )
    # "<" would end the script element.
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = environment.get_template("explore.html.jinja").render(title=fields["title"], data=text)
    write_atomic(Path(path), page.encode())
    return Path(path)


def _data(run: Run, data: Any) -> Data:
    if data is not None:
        return data if isinstance(data, Data) else load_data(data, missing="keep")
    if run.training_data is not None or run.record["data"]["source"] is not None:
        return run.data()[0]
    return load_data(run.example_rows, missing="keep")


def page_data(run: Run, data: Data) -> Fields:
    """Plain data of the page."""
    everything = run.batch(data)
    total, joint = len(everything[0]), shares_latents(run.pair, *everything)
    count = min(total, MOST_ROWS, max(50, MOST_FLOATS // (2 * everything[0][0].numel() + 40)))
    index = torch.linspace(0, total - 1, count).round().long().numpy()  # as below
    batch = evenly_spaced_rows(everything, count)
    view = RunView(run, data, everything if joint else batch)
    with isolated_rng(0):
        fields: Fields = {
            "title": f"{run.record['model']['name']} on {run.record['data']['name']}",
            "load": f"load_run({str(run.directory or 'DIRECTORY')!r})",
            "ids": index.tolist(),
            "total": total,
            "colors": COLORS,
            **_rows(view, index, joint),
            **_latents(view, index, joint),
            **_evidence(run, batch, joint),
        }
        fields |= _decoded(view)
        fields["topics"] = _topics(view, index, joint)
        fields["globals"] = _globals(view)
        fields["states"] = _states(view, index)
    return fields


def pack(values: ArrayLike) -> dict[str, Any]:
    """Shape and 32-bit values, row by row, in base64; NaN and infinities are kept."""
    array = np.ascontiguousarray(np.asarray(values), dtype="<f4")
    return {"shape": list(array.shape), "values": base64.b64encode(array.tobytes()).decode()}


def _rows(view: RunView, index: Array, joint: bool) -> Fields:
    """Rows with their columns and labels, and the means of the model at their codes."""
    x = view.batch[0][torch.as_tensor(index)] if joint else view.batch[0]
    columns = list(view.data.columns or [])
    flat = x.reshape(len(x), -1)
    steps = x.shape[1] if x.dim() == 3 else 1
    width = flat.shape[1] // steps
    if len(columns) != width:
        columns = [f"column {p}" for p in range(width)]
    names = columns if steps == 1 else [f"{c} at {t}" for t in range(steps) for c in columns]
    labels = None if view.data.labels is None else view.data.labels[torch.as_tensor(index)]
    label_names = view.data.label_names
    texts = None
    if labels is not None:
        texts = [
            label_names[int(v)] if label_names and not labels.is_floating_point() else f"{v:g}"
            for v in labels.tolist()
        ]
    back = None if joint else latents.reconstruct(view)
    shape = view.image_shape
    return {
        "columns": names,
        "steps": steps,
        "x": pack(flat.cpu().numpy()),
        "labels": texts,
        "image": None if shape is None else list(shape),
        "back": None if back is None else pack(back),
        "mixture": len(view.classes) == 1 and not view.continuous,
    }


def _latents(view: RunView, index: Array, joint: bool) -> Fields:
    """Mean and sd of q of each scalar local latent, principal axes, and classes."""
    keep = torch.as_tensor(index) if joint else slice(None)
    codes = {n: c[keep] for n, c in view.continuous.items()}
    classes = {
        n: {"count": c.shape[1], "p": pack(c[keep].cpu().numpy())} for n, c in view.classes.items()
    }
    if not codes:
        return {"latents": [], "classes": classes, "standard": False, "axes": None}
    with torch.no_grad(), view.pair.scope(), poutine.block():
        draws = [predict.draw_guide(view.pair, view.batch)[0] for _ in range(DRAWS)]
    rows = []
    for name, mean in codes.items():
        stack = torch.stack([d[name] for d in draws if name in d] or [view.continuous[name]])
        sd = stack.std(0, correction=0)[keep].reshape(len(mean), -1)
        for d in range(mean.shape[1]):
            label = f"{name}[{d}]"
            rows.append({"name": label, "mean": pack(mean[:, d].cpu()), "sd": pack(sd[:, d].cpu())})
    z = torch.cat(list(codes.values()), 1).double()
    axes = None
    if z.shape[1] > 2:
        centered = z - z.mean(0)
        axes = pack((centered @ torch.linalg.svd(centered, full_matrices=False)[2][:2].mT).cpu())
    prior = [view.trace.nodes[n]["fn"] for n in codes if n in view.trace.nodes]
    standard = bool(prior) and all(
        unwrap_support(fn.support) is constraints.real
        and bool(((fn.mean == 0) & (fn.variance == 1)).all())
        for fn in prior
    )
    return {"latents": rows, "classes": classes, "standard": standard, "axes": axes}


def _evidence(run: Run, batch: Batch, joint: bool) -> Fields:
    """log p(x) and k̂ of each row, where rows are independent."""
    if joint:
        return {"log_p": None, "k": None}
    try:
        evidence = run.log_evidence(batch if len(batch) > 1 else batch[0], PARTICLES)
    except (ValueError, CannotSayError):
        return {"log_p": None, "k": None}
    if evidence.kind != "marginal" or len(evidence.per_row) != len(batch[0]):
        return {"log_p": None, "k": None}
    return {"log_p": pack(evidence.per_row), "k": pack(evidence.k_hat)}


def _decoded(view: RunView) -> Fields:
    """Means of the model over the plane of two latents, and along each active latent."""
    nothing: Fields = {"plane": None, "sliders": [], "effects": None}
    if view.rows is None or not view.continuous or view.chain or view.shared:
        return nothing
    name, (site, z) = view.rows, next(iter(view.continuous.items()))
    if z.shape[1] < 1 or view.batch[0][0].numel() > MOST_DECODED:
        return nothing

    def decode(codes: Tensor) -> Array:
        rows = view.repeated(len(codes))
        fixed = {**view.still(len(codes)), site: codes}
        return view.numbers(predict.decode(view.pair, fixed, *rows)[name])

    center, sd = z.mean(0), z.std(0)
    order = sd.argsort(descending=True).tolist()
    support = unwrap_support(view.trace.nodes[site]["fn"].support)
    if support is not constraints.real:
        return nothing
    sliders = []
    for d in order[:MOST_SLIDERS]:
        at = torch.linspace(-3, 3, STEPS).to(z) * sd[d] + center[d]
        codes = center.repeat(STEPS, 1)
        codes[:, d] = at
        sliders.append(
            {"name": f"{site}[{d}]", "at": pack(at.cpu()), "decoded": pack(decode(codes))}
        )
    base = decode(torch.stack([center, *(center + torch.diag(sd))]))
    effects: Fields = {
        "names": [f"{site}[{d}]" for d in range(z.shape[1])],
        "x": pack(base[1:] - base[0]),
    }
    both = decode(torch.stack([center + sd, center + 2 * sd])) - base[0]
    linear = np.allclose(both[0], (base[1:] - base[0]).sum(0), atol=1e-3 * np.abs(both).max())
    effects["linear"] = bool(linear and np.allclose(both[1], 2 * both[0], rtol=1e-2, atol=1e-4))
    plane = None
    if len(order) > 1:
        i, j = sorted(order[:2])
        ends = [torch.linspace(float(z[:, d].min()), float(z[:, d].max()), GRID) for d in (i, j)]
        codes = center.repeat(GRID * GRID, 1)
        codes[:, [i, j]] = torch.cartesian_prod(*ends).to(z)
        plane = {
            "names": [f"{site}[{i}]", f"{site}[{j}]"],
            "at": [pack(end) for end in ends],
            "decoded": pack(decode(codes)),
        }
    return {"plane": plane, "sliders": sliders, "effects": effects}


def _topics(view: RunView, index: Array, joint: bool) -> Fields | None:
    """Word probabilities of each topic, and the topics of each document."""
    table = topics.table_of(view)
    if table is None:
        return None
    K = len(table)
    shares = next((c for c in view.codes.values() if c.dim() == 2 and c.shape[1] == K), None)
    if shares is not None:
        shares = shares[torch.as_tensor(index)] if joint else shares
    return {"words": pack(table.cpu()), "shares": None if shares is None else pack(shares.cpu())}


def _globals(view: RunView) -> list[Fields] | None:
    """Draws of the posterior and of the prior of each scalar global latent."""
    if not view.shared or view.run.record["guide"] is None:
        return None
    names = [n for n, v in view.shared.items() if v.is_floating_point()]
    with torch.no_grad(), view.pair.scope(), poutine.block():
        posterior = [predict.draw_guide(view.pair, view.batch)[1] for _ in range(GLOBAL_DRAWS)]
        prior: list[Mapping[str, Tensor]] = []
        for _ in range(GLOBAL_DRAWS):
            try:
                trace = poutine.trace(poutine.uncondition(view.pair.model)).get_trace(*view.batch)
            except Exception:  # an improper prior, say: no overlay
                prior = []
                break
            prior.append({n: trace.nodes[n]["value"] for n in names if n in trace.nodes})
    result: list[Fields] = []
    for name in names:
        draws = torch.stack([d[name] for d in posterior]).reshape(GLOBAL_DRAWS, -1)
        before = [p[name].reshape(-1) for p in prior if name in p]
        for i, place in enumerate(np.ndindex(*view.shared[name].shape)):
            if len(result) == MOST_GLOBALS:
                return result
            label = f"{name}[{', '.join(map(str, place))}]" if place else name
            overlay = pack(torch.stack([b[i] for b in before]).cpu()) if before else None
            result.append({"name": label, "draws": pack(draws[:, i].cpu()), "prior": overlay})
    return result


def _states(view: RunView, index: Array) -> Fields | None:
    """Probabilities of hidden states (N, T, S), for models with `marginals`."""
    marginals = getattr(view.run.model, "marginals", None)
    if view.batch[0].dim() != 3 or not callable(marginals):
        return None
    with torch.no_grad():
        p = marginals(*view.batch)
    if not isinstance(p, Tensor) or p.shape[:2] != view.batch[0].shape[:2]:
        return None
    return {"count": p.shape[2], "p": pack(p.detach().cpu())}
