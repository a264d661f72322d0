"""Tiled steps against steps on all rows at once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.distributions import Bernoulli
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from ppl_lvm.compiler import CompiledSVI, row_tiling, svi
from ppl_lvm.compiler.row_tiling import TiledStep, TileSizes
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import GaussianMixture
from ppl_lvm.particles.plate_dependence import sums_over_rows

ROWS, COLUMNS = 44, 3


def nothing(x: Tensor) -> None:
    """The guide of a model whose only latent site is enumerated."""


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 of the 44 rows, whose largest table has 3 x 3 doubles a row."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(row_tiling, "TILE_SIZES", TileSizes(min_rows=8, block_bytes=8 * 9 * 8))


def data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(3, COLUMNS, generator=generator)
    return centers.repeat(15, 1)[:ROWS] + torch.randn(ROWS, COLUMNS, generator=generator)


def mixture(plate: str = "data", centered: bool = False) -> Callable[[Tensor], None]:
    """Three clusters of one width, whose log-density table is (3, rows, columns)."""

    def model(x: Tensor) -> None:
        means = pyro.param("means", lambda: torch.eye(3, COLUMNS))
        weights = pyro.param("weights", torch.full((3,), 1 / 3), dist.constraints.simplex)
        width = pyro.param("width", torch.tensor(2.0), dist.constraints.positive)
        if centered:
            x = x - x.mean(0)
        with pyro.plate(plate, len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(means[c], width).to_event(1), obs=x)

    return model


def run(
    model: Callable[..., Any], engine: Any, guide: Any = nothing, steps: int = 12
) -> tuple[list[float], list[Any]]:
    """The losses, and the classes of the compiled steps."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 3.0, "lrd": 0.99})
    loss: Any = TraceEnum_ELBO() if guide is nothing else Trace_ELBO()
    svi = CompiledSVI(model, guide, optimizer, loss, engine=engine)
    losses = [svi.step(data()) for _ in range(steps)]
    return losses, [type(step) for step in svi.training_step.compiled_steps]


@pytest.mark.slow
@pytest.mark.parametrize("plate", ["data", "rows"])
def test_tiled_steps_are_the_eager_steps(plate: str) -> None:
    """With a last block of four rows, an optimizer that clips, and a rate that decays."""
    losses, kinds = run(mixture(plate), "compiled")
    assert kinds == [TiledStep]
    assert losses == pytest.approx(run(mixture(plate), "eager")[0], rel=1e-10)


@pytest.mark.slow
def test_program_that_is_no_sum_over_rows_is_not_tiled() -> None:
    model = mixture(centered=True)
    losses, kinds = run(model, "compiled")
    assert kinds
    assert TiledStep not in kinds
    assert losses == pytest.approx(run(model, "eager")[0], rel=1e-10)


@pytest.mark.slow
def test_tiled_steps_are_wrong_without_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tiling, "_adds_up", lambda *rest: True)
    monkeypatch.setattr(svi, "sums_over_rows", lambda *rest: True)
    losses, kinds = run(mixture(centered=True), "compiled")
    assert kinds == [TiledStep]
    assert losses != pytest.approx(run(mixture(centered=True), "eager")[0], rel=1e-3)


def shared(x: Tensor) -> None:
    """One latent vector for all rows."""
    z = pyro.sample("z", dist.Normal(torch.zeros(COLUMNS), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def shared_guide(x: Tensor) -> None:
    mean = pyro.param("mean", lambda: torch.zeros(COLUMNS))
    pyro.sample("z", dist.Normal(mean, 0.1).to_event(1))


@pytest.mark.slow
def test_program_that_draws_is_not_tiled() -> None:
    losses, kinds = run(shared, "compiled", shared_guide)
    assert kinds
    assert TiledStep not in kinds
    assert losses == pytest.approx(run(shared, "eager", shared_guide)[0], rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("clip", "calls"), [(None, 1), (None, 4), (1.0, 1)])
def test_tiled_fit_is_the_eager_fit(clip: float | None, calls: int) -> None:
    options: dict[str, Any] = {"num_steps": 10, "progress": False, "clip_norm": clip}
    tiled = []
    take = TiledStep.take

    def count(self: Any, *rest: Any) -> Any:
        tiled.append(self)
        return take(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TiledStep, "take", count)
        run = fit(
            GaussianMixture(3), None, data(), engine="compiled", steps_per_call=calls, **options
        )
    assert bool(tiled) == (clip is None)  # the norm of the gradient is known at the end only
    eager = fit(GaussianMixture(3), None, data(), engine="eager", **options)
    assert run.history["bound"] == pytest.approx(eager.history["bound"], rel=1e-10)


@pytest.mark.parametrize(
    ("rows", "largest", "size"),
    [
        (8191, 2**30, None),  # few rows
        (100_000, 2**20, None),  # one block fits the cache
        (100_000, 204_800_000, 4000),  # 4,096 rows would fit; 4,000 leave no rest
        (100_003, 204_806_144, 4096),  # a prime: some rows are left
        (10_000, 10_000 * 2**24, None),  # a single row does not fit
    ],
)
def test_blocks_fit_the_cache(rows: int, largest: int, size: int | None) -> None:
    assert TileSizes().rows_per_block(rows, largest) == size


EQUAL = torch.ones(12, COLUMNS, dtype=torch.float64)  # of these rows any block has the same mean


def centered(x: Tensor, weight: float) -> Tensor:
    return x - weight * x.mean(0)


def rarely_mixed(x: Tensor) -> Tensor:
    return torch.where(x > 5, x.mean(0), x)


def decided_by_rows(x: Tensor) -> Tensor:
    return x if bool((x < 5).all()) else x.mean(0).expand_as(x)


@pytest.mark.parametrize(
    ("transform", "is_sum"),
    [
        (lambda x: 2 * x, True),
        (lambda x: x / x.norm(dim=1, keepdim=True), True),
        (lambda x: x / len(x), True),  # a number of rows is no dependence; see `_adds_up`
        (partial(centered, weight=0.0), False),  # a coefficient that starts at zero
        (partial(centered, weight=1.0), False),
        (rarely_mixed, False),
        (decided_by_rows, False),
        (lambda x: x.flip(0), False),
        (lambda x: x[:1].expand_as(x), False),
    ],
)
def test_sum_over_rows_is_decided_whatever_the_values(
    transform: Callable[[Tensor], Tensor], is_sum: bool
) -> None:
    def model(x: Tensor) -> None:
        mixture()(transform(x))

    assert sums_over_rows(model, nothing, (EQUAL,)) == is_sum
    assert sums_over_rows(model, nothing, (data(),)) == is_sum


def outside(x: Tensor, value: Callable[[Tensor], Tensor]) -> None:
    mixture()(x)
    pyro.factor("penalty", value(x))


@pytest.mark.parametrize(
    ("value", "is_sum"),
    [
        (lambda x: pyro.param("means").square().sum(), True),
        (lambda x: 0 * x.sum(), False),
        (lambda x: (x > 5).sum(), False),
        (lambda x: pyro.sample("k", Bernoulli(0.5), infer={"enumerate": "parallel"}), False),
    ],
)
def test_terms_outside_the_plate_depend_on_no_row(
    value: Callable[[Tensor], Tensor], is_sum: bool
) -> None:
    assert sums_over_rows(partial(outside, value=value), nothing, (EQUAL,)) == is_sum


@pytest.mark.slow
@pytest.mark.parametrize(
    "penalty",
    [
        lambda x: pyro.param("w", torch.zeros(())) * centered(x, 1.0).square().sum(),
        lambda x: -(pyro.param("w", torch.zeros(())) ** 2) * len(x),
    ],
)
def test_penalty_whose_weight_is_zero_is_not_tiled(penalty: Callable[[Tensor], Tensor]) -> None:
    kinds = run(partial(outside, value=penalty), "compiled")[1]
    assert kinds
    assert TiledStep not in kinds
