"""Comparisons with NUTS find wrong posteriors."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_lvm import fit
from ppl_lvm.approximation.verification import compare


def draws_of(scale=1.0, shift=0.0, count=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return {"b": torch.stack([shift + scale * noise[:, 0], noise[:, 1]], 1)}


@pytest.mark.parametrize(
    ("scale", "shift", "verdict"), [(1, 0, "agrees"), (1.3, 0, "differs"), (1, 0.3, "differs")]
)
def test_comparison_finds_a_wrong_parameter(scale, shift, verdict):
    table = compare(draws_of(scale, shift), 1, draws_of(count=1000, seed=1))
    assert list(table.index) == ["b[0]", "b[1]"]
    assert list(table["verdict"]) == [verdict, "agrees"]
    assert table["sd_ratio"]["b[0]"] == pytest.approx(scale, abs=5 * 1.3 * 0.025)
    assert table["difference"]["b[0]"] == pytest.approx(shift, abs=5 * 0.035)


def test_comparison_with_few_draws_is_unknown():
    table = compare(draws_of(), 1, draws_of(count=60, seed=1))
    assert list(table["verdict"]) == ["unknown", "unknown"]


def shift(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


@pytest.mark.slow
def test_run_is_verified_by_nuts(capsys):
    run = fit(shift, None, torch.linspace(0, 1, 5), progress=False)
    table = run.verify(draws=500, warmup=100)
    assert table["NUTS sd"]["m"] == pytest.approx(6**-0.5, rel=5 * 0.06)
    assert table["verdict"]["m"] != "differs"
    assert "sd_ratio" in capsys.readouterr().out
    assert run.verify(nuts=False)["verdict"]["m"] == "agrees"
    run.draws = {"m": run.draws["m"] + 1}
    assert run.verify(nuts=False)["verdict"]["m"] == "differs"


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_verification_refuses_local_latents():
    run = fit(local, None, torch.randn(20), num_steps=2, progress=False)
    with pytest.raises(ValueError, match="verify: the model has no latent outside the plate"):
        run.verify()
