"""Tests of Template against exact results. Run: pytest test_template.py"""

import pyro
import torch
from torch.distributions import MultivariateNormal

from ppl_lvm import check, fit
from ppl_lvm.scaffold.template.guide import TemplateGuide
from ppl_lvm.scaffold.template.model import Template


def test_guide_fits_the_model() -> None:
    pyro.set_rng_seed(0)
    x = torch.randn(50, 4)
    model = Template()
    model.initialize(x)
    issues = check(model, TemplateGuide(model, x), x)
    assert issues.ok, issues


def test_evidence_equals_the_closed_form_if_f_is_linear() -> None:
    pyro.set_rng_seed(0)
    x = 3 + torch.randn(100, 2) @ torch.randn(2, 4) + 0.5 * torch.randn(100, 4)
    run = fit(Template(hidden=()), TemplateGuide, x, num_steps=200, progress=False)
    evidence = run.log_evidence(x, num_particles=500)
    # x = W z + b + noise of variance σ² is itself normal.
    W, b = run.parameters()["decoder.layers.0.weight"], run.parameters()["decoder.layers.0.bias"]
    noise = run.parameters()["scale"] ** 2 * torch.eye(4)
    exact = MultivariateNormal(b, W @ W.T + noise).log_prob(x).mean().item()
    assert abs(evidence.value - exact) < 5 * evidence.monte_carlo_error + 1e-3
