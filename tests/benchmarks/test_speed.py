"""Benchmark of step times: equal losses, counted operations and bytes."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_lvm.benchmarks import speed
from ppl_lvm.benchmarks.handwritten import gm_vae
from ppl_lvm.benchmarks.speed_suite import fit_overhead, numpyro_peers
from ppl_lvm.benchmarks.speed_suite import roofline as floor
from ppl_lvm.benchmarks.speed_suite import variants as step_variants
from ppl_lvm.benchmarks.speed_suite.programs import PROGRAMS


def test_speed_rejects_unknown_program() -> None:
    with pytest.raises(ValueError, match=r"Unknown program 'vea'. Available: vae 128"):
        speed.run(program="vea")


@pytest.mark.parametrize("name", ["mixture 150", "regression", "hmm 50", "belief net"])
def test_every_program_has_its_variants(name: str) -> None:
    pyro.set_rng_seed(0)
    program = PROGRAMS[name]()
    makers = step_variants.variants(name, program)
    ours = {step_variants.EAGER, step_variants.CAPTURED, step_variants.COMPILED, step_variants.MANY}
    assert ours | {step_variants.PYRO} <= set(makers)
    assert (step_variants.HAND in makers) == (program.handwritten_loss is not None)
    assert (step_variants.UPDATE in makers) == (numpyro_peers.installed() and name != "belief net")


def test_parameters_of_program_are_complete() -> None:
    pyro.set_rng_seed(0)
    leaves = step_variants.parameters(PROGRAMS["vae 128"]())
    assert sum(p.numel() for p in leaves) == 64 * 128 + 128 + 2 * (128 * 8 + 8) + 8 * 128 + 128 + (
        128 * 64 + 64
    )


def test_handwritten_mixture_prior_sums_over_components() -> None:
    torch.manual_seed(0)
    params = gm_vae.parameters(3, observed=5, latent=2)
    x = (torch.rand(7, 5) < 0.4).float()
    torch.manual_seed(1)
    actual = gm_vae.elbo(params, x)
    torch.manual_seed(1)
    expected = _elbo(params, x)
    torch.testing.assert_close(actual, expected)


def _elbo(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The ELBO by torch's distributions."""
    from torch import distributions as dist

    mean, log_scale = gm_vae.vae.encode(params, x)
    q = dist.Independent(dist.Normal(mean, log_scale.exp()), 1)
    z = q.rsample()
    parts = dist.Normal(params["prior.means"], params["prior.log_scales"].exp())
    weights = dist.Categorical(logits=params["prior.logits"])
    prior = dist.MixtureSameFamily(weights, dist.Independent(parts, 1))
    likelihood = dist.Independent(dist.Bernoulli(logits=gm_vae.vae.decode(params, z)), 1)
    return likelihood.log_prob(x) + prior.log_prob(z) - q.log_prob(z)


def test_roofline_counts_operations_and_bytes() -> None:
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    assert floor.operations(lambda: (a @ b).sum().backward()) == 2 * 2 * 3 * 4 * 5
    assert floor.least_bytes([torch.zeros(10)], [torch.zeros(3)]) == 4 * 10 + 6 * 4 * 3
    machine = floor.Machine(operations=100.0, bandwidth=10.0)
    assert floor.floor(machine, 200, 10) == 2.0
    assert floor.floor(machine, 200, 50) == 5.0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_peak_memory_excludes_parent_process() -> None:
    ballast = torch.ones(2**28)  # 1 GB, more than the child process needs
    code = "from ppl_lvm.benchmarks.speed_suite.cold_start import _peak; print(_peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 50 < float(done.stdout) < ballast.numel() * ballast.element_size() / 2**20


def test_compiling_pays_off_after_start_cost_over_gain() -> None:
    captured: dict[str, Any] = {"step": "captured", "ms": 3.0, "cold start (s)": 1.0}
    compiled = {"step": "compiled", "ms": 1.0, "cold start (s)": 11.0}
    assert speed._paid(compiled, captured) == 5000
    assert speed._paid(compiled | {"ms": 4.0}, captured) is None
    assert speed._paid(captured, captured) is None


@pytest.mark.slow
@pytest.mark.skipif(not numpyro_peers.installed(), reason="needs the extra 'bench'")
@pytest.mark.filterwarnings("ignore")
def test_numpyro_chain_has_our_loss() -> None:
    program = PROGRAMS["hmm 50"]()
    assert program.handwritten_loss is not None
    assert program.parameters is not None
    one, many = numpyro_peers.steps("hmm 50", program.batch, 3, 0)
    expected = float(program.handwritten_loss(program.parameters(), *program.batch).detach())
    assert one() == pytest.approx(expected, rel=1e-4)
    losses: Any = many()
    assert len(losses) == 3
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[2] < losses[0]


@pytest.mark.slow
def test_fit_is_timed_over_bare_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_overhead, "LEVELS", ("captured",))
    monkeypatch.setattr(fit_overhead, "_STEPS", 40)
    (row,) = fit_overhead.ratios("mixture 150", PROGRAMS["mixture 150"](), 1, 0)
    assert row["steps"] == 40
    assert row["bare (ms)"] > 0
    assert math.isfinite(row["fit over bare"])
    assert row["fit, once (s)"] > 0
