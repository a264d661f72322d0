"""Reports in a headless browser.

Checks that all pictures are drawn, nothing is requested, nothing overflows and no error is logged.
Runs Chromium from the PATH or from PPL_LVM_CHROMIUM; skipped without it. The page is in one frame
as wide as a phone and one as wide as a desktop; a script around the frames measures them.
"""

import json
import re
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headless import browser, chromium

from ppl_lvm.diagnostics.bound_tightness import Estimate, Sandwich, Tightness
from ppl_lvm.diagnostics.calibration import Calibration
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.diagnostics.finding import Finding, Verdict
from ppl_lvm.diagnostics.pareto_k import ParetoK
from ppl_lvm.diagnostics.predictive_checks import PredictiveCheck
from ppl_lvm.report.figures.comparison import picture
from ppl_lvm.report.figures.diagnosis import pictures
from ppl_lvm.report.figures.training import training_curve
from ppl_lvm.report.figures.traversals import traversals, worst_explained
from ppl_lvm.report.html import Entry, SideBySide, html
from ppl_lvm.report.run_figure import Picture
from ppl_lvm.runs.comparison import Comparison, Score

WIDTHS = {"phone": 360, "desktop": 1280}
READER = """
const results = {};
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow;
    const heights = {closed: page.documentElement.scrollHeight};
    const answer = page.querySelector(".answer");
    if (answer) heights.answer = answer.getBoundingClientRect().bottom;
    for (const part of page.querySelectorAll("details")) part.open = true;
    const images = [...page.images];
    results[frame.id] = {
      images: images.length,
      drawn: images.filter(i => i.complete && i.naturalWidth > 0).length,
      seen: images.filter(i => i.getBoundingClientRect().width >= 200).length,
      texts: images.filter(i => i.alt.length > 10).length,
      width: view.innerWidth,
      heights,
      unscoped: [...page.querySelectorAll("th")].filter(th => !th.scope).length,
      needed: page.documentElement.scrollWidth,
      requests: view.performance.getEntriesByType("resource").map(e => e.name.slice(0, 60)),
      heading: view.getComputedStyle(page.querySelector("thead") || page.body).position,
    };
  }
  document.getElementById("result").textContent = JSON.stringify(results);
});
"""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser() is None, reason="no Chromium on the PATH; see PPL_LVM_CHROMIUM"),
]


def measure(page: str, tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    """Measurements of a page at both widths, and console messages."""
    frames = "".join(
        f'<iframe id="{name}" style="border:0;width:{width}px;height:900px" '
        f'srcdoc="{escape(page)}"></iframe>'
        for name, width in WIDTHS.items()
    )
    around = f'<script>{READER}</script>{frames}<pre id="result"></pre>'
    (tmp_path / "around.html").write_text(f"<!doctype html><meta charset=utf-8>{around}")
    done = chromium(tmp_path, "--dump-dom", f"file://{tmp_path / 'around.html'}")
    result = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result is not None, done.stdout[-2000:]
    assert result[1], "the page did not finish loading"
    return json.loads(unescape(result[1])), [l for l in done.stderr.splitlines() if "CONSOLE" in l]


def entry(name: str) -> Entry:
    draw = np.random.default_rng(0)
    l = torch.from_numpy(draw.normal(-10, 1, 60))
    verdicts: tuple[Verdict, ...] = ("good", "warning", "bad", "unknown")
    rows = [
        Finding(
            question="Is it calibrated?",
            name=f"quantity {v} of a_very_long_name_without_any_break_at_all",
            value=0.8,
            error=0.1,
            threshold="good < 0.5",
            source="Somebody et al. 2020, arXiv:2000.00000",
            verdict=v,
            why="Why. " * 20,
            remedy="Do it.",
        )
        for v in verdicts
    ]
    details = {
        "tightness": Tightness(
            {1: Estimate(l - 1, 0.1), 10: Estimate(l, 0.1)}, Estimate(l + 0.1, 0.1), None, 0.8
        ),
        "sandwich": Sandwich(Estimate(l, 0.1), Estimate(l + 0.2, 0.1)),
        "khat": ParetoK(draw.normal(0.3, 0.2, 60), np.full(60, 50.0), {}, 100, False),
        "calibration": Calibration({"z[0]": draw.integers(0, 100, 200)}, 99),
        "predictive": PredictiveCheck(
            {"x: mean": 0.0}, {"x: mean": draw.normal(size=99)}, {"x": draw.uniform(size=(60, 2))}
        ),
    }
    x, back = draw.uniform(size=(2, 12, 64))
    drawn = {
        "Training": training_curve({"bound": list(draw.normal(size=300))}),
        "Traversals": traversals(
            draw.uniform(size=(3, 7, 64)), draw.normal(size=(3, 7)), "abc", image_shape=(8, 8)
        ),
        "Traversals of a table": traversals(
            draw.uniform(size=(3, 7, 4)), draw.normal(size=(3, 7)), "abc"
        ),
        "Worst": worst_explained(x, back, draw.normal(size=12), image_shape=(8, 8)),
        "Worst rows": worst_explained(x[:, :5], back[:, :5], draw.normal(size=12)),
    }
    shown = [Picture(n, f, "Caption.", "Alternative text.") for n, f in drawn.items()]
    facts = {"model": "ppl_lvm.models:VAE(" + "x=1, " * 30 + ")"}
    return Entry(f"A model on data ({name})", facts, Diagnosis(tuple(rows)),
                 [*shown, *pictures(details)], name)  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    l = np.random.default_rng(1).normal(-5, 1, 100)
    scores = tuple(
        Score(name=n, per_row=l + d, parameters=3, seconds=1.5, steps=10)
        for n, d in (("first", 0.0), ("second", -0.3))
    )
    comparison = Comparison(scores, "100 rows, held out by all")
    rows = [{"run": r["run"], "log p(x)": f"{r['value']:.3f}"} for r in comparison.to_json()]
    return html(
        [entry("first"), entry("second")],
        beside=SideBySide(rows, picture(comparison), comparison.note),
    )


def test_page_draws_all_pictures_without_requests_or_overflow(page: str, tmp_path: Path) -> None:
    results, console = measure(page, tmp_path)
    assert not console, console
    for name, width in WIDTHS.items():
        frame = results[name]
        assert frame["width"] == width
        assert frame["images"] == page.count("<img ") > 20
        assert frame["drawn"] == frame["seen"] == frame["texts"] == frame["images"]
        assert frame["needed"] <= width, f"{name}: {frame['needed']} pixels needed of {width}"
        assert all(url.startswith("data:") for url in frame["requests"])
        assert not frame["unscoped"]
    # Two runs are 12 screens of a phone before anything is opened.
    assert results["phone"]["heights"]["closed"] <= 12 * 800
    # The table's head is hidden on a phone, where rows become blocks, and only there.
    assert results["phone"]["heading"] == "absolute"
    assert results["desktop"]["heading"] == "static"


def test_measurements_detect_faults(tmp_path: Path) -> None:
    page = (
        "<!doctype html><body><img src='data:image/png;base64,AAAA' alt=''>"
        "<img src='http://127.0.0.1:9/x.png' alt=''><div style='width:2000px'>wide</div>"
        "<script>console.error('oh'); missing()</script></body>"
    )
    results, console = measure(page, tmp_path)
    assert len(console) >= 2
    frame = results["desktop"]
    assert frame["drawn"] == frame["texts"] == 0
    assert frame["needed"] >= 2000
    assert [url for url in frame["requests"] if url.startswith("http")]


def test_page_prints_on_a_few_sheets(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page)
    target = tmp_path / "page.pdf"
    chromium(tmp_path, f"--print-to-pdf={target}", f"file://{tmp_path / 'page.html'}")
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 3 <= pages <= 30
