"""Given the same random numbers, our gradients and the hand-written ones are the same."""

import pytest
import torch

from ppl_lvm import estimators
from ppl_lvm.benchmarks.gradient_suite import samples
from ppl_lvm.benchmarks.gradient_suite.handwritten_adapters import Baseline, Running, handwritten
from ppl_lvm.benchmarks.gradient_suite.implementations import Implementation, ours
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN
from ppl_lvm.benchmarks.gradient_suite.subjects import BenchmarkPair, known_subject

K = 4  # even, for antithetic pairs
PAIRS = [
    (known, hand.estimator)
    for known in ("belief_net", "linear_gaussian", "decoders")
    for hand in handwritten(KNOWN[known], known_subject(KNOWN[known], K, 0).pair, K)
]


def both(subject: BenchmarkPair, name: str) -> tuple[Implementation, Implementation]:
    assert subject.known is not None
    mine = next(i for i in ours(subject.pair, subject.num_particles) if i.estimator == name)
    hand = next(
        i
        for i in handwritten(subject.known, subject.pair, subject.num_particles)
        if i.estimator == name
    )
    return mine, hand


def share_what_is_learned(mine: Implementation, hand: Implementation) -> None:
    """The same baseline, or constant, for both; ours learns no more."""
    mine.objective.eval()
    if isinstance(hand.objective, Running):
        mine.objective.average.add(torch.tensor([-3.0, -2.0]))
        hand.objective.value = float(mine.objective.average())
    if isinstance(hand.objective, Baseline):
        hand.objective.network = mine.objective.network


@pytest.mark.parametrize(("known", "name"), PAIRS)
def test_float32_gradients_agree(known: str, name: str) -> None:
    assert torch.get_default_dtype() is torch.float32
    with samples.local_parameters():
        subject = known_subject(KNOWN[known], num_particles=K, seed=5)
        pair, batch = subject.pair, subject.batch
        with pair.scope():
            mine, hand = both(subject, name)
            step = mine.step
            if name == "ELBO":  # the hand-written one draws its divergence too
                objective = estimators.ELBO(num_particles=K, analytic_kl=False)

                def step(x: torch.Tensor) -> float:
                    return objective.loss_and_grads(pair.model, pair.guide, x)

            share_what_is_learned(mine, hand)
            samples.gradient(
                step, batch, pair.unconstrained_parameters
            )  # the first look at the pair
            torch.manual_seed(7)
            of_mine, my_bound = samples.gradient(step, batch, pair.unconstrained_parameters)
            torch.manual_seed(7)
            of_hand, hand_bound = samples.gradient(hand.step, batch, pair.unconstrained_parameters)
            torch.manual_seed(8)
            other, _ = samples.gradient(hand.step, batch, pair.unconstrained_parameters)
    assert (of_mine - of_hand).norm() < 1e-5 * of_hand.norm()
    assert my_bound == pytest.approx(hand_bound, rel=1e-5)
    assert (of_mine - other).norm() > 1e-2 * of_hand.norm()  # other numbers, another gradient


def test_every_shared_estimator_is_met() -> None:
    names = {name for _, name in PAIRS}
    assert {"ELBO", "IWAE", "StickingTheLanding", "DReG", "DReGRenyi", "VIMCO"} <= names
    assert {"ScoreFunction", "LeaveOneOut", "Renyi", "VRMax", "DisARM", "REBAR"} <= names
    assert {"ReweightedWakeSleep", "ThermodynamicELBO", "CUBO"} <= names
    assert {"GumbelSoftmax", "StraightThrough", "NeuralBaseline"} <= names
    assert set(estimators.__all__) - names == {"RELAX"}  # its control is a network of REBAR's kind
