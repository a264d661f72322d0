"""Report of two runs as one self-contained page."""

import re
from pathlib import Path

import pytest
import torch

from ppl_lvm import fit_em
from ppl_lvm.models import GaussianMixture
from ppl_lvm.report.report import report


@pytest.mark.slow
def test_report_of_two_runs_is_self_contained(tmp_path: Path) -> None:
    for components in (2, 3):
        settings = {"components": components}
        fit_em(GaussianMixture, "iris", settings=settings, directory=tmp_path / str(components))
    path = report([tmp_path / "2", tmp_path / "3"], tmp_path / "page.html")
    page = path.read_text()
    pictures = re.findall(r"<img src=\"([^\"]{0,40})[^\"]*\" alt=\"([^\"]*)\">", page)
    assert len(pictures) >= 4
    assert all(source.startswith("data:image/") and alt for source, alt in pictures)
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert page.count("GaussianMixture on iris") == 2
    assert page.index("Side by side") < page.index("GaussianMixture on iris")
    assert "rows that were fitted to, which favors larger models" in page  # none were held out
    assert 'data-head="difference to the best, paired"' in page
    assert "components=3" in page
    assert path.stat().st_mode & 0o044  # others may read it


@pytest.mark.slow
def test_report_of_runs_whose_data_have_no_name_has_the_rows_that_they_keep(tmp_path: Path) -> None:
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    run = fit_em(GaussianMixture(components=2), x, directory=tmp_path / "run", max_iterations=5)
    pages = {
        "kept": report([tmp_path / "run"], tmp_path / "kept.html"),
        "passed": report([tmp_path / "run"], tmp_path / "passed.html", data=x),
        "in memory": report([run], tmp_path / "run.html"),
    }
    notes = {
        name: "of the 256 rows that the run keeps" in p.read_text() for name, p in pages.items()
    }
    assert notes == {"kept": True, "passed": False, "in memory": False}
