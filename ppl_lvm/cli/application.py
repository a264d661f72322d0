"""All commands, and one-line messages for errors of the user."""

import sys
import warnings
from typing import Any

import typer

from ppl_lvm.cli import author, bench, divergences, evaluate, fit_command

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for commands in (fit_command, evaluate, author, divergences, bench):
    app.add_typer(commands.app)


@app.callback()
def _root() -> None:
    """Latent-variable models as Pyro programs: write, fit and evaluate them."""


def _print_warning(message: Warning | str, *_: Any) -> None:
    print(f"ppl-lvm: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; an error of the user is one line and status 2."""
    warnings.showwarning = _print_warning  # type: ignore[assignment]
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError, ArithmeticError) as error:
        print(f"ppl-lvm: {error}", file=sys.stderr)
        sys.exit(2)
