"""Training of model-guide pairs: steps, loop, restarts and checkpoints.

    restarts, vectorized_restarts         R trainings, one after the other or in one graph
    loop                                  one training: steps, evaluations, checkpoints
    step_runner, line_search_step         a step at each level of the compiler
    gradient_step                         loss and gradient of a batch: the captured part
    preparation, kl_weight, support_check the programs as their objective sees them
    batching                              rows of each step, steps of each call
    checkpoint, iterate                   files from which a run resumes
    trajectory                            parameters along a run, for the diagnostics
    non_finite                            the parameter, site or row behind a NaN
    options                               options of the four fits
    extrapolation                         remaining gain of a converging sequence
    adversarial, em                       adversarial training, expectation-maximization

More than 12 modules, because each holds one concept of the loop and none is large.
"""
