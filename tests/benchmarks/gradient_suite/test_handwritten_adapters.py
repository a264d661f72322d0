"""Our gradients equal the hand-written ones for equal random numbers."""

import pytest
import torch

from ppl_lvm import estimators
from ppl_lvm.benchmarks.gradient_suite import samples
from ppl_lvm.benchmarks.gradient_suite.handwritten_adapters import handwritten
from ppl_lvm.benchmarks.gradient_suite.implementations import Implementation, ours
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN
from ppl_lvm.benchmarks.gradient_suite.subjects import BenchmarkPair, known_subject
from ppl_lvm.benchmarks.handwritten.twins import RunningMean

K = 4  # even, for antithetic pairs
PAIRS = [
    (known, twin.estimator)
    for known in KNOWN
    for twin in handwritten(KNOWN[known], known_subject(KNOWN[known], K, 0).pair, K)
]


def implementations(subject: BenchmarkPair, name: str) -> tuple[Implementation, Implementation]:
    """(ours, the hand-written twin)."""
    assert subject.known is not None
    K = subject.num_particles
    our = next(i for i in ours(subject.pair, K) if i.estimator == name)
    twin = next(i for i in handwritten(subject.known, subject.pair, K) if i.estimator == name)
    return our, twin


def share_state(our: Implementation, twin: Implementation) -> None:
    """Use the same baseline, constant or network in both; ours stops learning."""
    our.objective.eval()
    if isinstance(twin.objective, RunningMean):
        our.objective.average.add(torch.tensor([-3.0, -2.0]))
        twin.objective.value = float(our.objective.average())
    if hasattr(twin.objective, "network"):
        twin.objective.network = our.objective.network


@pytest.mark.parametrize(("known", "name"), PAIRS)
def test_float32_gradients_of_ours_and_handwritten_agree(known: str, name: str) -> None:
    assert torch.get_default_dtype() is torch.float32
    with samples.local_parameters():
        subject = known_subject(KNOWN[known], num_particles=K, seed=5)
        pair, batch = subject.pair, subject.batch
        with pair.scope():
            our, twin = implementations(subject, name)
            step = our.step
            if name == "ELBO":  # the hand-written one samples its divergence too
                objective = estimators.ELBO(num_particles=K, analytic_kl=False)

                def step(x: torch.Tensor) -> float:
                    return objective.loss_and_grads(pair.model, pair.guide, x)

            share_state(our, twin)
            leaves = pair.unconstrained_parameters
            samples.gradient(step, batch, leaves)  # analyzes the pair
            torch.manual_seed(7)
            our_gradient, our_bound = samples.gradient(step, batch, leaves)
            torch.manual_seed(7)
            twin_gradient, twin_bound = samples.gradient(twin.step, batch, leaves)
            torch.manual_seed(8)
            other, _ = samples.gradient(twin.step, batch, leaves)
    assert (our_gradient - twin_gradient).norm() < 1e-5 * twin_gradient.norm()
    assert our_bound == pytest.approx(twin_bound, rel=1e-5)
    assert (our_gradient - other).norm() > 1e-2 * twin_gradient.norm()  # another seed


def test_every_estimator_has_a_handwritten_twin() -> None:
    assert {name for _, name in PAIRS} == set(estimators.__all__)
