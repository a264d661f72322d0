"""Hidden Markov model against path enumeration."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from incomplete_sequences import incomplete_sequences
from observed_log_prob import observed_log_prob
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.hmm import HiddenMarkovModel
from ppl_lvm.runs.directory import load_run
from small_programs import nothing

S, T, N = 3, 5, 4


pytestmark = pytest.mark.usefixtures("doubles")


def _model(emission: str, columns: int = 2) -> HiddenMarkovModel:
    torch.manual_seed(0)
    model = HiddenMarkovModel(S, columns, emission, 4 if emission == "categorical" else None)
    if emission == "gaussian":
        model.means = torch.randn(S, columns)
    model.start = torch.tensor([0.5, 0.3, 0.2])
    rows = torch.rand(S, S) + 0.1
    model.transition = rows / rows.sum(-1, keepdim=True)
    return model


def _data(emission: str, columns: int = 2) -> Tensor:
    categories = 4 if emission == "categorical" else None
    return incomplete_sequences(N, columns, missing_step=2, categories=categories)


def _paths(model: HiddenMarkovModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """All S**T paths (S**T, T) and their log-probability with each sequence (N, S**T)."""
    paths = torch.tensor(list(product(range(S), repeat=T)))
    result = []
    for sequence in x:
        log_p = model.start[paths[:, 0]].log()
        for t in range(T):
            if t:
                log_p = log_p + model.transition[paths[:, t - 1], paths[:, t]].log()
            for p, value in enumerate(sequence[t]):
                if value.isnan():
                    continue
                if model.emission == "gaussian":
                    scale = (model.scale[:, p] ** 2 + model.floor).sqrt()
                    each = dist.Normal(model.means[:, p], scale).log_prob(value)
                else:
                    each = model.table[:, p, int(value)].log()
                log_p = log_p + each[paths[:, t]]
        result.append(log_p)
    return paths, torch.stack(result)


@pytest.mark.parametrize("emission", ["gaussian", "categorical"])
def test_hmm_program_and_forward_algorithm_equal_the_sum_over_paths(emission: str) -> None:
    model, x = _model(emission), _data(emission)
    _, log_p = _paths(model, x)
    exact = log_p.logsumexp(-1)
    torch.testing.assert_close(observed_log_prob(model, x), exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(model.log_evidence(x), exact, rtol=0, atol=1e-8)
    leaves = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(observed_log_prob(model, x).sum(), leaves),
        torch.autograd.grad(exact.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("emission", ["gaussian", "categorical"])
def test_hmm_marginals_and_viterbi_equal_path_enumeration(emission: str) -> None:
    model, x = _model(emission), _data(emission)
    paths, log_p = _paths(model, x)
    each = torch.nn.functional.one_hot(paths, S).double()  # (S**T, T, S)
    expected = torch.einsum("nk,kts->nts", log_p.softmax(-1).detach(), each)
    torch.testing.assert_close(model.marginals(x), expected, rtol=0, atol=1e-9)
    best, score = model.viterbi(x)
    torch.testing.assert_close(score, log_p.max(-1).values.detach())
    assert torch.equal(best, paths[log_p.argmax(-1)])
    # The wrong twin: the states that are likeliest one by one are another question.
    assert not torch.equal(best, model.marginals(x).argmax(-1)) or emission == "categorical"


def test_hmm_padding_a_short_sequence_changes_nothing() -> None:
    model, x = _model("gaussian"), _data("gaussian")
    short = x[1:2, :3]
    torch.testing.assert_close(observed_log_prob(model, x)[1:2], observed_log_prob(model, short))
    torch.testing.assert_close(model.marginals(x)[1:2, :3], model.marginals(short))
    zeros = x.nan_to_num(0.0)  # the wrong twin: what is missing is not zero
    assert (observed_log_prob(model, zeros)[1] - observed_log_prob(model, x)[1]).abs() > 0.1


def test_hmm_program_equals_the_enumerated_loop() -> None:
    """The same model with one site per step, enumerated by Pyro."""
    model, x = _model("gaussian", 1), torch.randn(N, T, 1)

    def loop(x: Tensor) -> None:
        start, rows, means = model.start, model.transition, model.means[:, 0]
        scale = (model.scale[:, 0] ** 2 + model.floor).sqrt()
        with pyro.plate("data", len(x), dim=-1):
            z: Any = None
            for t in pyro.markov(range(T)):
                state = dist.Categorical(start if z is None else rows[z])
                z = pyro.sample(f"z_{t}", state, infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(means[z], scale[z]), obs=x[:, t, 0])

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(loop, lambda x: None, x)
    assert -loss == pytest.approx(model.log_evidence(x).sum().item(), abs=1e-8)


def test_hmm_takes_one_column_sequences_in_two_dimensions() -> None:
    model, x = _model("gaussian", 1), torch.randn(N, T)
    torch.testing.assert_close(
        observed_log_prob(model, x), observed_log_prob(model, x.unsqueeze(-1))
    )
    torch.testing.assert_close(observed_log_prob(model, x), model.log_evidence(x))


def _sequences() -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    rows = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
    means = np.array([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    x = np.full((40, 20, 2), np.nan)
    for n in range(len(x)):
        z = rng.integers(3)
        for t in range(20 if n % 3 else 12):
            x[n, t] = means[z] + rng.normal(size=2)
            z = rng.choice(3, p=rows[z])
    return x


@pytest.mark.slow
def test_hmm_run_from_a_file_recovers_the_states(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    np.save(tmp_path / "x.npy", _sequences())
    data = load_data(tmp_path / "x.npy", missing="keep")
    model = HiddenMarkovModel(3)
    assert not check(model, nothing, data.tensors[0]).errors
    run = fit(
        model, nothing, data, objective="ELBO", num_steps=120, directory=tmp_path / "run", seed=0
    )
    fitted: Any = run.model
    order = fitted.means[:, 0].argsort()
    result = fitted.means[order].detach()
    target = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    assert (result - target).abs().max() < 0.3
    assert fitted.transition[order][:, order].diagonal().min() > 0.8
    assert fitted.degenerate(data.tensors[0]) is None
    again: Any = load_run(tmp_path / "run", guide=nothing).model
    x = data.tensors[0]
    torch.testing.assert_close(again.log_evidence(x), fitted.log_evidence(x))


def test_hmm_degenerate_names_a_collapsed_state() -> None:
    model, x = _model("gaussian"), _data("gaussian")
    x[:2] = 1.0
    model.means = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.5]])
    model.scale = torch.tensor([[1e-4, 1e-4], [1.0, 1.0], [1.0, 1.0]])
    reason = model.degenerate(x)
    assert reason is not None
    assert "state 0 has collapsed" in reason


def test_hmm_likelihood_rejects_an_invalid_category() -> None:
    model, x = _model("categorical"), _data("categorical")
    for wrong in (4.0, -1.0, 0.5):
        x[0, 1, 1] = wrong
        for asked in (model.log_evidence, model.marginals, model.viterbi):
            with pytest.raises(ValueError, match=f"the data has {wrong:g}"):
                asked(x)


def test_hmm_draws_sequences() -> None:
    model, x = _model("categorical"), _data("categorical")
    drawn = poutine.trace(poutine.uncondition(model)).get_trace(x).nodes["x"]["value"]
    assert drawn.shape == x.shape
    assert set(drawn.unique().tolist()) <= {0, 1, 2, 3}
