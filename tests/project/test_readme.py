"""Programs and pictures of the README; the table of estimators."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_estimator_table_matches_the_classes() -> None:
    path = ROOT / "docs" / "tools" / "estimator_table.py"
    spec = importlib.util.spec_from_file_location("estimator_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "estimators.md").read_text()
    assert page == module.updated(page), "run: python docs/tools/estimator_table.py"


@pytest.mark.slow
def test_readme_first_program_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "first.py").write_text(blocks[0])
    done = subprocess.run(
        [sys.executable, "first.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    _, held_out, evidence = done.stdout.splitlines()
    assert -17.0 < float(held_out) < -15.5
    assert "nats per row" in evidence
    assert (tmp_path / "runs" / "wine" / "pictures" / "reconstructions.png").exists()


def test_readme_pictures_exist() -> None:
    for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).stat().st_size > 1000
