"""Attacks on the promises of the README.

Hostile run directories, kills, threads, signals, bad inputs.

    make attack                 every attack in its long form: hours, not in CI
    pytest -m attack FILE       one of them
    make test                   a few representative attacks of each kind, in the same files

One module per kind of attack. An attack has fixed seeds, so that its number names it: a failing
`test_…[17]` is run again alone by that name. The long form carries `@pytest.mark.attack`; what runs
in `make test` shares one fitted run and starts no process.
"""
