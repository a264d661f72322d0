"""`ppl-lvm …` as a shell would run it, in this process: importing torch anew takes seconds."""

import contextlib
import io
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from ppl_lvm.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left: its status (0 is success) and the text of its two streams."""

    returncode: int
    stdout: str
    stderr: str


def ppl_lvm(*words: str, folder: Path) -> Done:
    """Run `ppl-lvm WORDS` in `folder`."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["ppl-lvm", *words]),
        warnings.catch_warnings(),  # `main` says them in its own way
    ):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Done(status, out.getvalue(), err.getvalue())
