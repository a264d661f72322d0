"""Words from the command line -> one call. Errors of the user's are one line, without a trace."""

import sys
import warnings
from typing import Any

import typer

from ppl_lvm.cli import author as write
from ppl_lvm.cli import bench, divergences
from ppl_lvm.cli import evaluate as trust
from ppl_lvm.cli import fit_command as train

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (train, trust, write, divergences, bench):
    app.add_typer(commands.app)


@app.callback()
def _root() -> None:
    """Latent-variable models as Pyro programs: write them, train them, trust them."""


def _one_line(message: Warning | str, *_: Any) -> None:
    print(f"ppl-lvm: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; a mistake of the user's ends in one line and status 2."""
    warnings.showwarning = _one_line  # type: ignore[assignment]
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError, ArithmeticError) as error:
        print(f"ppl-lvm: {error}", file=sys.stderr)
        sys.exit(2)
