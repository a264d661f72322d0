"""Are batch dimensions declared, and is the data where a mini-batch can scale it?"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, rows, run
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.signatures import Signature


def check_plates(look: TrialRuns) -> Iterator[Issue]:
    # The model on its own draws: a guide of the wrong shape would make it look wrong too.
    alone = look.standalone[0] if look.standalone[0].signature is not None else look.model
    for one in (alone, look.guide):
        yield from _undeclared(one, rows(look.batch))
        yield from _sequential(one)
        yield from _data_size(one, look.batch)
    yield from _per_row(look)


def _undeclared(one: TrialRun, B: int | None) -> Iterator[Issue]:
    """A batch dimension that no plate declares is a dimension of dependence."""
    assert one.signature is not None
    open_plates = {plate.name for plate in one.signature.plates}
    for site in one.signature.sites:
        dims = {one.signature.plate(name).dim for name in site.plates}
        for i, size in enumerate(site.batch_shape):
            dim = i - len(site.batch_shape)
            if size > 1 and dim not in dims:
                yield one.finding(
                    "undeclared-batch",
                    "error",
                    site.name,
                    f"{site.name!r} has {size} values at batch dimension {dim}, which no plate "
                    "declares.",
                    "Objectives would not know whether they are independent, and mini-batches "
                    "would scale them wrongly.",
                    f"Declare the rows: with pyro.plate({DATA_PLATE!r}, len(x), dim={dim}):"
                    if size == B and DATA_PLATE not in open_plates
                    else f"Make it part of the event, dist.{site.distribution}(...).to_event("
                    f"{-dim}), or declare it: with pyro.plate('rows', {size}, dim={dim}):",
                )
                break


def _sequential(one: TrialRun) -> Iterator[Issue]:
    assert one.signature is not None
    for plate in one.signature.plates:
        if plate.dim is None:
            inside = [site for site in one.signature.sites if plate.name in site.plates]
            site = inside[0].name if inside else None
            yield one.finding(
                "sequential-plate",
                "warning",
                site,
                f"Plate {plate.name!r} is walked one row at a time ({plate.size} rows, from "
                f"{site!r} on).",
                "A step costs as many Python calls as there are rows, and the toolkit cannot "
                "tell data from particles.",
                f"with pyro.plate({plate.name!r}, {plate.size}, dim=-1):  # no for; tensors "
                "with all rows inside",
            )


def _data_size(one: TrialRun, batch: tuple[Any, ...]) -> Iterator[Issue]:
    B = rows(batch)
    assert one.signature is not None
    names = [plate.name for plate in one.signature.plates]
    if B is None or DATA_PLATE not in names:
        return
    plate = one.signature.plate(DATA_PLATE)
    if B in (plate.size, plate.full_size):
        return
    site = next((s.name for s in one.signature.sites if DATA_PLATE in s.plates), None)
    yield one.finding(
        "plate-size",
        "error",
        site,
        f"The plate {DATA_PLATE!r} around {site!r} has {plate.size} rows, and the batch has {B}.",
        "A row of the plate stands for a row of the batch; N/B would scale the wrong number.",
        f"with pyro.plate({DATA_PLATE!r}, len(x), dim=-1):",
    )


def _per_row(look: TrialRuns) -> Iterator[Issue]:
    """Run again with a row less: what shrinks is per row, and belongs in the plate "data"."""
    B = rows(look.batch)
    if B is None or B < 3:
        return
    fewer = tuple(
        part[:-1] if isinstance(part, Tensor) and part.dim() and len(part) == B else part
        for part in look.batch
    )
    for program, one in zip(look.programs, (look.model, look.guide), strict=True):
        with dry_run(program):
            shrunk = run(program, *fewer)
        if shrunk.error is not None or shrunk.signature is None or one.signature is None:
            continue
        yield from _outside(one, shrunk.signature, B)
        yield from _scaled_by_hand(one, shrunk, B)


def _outside(one: TrialRun, shrunk: Signature, B: int) -> Iterator[Issue]:
    assert one.signature is not None
    declared = any(plate.name == DATA_PLATE for plate in one.signature.plates)
    for site in one.signature.sites:
        if site.name not in shrunk or site.local or shrunk[site.name].shape == site.shape:
            continue
        if len(shrunk[site.name].shape) != len(site.shape):
            continue
        # A whole program without the plate may be meant (a Gaussian process); a part may not.
        yield one.finding(
            "outside-data-plate",
            "error" if declared else "warning",
            site.name,
            f"{site.name!r} has a value for each of the {B} rows, shape {tuple(site.shape)}, "
            f"outside the plate {DATA_PLATE!r}.",
            "A mini-batch would not scale it, and bounds per row would not contain it.",
            f"Move pyro.sample({site.name!r}, ...) into the block with pyro.plate({DATA_PLATE!r}, "
            "len(x), dim=-1), a row's distribution there being one row's: without the rows in its "
            "event."
            if declared
            else f"with pyro.plate({DATA_PLATE!r}, len(x), dim=-1): "
            f"pyro.sample({site.name!r}, ...)",
        )


def _scaled_by_hand(one: TrialRun, shrunk: TrialRun, B: int) -> Iterator[Issue]:
    """A scale that grows as rows get fewer is somebody's own N/B."""
    for name, node in one.nodes().items():
        other = shrunk.nodes().get(name)
        frames = {frame.name: frame for frame in node["cond_indep_stack"]}
        if other is None or DATA_PLATE not in frames:
            continue
        before, after = (_own_scale(each) for each in (node, other))
        if isinstance(before, float) and isinstance(after, float) and before != 1.0:
            subsampled = frames[DATA_PLATE].full_size not in (None, frames[DATA_PLATE].size)
            frame = frames[DATA_PLATE]
            if abs(after / before - B / (B - 1)) < 1e-6 or (
                subsampled and abs(before - frame.full_size / frame.size) < 1e-6
            ):
                yield one.finding(
                    "double-scaling",
                    "error",
                    name,
                    f"{name!r} is scaled by {before:g} by hand, a factor N/B of its own.",
                    f"The toolkit (and subsample_size) scale the plate {DATA_PLATE!r} by N/B "
                    "already: the data would count twice over.",
                    "Remove the pyro.poutine.scale around it.",
                )


def _own_scale(node: dict[str, Any]) -> Any:
    """A site's scale without what its plates contribute."""
    scale = node["scale"]
    for frame in node["cond_indep_stack"]:
        if frame.full_size not in (None, frame.size):
            scale = scale / (frame.full_size / frame.size)
    if isinstance(scale, Tensor):
        return scale.item() if scale.numel() == 1 else None
    return float(scale)
