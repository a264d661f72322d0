"""HTML page: self-contained, ordered, with alternative texts."""

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppl_lvm.diagnostics.bound_tightness import Estimate, Tightness
from ppl_lvm.diagnostics.calibration import Calibration
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.diagnostics.finding import Finding
from ppl_lvm.diagnostics.latent_usage import LatentUse
from ppl_lvm.diagnostics.pareto_k import ParetoK
from ppl_lvm.diagnostics.predictive_checks import PredictiveCheck
from ppl_lvm.report.figures.diagnosis import pictures
from ppl_lvm.report.html import Entry, html, write


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def details() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    values = torch.linspace(-11, -9, 20)
    return {
        "tightness": Tightness(
            {1: Estimate(values - 1, 0.1), 10: Estimate(values, 0.1)},
            Estimate(values + 0.1, 0.1),
            None,
            0.8,
        ),
        "khat": ParetoK(generator.normal(0.3, 0.2, 20), np.full(20, 50.0), {}, 100, False),
        "calibration": Calibration({"z[0]": generator.integers(0, 100, 200)}, 99),
        "predictive": PredictiveCheck({"x: mean": 0.0}, {"x: mean": generator.normal(size=99)}, {}),
        "latents": LatentUse(
            ("z[0]",), torch.ones(1), torch.ones(1), torch.ones(1), 1, 0, 1, 0, None, 0, 20
        ),
    }


@pytest.fixture
def entry() -> Entry:
    row = Finding(
        question="Is it <b>?",
        name="k̂ & co",
        value=0.8,
        error=0.1,
        threshold="good < 0.5",
        source="src",
        verdict="bad",
        why="w",
        remedy="Widen q.",
    )
    return Entry("A <run>", {"seed": "0"}, Diagnosis((row,)), pictures(details()))


def test_every_result_has_a_picture_with_caption_and_text(entry: Entry) -> None:
    assert len(entry.pictures) == 5
    for picture in entry.pictures:
        assert picture.caption.endswith(".")
        assert picture.alt_text.endswith(".")


def test_page_requests_nothing_and_every_picture_has_a_text(entry: Entry) -> None:
    reader = Reader()
    reader.feed(html([entry, entry]))
    images = [a for tag, a in reader.tags if tag == "img"]
    assert len(images) == 10
    assert all(a["alt"] for a in images)
    for _, attributes in reader.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not [tag for tag, _ in reader.tags if tag == "script"]
    source = images[0]["src"]
    assert source is not None
    assert b"<svg" in base64.b64decode(source.split(",")[1])


def test_verdicts_come_before_pictures_and_text_is_escaped(entry: Entry) -> None:
    page = html([entry])
    assert page.index(" bad</span>") < page.index("<img")
    assert "A &lt;run&gt;" in page
    assert "k̂ &amp; co" in page
    assert "Is it <b>" not in page


def test_write_saves_the_page(entry: Entry, tmp_path: Path) -> None:
    write([entry], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == html([entry])
