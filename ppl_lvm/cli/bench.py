"""Command `bench`."""

from typing import Annotated

import typer

app = typer.Typer()


# `--help` after a name belongs to the benchmark's parser.
@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="Name of the benchmark; none lists them.")
    ] = None,
) -> None:
    """Run a benchmark: ppl-lvm bench gradients --smoke. Its own options follow its name."""
    import importlib
    import pkgutil

    from ppl_lvm.core.messages import unknown

    if name in ("--help", "-h"):
        print(context.get_help())
        return
    benchmarks = importlib.import_module("ppl_lvm.benchmarks")
    modules = {}
    for entry in pkgutil.iter_modules(benchmarks.__path__):
        if not entry.ispkg:
            module = importlib.import_module(f"ppl_lvm.benchmarks.{entry.name}")
            if hasattr(module, "run"):
                modules[entry.name] = module
    if name is None:
        for title, module in modules.items():
            print(f"{title:<13}{(module.__doc__ or '').strip().splitlines()[0]}")
    elif name not in modules:
        raise ValueError(unknown("benchmark", name, modules))
    else:
        harness = importlib.import_module("ppl_lvm.benchmarks.harness")
        harness.command(modules[name].run, context.args)
