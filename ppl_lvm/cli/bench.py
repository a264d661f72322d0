"""Measure: `bench`."""

from typing import Annotated

import typer

app = typer.Typer()


# `--help` after a name is the benchmark's own, so it is left to its parser.
@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which question; none lists them.")] = None,
) -> None:
    """Run a benchmark: ppl-lvm bench gradients --smoke. Its own options follow its name."""
    import importlib
    import pkgutil

    if name in ("--help", "-h"):
        print(context.get_help())
        return
    benchmarks = importlib.import_module("ppl_lvm.benchmarks")

    questions = {}
    for found in pkgutil.iter_modules(benchmarks.__path__):
        if name in (None, found.name) and not found.ispkg:
            module = importlib.import_module(f"ppl_lvm.benchmarks.{found.name}")
            if hasattr(module, "run"):
                questions[found.name] = module
    if name is None:
        for found_name, module in questions.items():
            print(f"{found_name:<13}{(module.__doc__ or '').strip().splitlines()[0]}")
    elif name not in questions:
        raise ValueError(f"There is no benchmark {name!r}; `ppl-lvm bench` lists them.")
    else:
        record = importlib.import_module("ppl_lvm.benchmarks.harness")
        record.command(questions[name].run, context.args)
