"""Tests of Template and its guide."""

import math
from typing import Any

import pyro
import torch

from ppl_lvm import check, fit
from ppl_lvm.scaffold.template.default_guide import template_guide
from ppl_lvm.scaffold.template.model import Template


def rows() -> tuple[Any, ...]:
    """A batch that the model takes: put rows of your own here."""
    pyro.set_rng_seed(0)
    return (torch.randn(60, 4),)


def test_guide_fits_the_model() -> None:
    model, batch = Template(), rows()
    if hasattr(model, "initialize"):
        model.initialize(*batch)
    issues = check(model, template_guide(model, *batch), *batch)
    assert issues.ok, issues


def test_fit_raises_the_bound() -> None:
    run = fit(Template, template_guide, rows(), num_steps=30, progress=False)
    first, last = (sum(run.history["bound"][i : i + 10]) for i in (0, 20))
    assert math.isfinite(last)
    assert last > first
