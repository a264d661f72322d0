"""Page to explore a run: data, size, views."""

import base64
import json
import re
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from headless import browser, chromium

from ppl_lvm import Run, fit, fit_em, load_data
from ppl_lvm.models import FactorAnalysis, GaussianMixture
from ppl_lvm.report import explore as module
from ppl_lvm.report.explore import explore, pack, page_data

WIDTHS = {"phone": 360, "desktop": 1280}


@pytest.fixture(scope="module")
def mixture() -> Run:
    return fit_em(GaussianMixture, "iris", settings={"components": 3}, max_iterations=30)


def unpacked(field: dict[str, Any]) -> Any:
    values = np.frombuffer(base64.b64decode(field["values"]), "<f4")
    return values.reshape(field["shape"])


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


def test_packed_values_are_read_back_with_missing_ones() -> None:
    values = np.array([[1.5, np.nan], [-np.inf, 0.1]])
    np.testing.assert_array_equal(unpacked(pack(values)), values.astype("f4"))


def test_page_is_one_file_that_requests_nothing(mixture: Run, tmp_path: Path) -> None:
    page = explore(mixture, tmp_path / "page.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page.partition('id="data"')[0])
    assert not re.findall(r"https?://(?!www\.w3\.org/)", page)
    assert page == explore(mixture, tmp_path / "again.html").read_text()
    data = data_of(page)
    x = load_data("iris").tensors[0].numpy()
    np.testing.assert_array_equal(unpacked(data["x"]), x)
    p = unpacked(data["classes"]["z"]["p"])
    np.testing.assert_allclose(p, mixture.encode(torch.as_tensor(x))["z"], atol=1e-6)
    assert (unpacked(data["k"]) == -np.inf).all()  # exact
    assert data["labels"][0] == "setosa"


def test_rows_are_thinned_evenly_to_the_limit(mixture: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 60)
    data = page_data(mixture, load_data("iris"))
    assert data["total"] == 150
    assert len(data["ids"]) == 60
    assert (data["ids"][0], data["ids"][-1]) == (0, 149)
    assert set(np.diff(data["ids"])) <= {2, 3}
    x = load_data("iris").tensors[0].numpy()
    np.testing.assert_array_equal(unpacked(data["x"]), x[data["ids"]])


def test_text_of_the_data_cannot_end_the_script(mixture: Run, tmp_path: Path) -> None:
    iris = load_data("iris").tensors[0].numpy()
    data = load_data(pd.DataFrame(iris, columns=["</script><b>", "b", "c", "d"]))
    page = explore(mixture, tmp_path / "page.html", data=data).read_text()
    assert "</script><b>" not in page
    assert data_of(page)["columns"][0] == "</script><b>"


DRIVER = """
<script>
(() => {
  const out = {width: innerWidth, needed: document.documentElement.scrollWidth};
  const key = (target, name) =>
    target.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
  const type = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input")); };
  out.count = $("count").textContent;
  const first = state.row;
  key(canvas, "n"); out.stepped = state.row !== first;
  const before = view.slice();
  key(canvas, "ArrowRight"); key(canvas, "+");
  out.moved = view[0] !== before[0] && view[1] - view[0] < before[1] - before[0];
  document.querySelector("#table tbody tr:nth-child(3)").click();
  const marked = document.querySelector("#table tr[aria-selected=true]");
  out.clicked = state.row === order[2] && marked !== null;
  out.detail = $("detail").textContent.slice(0, 30);
  type("search", "petal length > 5"); out.searched = order.length;
  out.address = new URLSearchParams(location.hash.slice(1)).get("q");
  type("search", ""); $("worst").click(); out.worst = state.row === order[0];
  $("mode-lasso").click(); lasso = new Set([1, 2, 3]); refresh();
  out.lasso = order.length; key(canvas, "Escape");
  const slider = document.querySelector("[data-latent]");
  if (slider) {
    const old = $("decoded").textContent;
    slider.value = 9; slider.dispatchEvent(new Event("input"));
    out.slid = $("decoded").textContent !== old;
  }
  if ($("rotate")) {
    const old = $("loadings").textContent;
    $("rotate").click(); out.rotated = $("loadings").textContent !== old;
  }
  out.codes = [...document.querySelectorAll("[data-code]")].map(b => b.dataset.code);
  out.page = getComputedStyle(document.body).backgroundColor;
  out.requests = performance.getEntriesByType("resource").length;
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  out.paint = paint ? paint.startTime : null;
  parent.postMessage(JSON.stringify(out), "*");
})();
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="no Chromium on the PATH; see PPL_LVM_CHROMIUM")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_views_of_the_page_answer_to_keys_and_clicks(
    mixture: Run, tmp_path: Path, scheme: str
) -> None:
    data = load_data("iris")
    factors = fit(FactorAnalysis(latent=2), None, data, num_steps=100, progress=False)
    results = {}
    for name, run in (("mixture", mixture), ("factors", factors)):
        page = explore(run, tmp_path / f"{name}.html").read_text()
        (tmp_path / f"{name}.html").write_text(page.replace("</body>", DRIVER + "</body>"))
        for width, pixels in WIDTHS.items():
            around = (
                "<!doctype html><script>onmessage = e => { document.getElementById('result')"
                ".textContent = e.data; };</script><pre id=result></pre>"
                f"<iframe style='width:{pixels}px;height:900px;border:0' "
                f"src='{escape(name)}.html'></iframe>"
            )
            (tmp_path / "around.html").write_text(around)
            color = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
            done = chromium(tmp_path, color, "--dump-dom", f"file://{tmp_path / 'around.html'}")
            assert "Uncaught" not in done.stderr, done.stderr[-2000:]
            match = re.search(r"<pre id=\"result\">(.*?)</pre>", done.stdout, re.DOTALL)
            assert match is not None
            results[name, width] = json.loads(unescape(match[1]))
    for (name, width), result in results.items():
        assert result["width"] == WIDTHS[width]
        assert result["needed"] <= result["width"]
        assert result["count"] == "150 of 150 rows"
        assert result["detail"].startswith("Row ")
        assert result["searched"] == 42
        assert result["address"] == "petal length > 5"
        assert result["lasso"] == 3
        flags = ["stepped", "moved", "clicked", "worst"]
        flags += ["slid", "rotated"] if name == "factors" else []
        assert [flag for flag in flags if not result[flag]] == []
        assert result["requests"] == 0
        assert all("load_run" in code for code in result["codes"])
        assert result["page"] == ("rgb(22, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)")
