"""Documentation pages: programs run, outputs match, commands parse.

A page is a program. Its ```python blocks run in order, in one namespace and an empty folder, with
`num_steps=`, `num_epochs=`, `max_iterations=` and `restarts=` cut down to a few. A block whose
first line is `# file: mine.py` is also written there, for the commands that follow. An ```output
block is what the python block before it prints, `...` standing for any text. ```sh blocks hold
command lines; a line with `…` is a sketch and left alone.
"""

import contextlib
import doctest
import io
import linecache
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pytest
import typer
import typer.main

from ppl_lvm.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMAND_PAGES = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
SHELL = ("sh", "bash", "shell", "console", "")
USAGE_ERROR = typer.BadParameter.__bases__[0]  # click's, wherever typer keeps it
FEW = {"num_steps": 3, "num_epochs": 1, "max_iterations": 3, "restarts": 2, "kl_annealing": 3}
FEW["max_iter"] = 5  # of scikit-learn's estimators


@pytest.fixture(autouse=True)
def _figures_are_closed() -> Iterator[None]:
    """Close figures, also after a failing page."""
    yield
    plt.close("all")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page before its first."""

    language: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    inside: list[str] | None = None
    language, start = "", 0
    for number, line in enumerate(page.splitlines(), 1):
        if inside is None:
            if line.startswith("```"):
                inside, language, start = [], line[3:].strip(), number
        elif line.startswith("```"):
            yield Block(language, "".join(f"{text}\n" for text in inside), start)
            inside = None
        else:
            inside.append(line)
    assert inside is None, f"the block of line {start} is never closed"


def shrunk(code: str) -> str:
    """`code` with its numbers of steps, epochs and iterations at most a few."""

    def few(match: re.Match[str]) -> str:
        return f"{match[1]}{match[2]}{min(int(match[3]), FEW[match[1]])}"

    return re.sub(rf"\b({'|'.join(FEW)})(\s*=\s*)(\d[\d_]*)", few, code)


def run_page(text: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the page `text` in `folder`; a failure's trace shows the page's own lines."""
    module = ModuleType(name.replace(".", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    printed, before = "", 0
    for block in blocks(text):
        if block.language == "python":
            file = re.match(r"# file: (\S+)\n", block.text)
            if file is not None:
                (folder / file[1]).write_text(block.text)
            source = "\n" * block.line + shrunk(block.text)
            # The page's own name for each block, so that traces and findings quote it.
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)
            stdout = io.StringIO()
            with contextlib.redirect_stdout(stdout):
                exec(compile(source, name, "exec"), vars(module))
            printed, before = stdout.getvalue(), block.line
        elif block.language == "output":
            assert agrees(block.text, printed), (
                f"{name}:{block.line} shows other text than the block of line {before} prints:\n"
                f"{printed}"
            )
    linecache.cache.pop(name, None)


def agrees(shown: str, printed: str) -> bool:
    """True if the text equals the page's, up to trailing spaces and `...`."""
    shown, printed = (
        "".join(line.rstrip() + "\n" for line in text.strip("\n").splitlines())
        for text in (shown, printed)
    )
    return doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS)


def commands(page: str) -> Iterator[list[str]]:
    """The words after `ppl-lvm` of every command line on a page."""
    for block in blocks(page):
        if block.language not in SHELL:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if "ppl-lvm " in line and "…" not in line:
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if "ppl-lvm" in words[:3]:  # after variables, or `nice`
                    yield words[words.index("ppl-lvm") + 1 :]


def parse(words: list[str]) -> None:
    """Let the command line read its words, and do nothing.

    Raises:
        USAGE_ERROR: an unknown command or option, a value of another kind, one missing.
    """
    group = typer.main.get_command(app)
    with group.make_context("ppl-lvm", list(words)) as context:
        name, command, rest = group.resolve_command(context, list(words))  # type: ignore[attr-defined]
        command.make_context(name, rest, parent=context).close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documentation_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_page(page.read_text(), page.name, tmp_path, monkeypatch)


@pytest.mark.slow
def test_diffusion_table_has_the_rows_of_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffusion_table.py", "--smoke"])
    runpy.run_path(str(ROOT / "docs" / "tools" / "diffusion_table.py"), run_name="__main__")
    printed = [line for line in capsys.readouterr().out.splitlines() if "bits a pixel" in line]
    page = (ROOT / "docs" / "diffusion.md").read_text()
    shown = re.findall(r"^\| ((?:VAE|diffusion), [^|]*?)(?:, 32 steps)? \|", page, re.MULTILINE)
    assert [line.split("  ")[0].strip() for line in printed] == shown
    assert (tmp_path / "diffusion.png").stat().st_size > 1000


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_parse(page: Path) -> None:
    for words in commands(page.read_text()):
        parse(words)


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_and_links_of_a_page_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


GOOD = """
```python
# file: mine.py
def run(num_steps=1_000, num_epochs=2): return num_steps
```
```python
from pathlib import Path
import mine
print(run(), mine.run(), "mine.py" in {p.name for p in Path().iterdir()})
print("at", __import__("time").time())
```
```output
3 1000 True
at ...
```
"""


def test_a_right_page_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(GOOD, "good.md", tmp_path, monkeypatch)


def test_a_page_that_shows_other_text_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match=r"good.md:12 shows other text"):
        run_page(GOOD.replace("3 1000", "3 1001"), "good.md", tmp_path, monkeypatch)


def test_a_block_that_fails_is_named_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("Text.\n\n```python\n\n1 / 0\n```\n", "bad.md", tmp_path, monkeypatch)
    last = caught.traceback[-1]
    assert (Path(last.path).name, last.lineno + 1) == ("bad.md", 5)


@pytest.mark.parametrize(
    "wrong",
    ["ppl-lvm fti m.py:M", "ppl-lvm fit m.py:M --data iris --nun-steps 3", "ppl-lvm fit m.py:M"],
)
def test_a_wrong_command_is_caught(wrong: str) -> None:
    lines = list(commands(f"```sh\n$ OMP_NUM_THREADS=1 {wrong}  # as a person writes it\n```\n"))
    assert lines == [wrong.split()[1:]]
    with pytest.raises(USAGE_ERROR):
        parse(lines[0])


def test_site_lists_every_page() -> None:
    listed = (ROOT / "docs" / "index.md").read_text().split("\n")
    assert [page.stem for page in PAGES if page.stem not in (*listed, "index")] == []
