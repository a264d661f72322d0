"""All commands, and one-line messages for errors of the user."""

import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer
import typer.core

from ppl_lvm.cli import author, bench, divergences, evaluate, fit_command, sweep_command
from ppl_lvm.core import interrupts
from ppl_lvm.core.frames import traceback_frames
from ppl_lvm.core.messages import for_caller, options_in_messages, printable, reason_of
from ppl_lvm.core.public_calls import exclusive, isolated
from ppl_lvm.core.tracebacks import is_users_program

# Errors whose message is written for users.
MESSAGES = (ValueError, OSError, ImportError, ArithmeticError)


class _Commands(typer.core.TyperGroup):
    """Commands that Ctrl-C ends with its own status, in place of click's 1.

    Their messages name options in place of arguments of Python.
    """

    def invoke(self, context: Any) -> Any:
        try:
            with options_in_messages(option_names(self)):
                return super().invoke(context)
        except KeyboardInterrupt:
            sys.exit(interrupts.STATUS[signal.SIGINT])


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)
for commands in (fit_command, sweep_command, evaluate, author, divergences, bench):
    app.add_typer(commands.app)


@app.callback()
def _root() -> None:
    """Latent-variable models as Pyro programs: write, fit and evaluate them."""


def _print_warning(message: Warning | str, *_: Any) -> None:
    print(f"ppl-lvm: {printable(for_caller(str(message)))}", file=sys.stderr)


def option_names(group: Any) -> dict[str, str]:
    """Argument of Python -> option, of all commands."""
    parameters = [p for c in group.commands.values() for p in c.params]
    return {p.name: p.opts[0] for p in parameters if p.opts[0].startswith("--")}


def naming_option(text: str, group: Any, words: Sequence[str]) -> str:
    """A message that quotes the value of an option begins with the option, unless it names it.

    "'1' is not an address. …" of `check MODEL --guide 1` becomes "--guide: '1' is not an address.
    …". A value that an argument of the command line has too may be meant as that.
    """
    command = group.commands.get(words[0]) if words else None
    if command is None:
        return text
    context = command.make_context(words[0], [*words[1:]], resilient_parsing=True)
    flags = []
    for p in command.params:
        origin = getattr(context.get_parameter_source(p.name), "name", "")
        quotes = _quotes(context.params.get(p.name)) if origin == "COMMANDLINE" else []
        pattern = "|".join(map(re.escape, quotes))
        if not quotes or not re.search(rf"(?<!\b[Ss]ite )(?<!\bparameter )(?:{pattern})", text):
            continue
        if p.opts[0] in text or any(f"{p.name} {quote}" in text for quote in quotes):
            return text
        flags.append(p.opts[0])
    if not flags or not all(flag.startswith("--") for flag in flags):
        return text
    return f"{' or '.join(flags)}: {text}"


def _quotes(value: Any) -> list[str]:
    """A value of an option in quotes, as messages show it: whole, and its parts between commas."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = [str(v) for v in values if isinstance(v, str | os.PathLike)]
    return [repr(part.strip()[:200]) for text in texts for part in {text, *text.split(",")}]


def _use_ascii_where_needed() -> None:
    """Print ASCII in place of characters that the encoding of a stream lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ppl_lvm.ascii")


def main() -> None:
    """Run the command line; an error is its message and status 2, without a traceback.

    With the environment variable PPL_LVM_TRACEBACK a fault of this package is raised.
    """
    _use_ascii_where_needed()
    with exclusive("ppl-lvm"), isolated():
        _main()


def _main() -> None:
    warnings.showwarning = _print_warning  # type: ignore[assignment]
    try:
        with interrupts.command(sys.argv[1:]):
            app()
    except Exception as error:
        unexpected = not isinstance(error, MESSAGES) and not _users_lines(error)
        if unexpected and os.environ.get("PPL_LVM_TRACEBACK"):
            raise
        commands = typer.main.get_command(app)
        with options_in_messages(option_names(commands)):
            text = for_caller(_message(error, unexpected))
        text = naming_option(text, commands, sys.argv[1:])
        print(f"ppl-lvm: {printable(text)}", file=sys.stderr)
        sys.exit(2)


def _message(error: Exception, unexpected: bool) -> str:
    """The message of an error; its type and place too, where it is not written for users."""
    if isinstance(error, MESSAGES) and str(error):
        return str(error)
    lines = _users_lines(error)
    where = f" ({lines[-1][0]}:{lines[-1][1]})" if lines else ""
    hint = (
        " This is a fault of ppl-lvm. Please report it with the traceback that "
        "PPL_LVM_TRACEBACK=1 shows."
    )
    return f"{reason_of(error)}{where}" + (hint if unexpected else "")


def _users_lines(error: Exception) -> list[tuple[str, int]]:
    """File and line of every frame of the user's programs that an error passed through."""
    return [
        (frame.f_code.co_filename, line)
        for frame, line in traceback_frames(error)
        if is_users_program(frame)
    ]
