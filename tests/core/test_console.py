"""Terminal: narrow tables, encodings, options in messages, logs."""

import io
import logging
import sys
from typing import Any

import pytest
from rich.console import Console

from ppl_lvm.core import messages
from ppl_lvm.core.console import NARROW, SHORT, Progress, Records, plain_text
from ppl_lvm.core.messages import for_caller, options_in_messages

OPTIONS = {
    "num_steps": "--num-steps",
    "refits": "--refits",
    "patience": "--patience",
    "restarts": "--restarts",
    "num_particles": "--num-particles",
    "data": "--data",
    "clip_norm": "--clip-norm",
    "resume": "--resume",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Raise num_steps.", "Raise --num-steps."),
        ("refits=3: too few. Use 20.", "--refits 3: too few. Use 20."),
        ("patience: must be positive.", "--patience: must be positive."),
        ("Stop earlier (patience), or clip (clip_norm).", "Stop earlier (--patience), or clip "
         "(--clip-norm)."),
        ("More restarts (restarts=5).", "More restarts (--restarts 5)."),
        ("Continue it with resume=True, or stop.", "Continue it with --resume, or stop."),
        ("Train with IWAE(num_particles=5).", "Train with IWAE(num_particles=5)."),
        ("The data are counts; the patience of a saint.", "The data are counts; the patience of a "
         "saint."),
        ("Pass --num-steps 5 or my_num_steps.", "Pass --num-steps 5 or my_num_steps."),
    ],
)  # fmt: skip
def test_messages_of_a_command_name_options(text: str, expected: str) -> None:
    assert for_caller(text) == text
    with options_in_messages(OPTIONS):
        assert for_caller(text) == expected


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_streams_print_ascii_for_what_the_encoding_lacks(encoding: str) -> None:
    assert messages.ASCII  # registers the handler
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, errors="ppl_lvm.ascii")
    print("− k̂ ≤ 0.7 ± 1 │ 世", file=stream, flush=True)
    text = buffer.getvalue().decode(encoding)
    assert text == {
        "utf-8": "− k̂ ≤ 0.7 ± 1 │ 世\n",
        "ascii": "- k^ <= 0.7 +- 1 | ?\n",
    }.get(encoding, "- k^ <= 0.7 ± 1 | ?\n")
    with pytest.raises(UnicodeEncodeError):
        print("−", file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"))


def test_records_stack_where_the_terminal_is_narrow() -> None:
    table = Records(["run", "value"], [["a", "-1.5"], ["b" * 90, "-2.5"]], right=["value"])
    wide, narrow = plain_text(table, NARROW), plain_text(table, NARROW - 1)
    assert wide.splitlines()[0].split() == ["run", "value"]
    assert narrow.splitlines()[:2] == ["a", "  value: -1.5"]
    assert "b" * 90 in narrow.replace("\n", "")  # nothing is cut off


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bar(width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Output of a progress line on a terminal."""
    out = Terminal()
    progress = Progress(10)
    progress._console = Console(file=out, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(sys, "__stderr__", out)
    logger = logging.getLogger("a.third.party")
    handler: Any = logging.StreamHandler(out)
    logger.addHandler(handler)
    try:
        with progress:
            progress.advance(10, -1.5, [])
            logger.warning("a line")
            assert handler.stream is not out  # it goes through the bar
        assert handler.stream is out
    finally:
        logger.removeHandler(handler)
    return out.getvalue()


def test_progress_line_drops_the_bar_and_then_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow, short = (bar(w, monkeypatch) for w in (100, NARROW - 1, SHORT - 1))
    assert "━" in wide
    assert "━" not in narrow
    assert "steps/s" in narrow
    assert "steps/s" not in short
    assert all("bound -1.5000" in text for text in (wide, narrow, short))
