"""Source tree: folder sizes, class names, packages, imports."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import ppl_lvm

ROOT = Path(__file__).parents[2]
FOLDERS = ("ppl_lvm", "models", "guides", "benchmarks")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
PACKAGES = sorted(p.parent for p in SOURCES if p.name == "__init__.py")
MOST_MODULES, MOST_LINES, MOST_TOP = 12, 400, 6
HEAVY = ["arviz", "matplotlib", "pandas", "pyarrow", "scipy.stats", "sklearn"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_init_holds_docstring_imports_and_all() -> None:
    """And the call that checks the arguments of its constructors."""
    faults = []
    for package in PACKAGES:
        tree = ast.parse((package / "__init__.py").read_text())
        if not ast.get_docstring(tree):
            faults.append(f"{relative(package)}: no docstring")
        kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.AnnAssign)
        faults += [
            f"{relative(package)}:{node.lineno}: {ast.unparse(node)[:60]}"
            for node in tree.body[1:]
            if not isinstance(node, kinds)
            and ast.unparse(node) != "check_constructors(__all__, globals())"
        ]
    assert faults == []


def test_folder_of_many_modules_has_subfolders_or_a_reason() -> None:
    """The docstring of the package states the reason: it says "flat" or "more than 12 modules"."""
    faults = []
    for package in PACKAGES:
        modules = [p for p in package.glob("*.py") if p.name != "__init__.py"]
        nested = any((folder / "__init__.py").exists() for folder in package.iterdir())
        docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
        reason = re.search(r"\bflat\b|[Mm]ore than 12 modules", docstring)
        if len(modules) > MOST_MODULES and not nested and not reason:
            faults.append(f"{relative(package)}: {len(modules)} modules")
    assert faults == []


def test_top_of_the_package_has_few_modules() -> None:
    assert len(list((ROOT / "ppl_lvm").glob("*.py"))) <= MOST_TOP


def test_files_are_of_readable_length() -> None:
    lines = {relative(path): path.read_text().count("\n") for path in SOURCES}
    assert {path: n for path, n in lines.items() if n > MOST_LINES} == {}


def test_a_class_name_means_one_class() -> None:
    """scikit-learn's estimators have the names of their models."""
    places = defaultdict(list)
    for path in (path for path in SOURCES if path.parent.name != "sklearn"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(relative(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_no_module_bears_the_name_of_a_public_function() -> None:
    functions = {
        name for name in ppl_lvm.__all__ if callable(getattr(ppl_lvm, name)) and name.islower()
    }
    package = [p for p in SOURCES if relative(p).startswith("ppl_lvm/")]
    modules = {p.parent.name if p.name == "__init__.py" else p.stem for p in package}
    # A figure's module may be called by its subject: nothing is imported from there by name.
    assert functions & modules == set()


def test_packages_of_pyproject_are_the_folders() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    names = {relative(p).replace("/", ".") for p in PACKAGES}
    assert sorted(listed) == sorted(n if n.startswith("ppl_lvm") else f"ppl_lvm.{n}" for n in names)


def test_import_loads_nothing_until_a_name_is_used_and_fit_no_heavy_libraries() -> None:
    """Then `import ppl_lvm` takes no time beyond Pyro's 1.9 s, and `fit` 0.4 s of CPU."""
    code = (
        "import pyro, sys; before = set(sys.modules); import ppl_lvm; lazy = set(sys.modules)\n"
        "from ppl_lvm import fit; print(sorted(lazy - before)); print(len(set(sys.modules) - lazy))"
        f"\nprint([module for module in {HEAVY} if module in sys.modules])"
    )
    lazy, count, heavy = subprocess.check_output([sys.executable, "-c", code], text=True).split(
        "\n", 2
    )
    assert lazy == "['lazy_loader', 'ppl_lvm']"
    assert int(count) < 400  # 283 when this was written; scikit-learn alone has 500
    assert heavy.strip() == "[]"


def test_api_reference_lists_every_public_name_with_an_example() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    sections = dict(
        re.findall(r"^### `(\w+)[^\n]*\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    )
    assert sorted(sections) == sorted(set(ppl_lvm.__all__))
    assert [name for name, text in sections.items() if "```python" not in text] == []
