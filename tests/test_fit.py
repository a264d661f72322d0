"""fit: bounds per datum that are right under mini-batches, isolation, seeds, refusals."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.fit import fit
from ppl_lvm.run import Run, load_run

quiet = functools.partial(fit, progress=False)


class Factor(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N(w z_n + b, s): log p(x_n) = log N(x_n; b, w wᵀ + s² I)."""

    def __init__(self, observed: int = 3) -> None:
        super().__init__()
        self.observed = observed
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, observed))
        self.b = nn.Parameter(torch.zeros(observed))
        self.s = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", Normal(z * self.w + self.b, self.s).to_event(1), obs=x)


class FactorGuide(PyroModule):
    def __init__(self, observed: int = 3) -> None:
        super().__init__()
        self.observed = observed
        self.encoder = nn.Linear(observed, 1)
        self.spread = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.encoder(x), self.spread).to_event(1))


class Mean(PyroModule):
    """A global latent: m ~ N(0, 1), x_n ~ N(m, 1)."""

    def forward(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(m, 1.0), obs=x)


class MeanGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.scale = PyroParam(torch.tensor(0.5), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        pyro.sample("m", Normal(self.loc, self.scale))


def factor_data(n: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, 1, generator=generator)
    return z * torch.tensor([2.0, -1.0, 0.5]) + torch.randn(n, 3, generator=generator)


def exact(run: Run, x: Tensor) -> Tensor:
    p = run.parameters()
    cov = torch.outer(p["w"], p["w"]) + p["s"] ** 2 * torch.eye(len(p["w"]))
    return torch.distributions.MultivariateNormal(p["b"], cov).log_prob(x)


def test_the_fit_approaches_the_maximum_likelihood() -> None:
    x = factor_data()
    run = quiet(Factor(), FactorGuide(), x, num_steps=1500, optimizer="Adam(lr=0.02)")
    centred = x - x.mean(0)
    # The posterior of this model is in the guide's family, so the bound can meet log p(x).
    gap = float(exact(run, x).mean()) - run.results["bound"]
    assert abs(gap) < 0.02 + 5 * run.results["bound_monte_carlo_error"]
    evidence = run.log_evidence(x, 200)
    error = 5 * evidence.monte_carlo_error + 1e-5
    assert abs(evidence.value - float(exact(run, x).mean())) < error
    normal = torch.distributions.MultivariateNormal(x.mean(0), centred.T @ centred / len(x))
    assert 0 < normal.log_prob(x).mean() - exact(run, x).mean() < 0.05


def test_a_mini_batch_gradient_is_the_whole_one_in_the_mean() -> None:
    """Averaged over an epoch's batches of equal size, bound and gradient are the full ones."""
    from ppl_lvm.data import load_data
    from ppl_lvm.pair import Pair
    from ppl_lvm.training.loop import Training
    from ppl_lvm.training.stepping import Options

    x = torch.linspace(-1, 3, 40)

    def gradients(batch_size: int, steps: int) -> tuple[float, dict[str, Tensor]]:
        pair = Pair(Mean(), MeanGuide(), FixedDraw())
        pair.prepare(x[:batch_size])
        options = Options(num_steps=steps, batch_size=batch_size, optimizer="SGD(lr=1.0)")
        training = Training(pair, load_data(x), None, options)
        start = {n: t.detach().clone() for n, t in pair.leaves.items()}
        totals = {n: torch.zeros_like(t) for n, t in start.items()}
        for _ in range(steps):
            training.step()
            for name, leaf in pair.leaves.items():
                totals[name] += (start[name] - leaf.detach()) / steps
                leaf.data.copy_(start[name])
        return float(np.mean(training.history["bound"])), totals

    whole, full = gradients(40, 1)
    part, mean = gradients(8, 5)
    assert part == pytest.approx(whole, rel=1e-5)
    for name in full:
        assert torch.allclose(mean[name], full[name], rtol=1e-4, atol=1e-6), name


class FixedDraw(Trace_ELBO):
    """The ELBO with the same random numbers at every step, so that batches can be compared."""

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        torch.manual_seed(11)
        return super().loss_and_grads(model, guide, *args, **kwargs)


def test_a_bound_is_per_datum_whatever_n() -> None:
    for n in (10, 1000):
        run = quiet(Mean(), MeanGuide(), torch.zeros(n), num_steps=1, objective=FixedDraw())
        loss = FixedDraw().loss_and_grads(Mean(), MeanGuide(), torch.zeros(n))
        assert run.history["bound"][0] == pytest.approx(-loss / n, rel=1e-6)


def test_plain_svi_takes_the_same_steps() -> None:
    x = factor_data(64)
    torch.manual_seed(0)
    model, guide = Factor(), FactorGuide()
    run = quiet(model, guide, x, num_steps=20, optimizer="SGD(lr=0.1)", objective=FixedDraw())
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1 / 64}), FixedDraw())
    bounds = [-svi.step(x) / 64 for _ in range(20)]
    assert np.allclose(run.history["bound"], bounds, rtol=1e-5)
    assert torch.allclose(run.parameters()["w"], model.w.detach(), rtol=1e-4, atol=1e-6)
    assert torch.allclose(run.parameters()["spread"], guide.spread.detach(), rtol=1e-4, atol=1e-6)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not() -> None:
    x = factor_data()
    runs = [
        quiet(Factor, FactorGuide, x, num_steps=30, batch_size=32, seed=seed) for seed in (1, 1, 2)
    ]
    assert runs[0].history == runs[1].history
    assert all(torch.equal(v, runs[1].parameters()[n]) for n, v in runs[0].parameters().items())
    assert runs[0].history != runs[2].history


def test_two_fits_leave_each_other_and_the_programs_alone() -> None:
    x = factor_data()
    model, guide = Factor(), FactorGuide()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = quiet(model, guide, x, num_steps=50)
    kept = first.parameters()
    second = quiet(model, guide, -x + 3, num_steps=50)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(v, kept[n]) for n, v in first.parameters().items())
    assert not torch.equal(first.parameters()["b"], second.parameters()["b"])
    assert len(pyro.get_param_store()) == 0


def test_plain_functions_with_param_statements() -> None:
    decoder = nn.Linear(1, 3)
    weight = decoder.weight.detach().clone()

    def model(x: Tensor) -> None:
        net = pyro.module("decoder", decoder)
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", Normal(net(z), s).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.zeros(3, 1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x @ a, 1.0).to_event(1))

    run = quiet(model, guide, factor_data(), num_steps=50)
    assert sorted(run.parameters()) == ["a", "decoder$$$bias", "decoder$$$weight", "s"]
    assert not torch.equal(run.parameters()["a"], torch.zeros(3, 1))
    assert not torch.equal(run.parameters()["decoder$$$weight"], weight)
    assert torch.equal(decoder.weight.detach(), weight)


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_a_parameter_of_another_layout_is_trained(engine: Any) -> None:
    """Pyro's store makes what it is given contiguous: of a transposed weight it keeps a copy,
    which the program never reads. The weight itself is trained, as one row after another is."""

    def trained(weight: Tensor) -> dict[str, Tensor]:
        decoder = nn.Linear(2, 3, bias=False)
        decoder.weight = nn.Parameter(weight)

        def model(x: Tensor) -> None:
            net = pyro.module("decoder", decoder)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", Normal(0.0, 1.0).expand([2]).to_event(1))
                pyro.sample("x", Normal(net(z), 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            a = pyro.param("a", torch.zeros(3, 2))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", Normal(x @ a, 1.0).to_event(1))

        before = weight.clone()
        run = quiet(model, guide, factor_data(), num_steps=20, engine=engine)
        assert torch.equal(decoder.weight, before)
        return run.parameters()

    columns = torch.linspace(-1, 1, 6).reshape(2, 3)
    found, wanted = trained(columns.t()), trained(columns.t().contiguous())
    assert sorted(found) == ["a", "decoder$$$weight"]
    assert not torch.allclose(found["decoder$$$weight"], columns.t(), atol=1e-3)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name


def test_autoguides_as_builder_and_as_instance() -> None:
    x = torch.linspace(-1, 3, 40)
    exact_mean = x.sum() / 41
    for guide in (AutoNormal, AutoNormal(Mean())):
        run = quiet(Mean(), guide, x, num_steps=1000, optimizer="Adam(lr=0.02)")
        assert float(run.parameters()["locs.m"]) == pytest.approx(float(exact_mean), abs=0.1)


def test_global_latents_under_mini_batches_meet_the_posterior() -> None:
    x = torch.linspace(-1, 3, 400)
    run = quiet(Mean(), MeanGuide(), x, num_steps=3000, batch_size=20, optimizer="Adam(lr=0.01)")
    # The exact posterior is N(Σx/(N+1), 1/(N+1)); wrong scaling would give 1/(B+1) = 1/21.
    assert float(run.parameters()["scale"]) == pytest.approx((1 / 401) ** 0.5, rel=0.3)
    assert float(run.parameters()["loc"]) == pytest.approx(float(x.sum()) / 401, abs=0.1)


def test_mini_batches_without_a_data_plate_are_refused() -> None:
    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    with pytest.raises(ValueError, match=r'pyro\.plate\("data", len\(x\)\)'):
        quiet(model, lambda x: None, torch.randn(20), batch_size=5, num_steps=3)
    run = quiet(model, lambda x: None, torch.randn(20), num_steps=3)
    assert run.results["steps"] == 3


def test_renyi_scaled_outside_the_logarithm() -> None:
    """Pyro's RenyiELBO with a mini-batch's scale inside is no bound; ours stays below log p."""
    x = factor_data(100)
    run = quiet(
        Factor(),
        FactorGuide(),
        x,
        objective="RenyiELBO(alpha=0, num_particles=20)",
        batch_size=10,
        num_steps=1,
        optimizer="SGD(lr=0.0)",
        engine="eager",
    )
    assert run.results["bound"] < float(exact(run, x).mean()) + 0.02


def test_objectives_that_would_be_silently_wrong_are_refused() -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("coin", Bernoulli(p))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("coin", Bernoulli(q))

    for name in ("RenyiELBO(num_particles=3)", "TraceMeanField_ELBO"):
        with pytest.raises(ValueError, match="'coin'"):
            quiet(model, guide, torch.randn(10), objective=name, num_steps=1)
    with pytest.raises(ValueError, match=r"global latent 'm' and mini-batches"):
        quiet(
            Mean(),
            MeanGuide(),
            torch.randn(20),
            objective="RenyiELBO(num_particles=3)",
            batch_size=5,
            num_steps=1,
        )


def test_early_stopping_goes_back_to_the_best() -> None:
    x = factor_data(60)
    run = quiet(
        Factor(),
        FactorGuide(),
        x[:10],
        validation=x[10:],
        optimizer="Adam(lr=0.1)",
        num_steps=5000,
        validate_every=10,
        patience=3,
    )
    bounds = run.history["validation_bound"]
    assert run.results["steps"] < 5000
    assert len(bounds) - 1 - int(np.argmax(bounds)) == 4
    # The figure in the results is a new evaluation of the same parameters (four draws, not one).
    error = run.results["held_out_monte_carlo_error"]
    assert abs(run.results["held_out"] - max(bounds)) < 5 * error * 8**0.5


def test_kl_annealing_starts_without_the_kl_and_ends_with_it() -> None:
    x = factor_data(50)
    run = quiet(
        Factor(),
        FactorGuide(),
        x,
        objective=FixedDraw(),
        kl_annealing=10,
        num_steps=12,
        optimizer="SGD(lr=0.0)",
    )
    bounds = run.history["bound"]
    steps = np.diff(bounds)
    assert np.allclose(steps[:10], steps[0], rtol=1e-3)  # linear in the weight
    assert steps[0] < 0  # the KL is a cost
    assert steps[10] == 0


@pytest.mark.parametrize(
    "optimizer",
    [
        "AdamW(lr=0.01)",
        "SGD(lr=0.01, momentum=0.9)",
        "RMSprop(lr=0.01)",
        "LBFGS(lr=0.1, max_iter=2)",
        torch.optim.Adam,
        functools.partial(torch.optim.Adagrad, lr=0.1),
    ],
)
def test_any_torch_optimiser(optimizer: Any) -> None:
    run = quiet(Factor(), FactorGuide(), factor_data(), optimizer=optimizer, num_steps=60)
    assert np.mean(run.history["bound"][-10:]) > np.mean(run.history["bound"][:3])


def test_schedules_change_the_learning_rate() -> None:
    common: dict[str, Any] = {"num_steps": 20, "validate_every": 5, "validation": 0.2}
    run = quiet(
        Factor(), FactorGuide(), factor_data(), schedule="ExponentialLR(gamma=0.9)", **common
    )
    assert run.history["learning_rate"][-1] == pytest.approx(0.01 * 0.9**20)
    plateau = "ReduceLROnPlateau(patience=0, threshold=100.0)"
    run = quiet(Factor(), FactorGuide(), factor_data(), schedule=plateau, **common)
    assert run.history["learning_rate"][-1] < 0.01


def test_clipping_bounds_the_step() -> None:
    model = Mean()
    guide = MeanGuide()
    run = quiet(
        model, guide, torch.full((5,), 50.0), clip_norm=0.1, optimizer="SGD(lr=1.0)", num_steps=1
    )
    moved = float(run.parameters()["loc"])
    assert 0 < moved <= 0.1 + 1e-6


def test_enumeration_by_its_bare_name_is_captured() -> None:
    """Pyro finds max_plate_nesting at the first step; found before, no step changes the objective,
    which a captured one could not."""
    x = torch.randn(20)

    def model(x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Bernoulli(0.4), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(m + 2 * c, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))

    runs = [
        quiet(model, guide, x, objective="TraceEnum_ELBO", num_steps=5, engine=engine)
        for engine in ("captured", "eager")
    ]
    assert runs[0].history["bound"] == pytest.approx(runs[1].history["bound"], rel=1e-5)


def test_enumerated_sites_are_summed_out_by_default() -> None:
    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        m = pyro.param("m", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(w), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(m[z], 1.0), obs=x)

    x = torch.randn(30)
    run = quiet(model, lambda x: None, x, num_steps=1, optimizer="SGD(lr=0.0)")
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.3, 0.7])),
        torch.distributions.Normal(torch.tensor([-1.0, 1.0]), 1.0),
    )
    truth = float(mixture.log_prob(x).mean())
    assert run.results["bound"] == pytest.approx(truth, abs=1e-5)
    assert run.results["log_evidence"] == pytest.approx(truth, abs=1e-5)
    assert isinstance(run._pair.objective, TraceEnum_ELBO)
    codes = run.encode(x)["z"]
    assert codes.shape == (30, 2)
    assert torch.allclose(codes.sum(1), torch.ones(30), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_steps": 1, "num_epochs": 1}, "not both"),
        ({"patience": 3}, "validation=0.1"),
        ({"optimizer": "Adan(lr=1)"}, "torch has no optimiser 'Adan'"),
        ({"optimizer": "Adam(rate=1)"}, "takes no 'rate'"),
        ({"objective": "ELBOW"}, "There is no objective 'ELBOW'"),
        ({"restarts": 0}, "restarts"),
        ({"resume": True}, "needs the directory"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_calls_say_what_to_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(Factor(), FactorGuide(), factor_data(), **arguments)


def test_a_run_comes_back_from_its_directory(tmp_path: Path) -> None:
    x = factor_data()
    run = quiet(Factor(), FactorGuide(), x, num_steps=20, directory=tmp_path / "r")
    back = load_run(tmp_path / "r", model=Factor(), guide=FactorGuide())
    assert back.history == run.history
    assert all(torch.equal(v, back.parameters()[n]) for n, v in run.parameters().items())
    assert torch.equal(back.encode(x)["z"], run.encode(x)["z"])
    assert torch.equal(back.sample(5, seed=1)["x"], run.sample(5, seed=1)["x"])
    assert back.results == run.results
    with pytest.raises(ValueError, match="Pass it: load_run"):
        load_run(tmp_path / "r", model=Factor())
    with pytest.raises(ValueError, match="holds a run already"):
        quiet(Factor(), FactorGuide(), x, num_steps=20, directory=tmp_path / "r")


def test_a_run_of_other_sizes_does_not_load(tmp_path: Path) -> None:
    quiet(Factor(), FactorGuide(), factor_data(), num_steps=2, directory=tmp_path / "r")
    wrong = Factor()
    wrong.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="model/extra missing, unknown or of another shape"):
        load_run(tmp_path / "r", model=wrong, guide=FactorGuide())


def test_sample_encode_decode_shapes() -> None:
    x = factor_data(30)
    run = quiet(Factor(), FactorGuide(), x, num_steps=5)
    draws = run.sample(7)
    assert draws["x"].shape == (7, 3)
    assert draws["z"].shape == (7, 1)
    codes = run.encode(x)["z"]
    assert codes.shape == (30, 1)
    p = run.parameters()
    assert torch.allclose(run.decode(codes)["x"], codes * p["w"] + p["b"])
    assert torch.allclose(run.decode({"z": codes})["x"], run.decode(codes)["x"])
    with pytest.raises(ValueError, match="no site 'y'"):
        run.decode({"y": codes})
    assert math.isfinite(run.log_evidence(x, 10).value)


@pytest.mark.parametrize("pair", ["factor", "mean", "annealed"])
def test_captured_steps_equal_eager_ones(pair: str) -> None:
    x = factor_data(64) if pair != "mean" else torch.linspace(-1, 3, 64)
    programs: list[Any] = [Mean, MeanGuide] if pair == "mean" else [Factor, FactorGuide]
    runs = [
        quiet(
            *programs,
            x,
            engine=engine,
            num_steps=60,
            batch_size=24,
            kl_annealing=30 if pair == "annealed" else 0,
        )
        for engine in ("eager", "captured")
    ]
    assert np.allclose(runs[0].history["bound"], runs[1].history["bound"], rtol=1e-5, atol=1e-6)
    for name, value in runs[0].parameters().items():
        assert torch.allclose(value, runs[1].parameters()[name], rtol=1e-4, atol=1e-6), name


def test_data_come_back_by_name_and_split_as_they_were(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.zeros(4))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(m, 1.0).to_event(1), obs=x)

    run = quiet(model, lambda x: None, "iris", validation=30, num_steps=2, seed=3)
    train, held_out = run.data()
    assert (len(train), len(held_out or ())) == (120, 30)
    again = run.data()[1]
    assert held_out is not None
    assert again is not None
    assert torch.equal(held_out.tensors[0], again.tensors[0])
    with pytest.raises(ValueError, match="no name or path"):
        quiet(model, lambda x: None, torch.zeros(5, 4), num_steps=1).data()


def test_an_upper_bound_keeps_its_sign() -> None:
    """CUBO descends; its estimate is near log p(x), not near -log p(x)."""
    x = factor_data(100)
    run = quiet(Factor(), FactorGuide(), x, objective="CUBO(num_particles=200)", num_steps=300)
    assert abs(run.results["bound"] - float(exact(run, x).mean())) < 0.5


@pytest.mark.slow
def test_growing_n_does_not_slow_a_step(tmp_path: Path) -> None:
    """The same batch size on 20,000 rows and on 2,000,000 from a file, steps taken in turn.

    All 300 steps are in the first epoch of both, when Pyro's checks are on.
    """
    import time

    from ppl_lvm.data import load_data
    from ppl_lvm.pair import Pair
    from ppl_lvm.training.loop import Training
    from ppl_lvm.training.stepping import Options

    np.save(tmp_path / "large.npy", np.random.default_rng(0).normal(size=(2_000_000, 3)))
    trainings = []
    for data in (load_data(factor_data(20_000)), load_data(tmp_path / "large.npy")):
        pair = Pair(Factor(), FactorGuide(), Trace_ELBO())
        pair.prepare(*data.batch(torch.arange(32)))
        options = Options(num_steps=1, batch_size=32)
        trainings.append(Training(pair, data, None, options))
    seconds: list[list[float]] = [[], []]
    for _ in range(300):
        for i, training in enumerate(trainings):
            begun = time.perf_counter()
            training.step()
            seconds[i].append(time.perf_counter() - begun)
    assert np.median(seconds[1]) < 2 * np.median(seconds[0])


@pytest.mark.parametrize("objective", ["NeuralBaseline", "RELAX", "DisARM"])
def test_a_pathwise_guide_is_refused_by_name(objective: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'z'"):
        quiet(
            Factor(),
            FactorGuide(),
            factor_data(20),
            objective=objective,
            num_steps=2,
            directory=tmp_path / "r",
        )
    assert not (tmp_path / "r").exists()


def test_nothing_is_left_in_pyros_own_store() -> None:
    """Whatever the programs run to start from the data, or while they are trained."""
    from ppl_lvm.models.gm_vae import GaussianMixtureVAE

    pyro.param("mine", torch.ones(2))
    x = (torch.rand(40, 6) < 0.4).float()
    fit(GaussianMixtureVAE(components=2, latent=2, hidden=(4,)), None, x, num_steps=2)
    assert list(pyro.get_param_store().keys()) == ["mine"]
