"""Protocol of models that can be fitted by EM."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from ppl_lvm.training.em.statistics import State, Statistics


@runtime_checkable
class EMModel(Protocol):
    """A model with the two steps of EM. θ is a dictionary of tensors in double precision.

    `e_step` and `m_step` are functions of their arguments: they do not change the model and do not
    branch on values of θ or T̄, because `torch.vmap` runs them for all restarts at once.

    Optional methods:
        initialize(*batch): sets initial values from the data.
        initialize_restart(restart, *batch): the same for restart number 1, 2, …, of another kind
            each, so that restarts do not all end at the optimum that one kind leads to.
        degenerate(*batch): why these parameters must not be chosen, or None.
        posterior(*batch): samples the latent sites from p(z | x); it is then the run's guide.
        e_steps(states, *batch): `e_step` of several restarts, which are the leading dimension of θ
            and of the results, if that is cheaper than `torch.vmap`.
        transport_statistics(state, new, made_of, statistics): for online EM with statistics that
            are relative to θ: `statistics` at θ = `state`, expressed at θ' = `new`, where `m_step`
            computed θ' from the statistics `made_of`.
    """

    def em_state(self) -> State:
        """The present parameters θ."""

    def set_em_state(self, state: State) -> None:
        """Set the model's parameters to θ."""

    def e_step(self, state: State, *batch: Tensor) -> tuple[Statistics, Tensor]:
        """T̄ and log-likelihood (), summed over the rows of the batch."""

    def m_step(self, state: State, statistics: Statistics) -> State:
        """θ' from T̄ at θ."""
