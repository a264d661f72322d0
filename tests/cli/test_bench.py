"""`ppl-lvm bench`."""

from pathlib import Path

import pytest

from command_line import run_command


@pytest.mark.parametrize(
    ("words", "text"), [(["--help"], "none lists them"), (["speed", "--help"], "--program")]
)
def test_bench_leaves_help_after_a_name_to_the_benchmark(
    tmp_path: Path, words: list[str], text: str
) -> None:
    done = run_command("bench", *words, folder=tmp_path)
    assert done.returncode == 0
    assert text in done.stdout
