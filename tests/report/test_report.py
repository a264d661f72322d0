"""Report of two runs as one self-contained page."""

import re
from pathlib import Path

import pytest

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
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("GaussianMixture on iris") == 2
    assert page.index("Side by side") < page.index("GaussianMixture on iris")
    assert "rows that were fitted to, which favors larger models" in page  # none were held out
    assert 'data-head="difference to the best, paired"' in page
    assert "components=3" in page
    assert path.stat().st_mode & 0o044  # others may read it
