"""Helpers for authors of models and guides.

A program needs nothing from this toolkit. One that wants to read another program's sites, to keep
the random state, or to hold parameters per row imports it from here; networks are in `ppl_lvm.nn`.

    signature, Signature         the sites of a program: shapes, supports, plates, dependences
    Site, Plate                  one of its sites, one of its plates
    DATA_PLATE                   name of the plate over rows in the bundled programs
    without_missing              rows whose missing values (NaN) are masked
    without_rsample              draws without a pathwise gradient
    RowTable, batch_rows         parameters kept per row, and the rows of the present batch
    dry_run, is_dry_run          run a program without side effects; whether one is running
    preserve_rng                 leave torch's generators as they are
    parse_call, build            "name(key=literal)" as an argument of a model
"""

from ppl_lvm.core.arguments import check_constructors
from ppl_lvm.core.call_syntax import build, parse_call
from ppl_lvm.core.distributions import without_rsample
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.programs.dry_run import dry_run, is_dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.missing import without_missing
from ppl_lvm.programs.row_state import RowTable, batch_rows
from ppl_lvm.programs.signatures import Plate, Signature, Site, signature

check_constructors(["RowTable"], globals())

__all__ = [
    "DATA_PLATE",
    "Plate",
    "RowTable",
    "Signature",
    "Site",
    "batch_rows",
    "build",
    "dry_run",
    "is_dry_run",
    "parse_call",
    "preserve_rng",
    "signature",
    "without_missing",
    "without_rsample",
]
