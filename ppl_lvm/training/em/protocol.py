"""TODO."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from ppl_lvm.training.em.statistics import State, Statistics


@runtime_checkable
class EMModel(Protocol):
    """What `fit_em` asks of a model. θ is a dictionary of tensors in double precision.

    `e_step` and `m_step` are functions of their arguments: they leave the model as it is and do
    not branch on values of θ or T̄, since `torch.vmap` runs them for all restarts together.
    Optional: `initialize(*batch)` and `degenerate(*batch)`, see `fit`; `posterior(*batch)`, which
    samples the latent sites from p(z | x): the guide of the run; `e_steps(states, *batch)`, which
    is `e_step` of many starts, leading in θ and in what it returns, where that can be had cheaper;
    and `transport_statistics(state, new, made_of, statistics)` for online EM: statistics at θ as
    they are at θ',
    which `m_step` made of the statistics `made_of`.
    """

    def em_state(self) -> State:
        """The present parameters θ."""

    def set_em_state(self, state: State) -> None:
        """Take θ over as the model's parameters."""

    def e_step(self, state: State, *batch: Tensor) -> tuple[Statistics, Tensor]:
        """T̄ and log-likelihood (), summed over the rows of the batch."""

    def m_step(self, state: State, statistics: Statistics) -> State:
        """θ' from T̄ at θ."""
