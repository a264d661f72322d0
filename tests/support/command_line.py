"""Run `ppl-lvm` in this process, without importing torch again."""

import contextlib
import io
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from ppl_lvm.cli import main


@dataclass(frozen=True)
class Completed:
    """Status of a command (0 is success) and the text of its two streams."""

    returncode: int
    stdout: str
    stderr: str


def run_command(*words: str, folder: Path) -> Completed:
    """Run `ppl-lvm WORDS` in `folder`."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["ppl-lvm", *words]),
        warnings.catch_warnings(),  # `main` replaces the printing of warnings
    ):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Completed(status, out.getvalue(), err.getvalue())
