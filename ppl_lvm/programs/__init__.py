"""Programs, their signatures, and pairs of model and guide.

The stages of a program, in order: `loading` (address -> object), `sources` (object -> factory),
`pair` (copies of model and guide with their parameters). `signatures`, `row_plates`,
`dependencies`, `traces` and `graph` read a program; `dry_run`, `minibatch` and `row_state` are
handlers around one; `missing` and `exact_posterior` are helpers for authors. More than 12 modules,
because each is one stage or one question about a program.
"""
