"""The commands that need more than the library: HTTP, settings, pictures."""

import typer

from winnow_cli.commands import datasets, demo, doctor, experiments, results, service, sweep, verify


def add_all(app: typer.Typer) -> None:
    """Add every command but `select`, which stands alone."""
    app.command(rich_help_panel="The stack")(service.up)
    app.command(rich_help_panel="The stack")(demo.demo)
    app.command(rich_help_panel="The stack")(doctor.doctor)
    app.command(rich_help_panel="The stack")(service.workers)
    app.command(rich_help_panel="The stack")(service.storage)
    app.command(rich_help_panel="The stack")(sweep.sweep)
    app.add_typer(service.keys, name="key", rich_help_panel="The stack")
    app.add_typer(datasets.app, name="dataset", rich_help_panel="Experiments")
    for command in (experiments.run, experiments.watch):
        app.command(rich_help_panel="Experiments")(command)
    app.command("list", rich_help_panel="Experiments")(experiments.list_all)
    for command in (experiments.pause, experiments.resume, experiments.cancel, experiments.remove):
        app.command(rich_help_panel="Experiments")(command)
    for command in (results.compare, results.export):
        app.command(rich_help_panel="Experiments")(command)
    app.command(rich_help_panel="Experiments")(verify.verify)
