"""Announced durations of compilations."""

from pathlib import Path

import pytest

from ppl_lvm.compiler import compile_times


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compile_times, "_crowd", lambda: 1.0)
    return tmp_path / "cache"


def test_first_compilation_is_announced_without_a_number() -> None:
    assert compile_times.announced(14.0) == "the first one timed on this machine"


def test_later_compilations_are_announced_by_the_median_of_earlier_ones() -> None:
    for seconds in (40.0, 60.0, 500.0):
        compile_times.note(seconds, 10.0)
    assert compile_times.announced(14.0) == "about 84 s as measured on this machine"


def test_announced_time_grows_with_the_processes_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_times.note(20.0, 10.0)
    monkeypatch.setattr(compile_times, "_crowd", lambda: 3.0)
    assert compile_times.announced(10.0).startswith("about 60 s")


@pytest.mark.parametrize("content", ["", "{", "[1, null]", '{"a": 1}', '"x"', "[-1, 0, 1e9]"])
def test_damaged_file_is_replaced(folder: Path, content: str) -> None:
    folder.mkdir()
    path = folder / "ppl_lvm_compile_times.json"
    path.write_text(content)
    assert "first one" in compile_times.announced(10.0)
    compile_times.note(20.0, 10.0)
    assert compile_times.announced(10.0).startswith("about 20 s")
    assert [p.name for p in folder.iterdir()] == [path.name]


def test_folder_that_cannot_be_written_is_no_error(folder: Path) -> None:
    folder.write_text("a file")
    compile_times.note(20.0, 10.0)
    assert "first one" in compile_times.announced(10.0)
