"""Configuration of the documentation site (`make docs`)."""

import importlib.metadata
import re
from typing import Any

project = "ppl_lvm"
author = "The authors of ppl_lvm"
release = importlib.metadata.version("ppl_lvm")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["tools", "notebooks"]
# Fonts are those of the reader's system, and nothing is loaded from the network.
html_theme = "furo"
html_title = "ppl_lvm"
html_show_sourcelink = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_custom_sections = [("Options", "params_style")]
# scikit-learn gives every estimator methods set_…_request; their texts are its own.
REQUESTS = ("fit", "inverse_transform", "predict", "predict_proba", "score", "score_samples")
autodoc_default_options = {
    "members": True,
    "exclude-members": ",".join(f"set_{name}_request" for name in (*REQUESTS, "transform")),
}
suppress_warnings = ["ref.python", "misc.highlighting_failure"]


def setup(app: Any) -> None:
    """Links to files above this folder, which are not in the site, become their names."""

    def read(app: Any, name: str, source: list[str]) -> None:
        source[0] = re.sub(r"\[([^\]]+)\]\(\.\./([\w.]+)(?:#[\w-]+)?\)", r"\1 (`\2`)", source[0])

    app.connect("source-read", read)
