"""The packages in pyproject.toml are the package folders of the tree."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pyproject_lists_every_package_folder() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {"ppl_lvm": "ppl_lvm"} | settings["package-dir"]
    folders = {
        ".".join((package, *file.parent.relative_to(ROOT / folder).parts))
        for package, folder in places.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert sorted(settings["packages"]) == sorted(folders)
