"""Example notebooks run, and their values have representations."""

import ast
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def _value(source: str, namespace: dict[str, Any], name: str) -> Any:
    """The value of a cell's last expression, as a notebook shows it; None without one."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec"), namespace)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def _shrunk(source: str) -> str:
    """A cell with fewer steps and restarts."""
    source = re.sub(r"num_steps=\d{3,}", "num_steps=200", source)
    source = re.sub(r"num_epochs=\d+", "num_epochs=3", source)
    return re.sub(r"(restarts|n_init)=\d+", r"\1=2", source)


def test_notebooks_have_no_stored_outputs() -> None:
    assert len(NOTEBOOKS) == 5
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text())
        assert all(not cell.get("outputs") for cell in notebook["cells"])
        assert notebook["cells"][0]["source"][0].startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppl_lvm.core.console.LINE_SECONDS", 1e9)
    module = ModuleType(path.stem)
    monkeypatch.setitem(sys.modules, path.stem, module)
    shown = []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            value = _value(_shrunk("".join(cell["source"])), vars(module), path.name)
            if value is not None:
                html = getattr(value, "_repr_html_", lambda: None)()
                shown.append(html or repr(value))  # of a figure, HTML is None
    plt.close("all")
    assert len(shown) >= 3
    assert all(shown)
