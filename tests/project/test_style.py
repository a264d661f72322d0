"""Style rules of CONTRIBUTING: first lines, banned words, variable names."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("ppl_lvm", "models", "guides", "benchmarks", "tests", "docs")
# The vocabulary quotes the words that it replaces.
PAGES = sorted(
    page
    for page in (*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"))
    if page.name != "vocabulary.md"
)

# A first line is a noun phrase or an imperative.
OPENINGS = re.compile(r"(What|Whether|Which|How|Who|Where|Whose)\b")
# A clause in the place of a noun at the beginning of a sentence; questions are allowed.
CLAUSES = re.compile(r"(?:^|(?<=[.!?:] )|(?<=\n))(What|Whether|Who|Whoever)\b[^.?]*\.")
WORDS = re.compile(
    r"\b(nobody|whoever|of (?:its|their|one's) own|datum|there is none|cannot be had|cry wolf"
    r"|(?<!random )(?<!Random )(?<!\.)walk(?:s|ed|ing)?|ways?)\b",
    re.IGNORECASE,
)
NAMES = {"found", "made", "given", "wanted", "own", "said", "told", "kept"}
BANNED = re.compile(rf"\b({'|'.join(NAMES)})\b")
# Options that users type keep their names.
OPTIONS = {("conditional_vae.py", "given"), ("test_conditional_vae.py", "given")}
LONGEST = 10  # words of a module's first line


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every comment and string in a Python file with a banned word."""
    if not WORDS.search(source):  # reading tokens takes longer than all the rest
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.start[0], token.string


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """The node and the statements inside it."""
    yield node
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, block, ()):
            yield from statements(child)


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, int, str]]:
    for node in statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, getattr(node, "lineno", 1), text


def faults(path: Path) -> list[str]:
    source = path.read_text()
    tree = ast.parse(source)
    listed = []
    for node, line, text in docstrings(tree):
        first = text.splitlines()[0]
        if OPENINGS.match(first):
            listed.append(f"{line}: opening: {first}")
        if isinstance(node, ast.Module) and len(first.split()) > LONGEST:
            listed.append(f"{line}: more than {LONGEST} words: {first}")
        for clause in CLAUSES.finditer(text):
            listed.append(f"{line}: clause: {clause.group()[:60]}")
    for line, text in texts(source):
        listed += [f"{line}: word: {word.group()}" for word in WORDS.finditer(text)]
    for node in ast.walk(tree) if BANNED.search(source) else ():
        name = None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        if name in NAMES and (path.name, name) not in OPTIONS:
            listed.append(f"{node.lineno}: name: {name}")
    return listed


@pytest.mark.parametrize("folder", FOLDERS)
def test_python_files_follow_the_style_rules(folder: str) -> None:
    listed = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)  # it holds the banned words themselves
        for fault in faults(path)
    ]
    assert listed == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_page_has_no_banned_words(path: Path) -> None:
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    assert [word.group() for word in WORDS.finditer(prose)] == []


def test_checker_reports_each_kind_of_fault(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text('"""What nobody reads."""\n\nfound = 1\n')
    kinds = {fault.split(": ")[1] for fault in faults(bad)}
    assert kinds == {"opening", "clause", "word", "name"}
