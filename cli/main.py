"""The command line: run a deployment file here and now, or say what a run would do and why."""

from tunewright.cli import interrupts

with interrupts.at_once():
    from importlib.metadata import version
    from typing import Annotated

    import typer

    from tunewright import config
    from tunewright.cli import command_line, operate, release, review
    from tunewright.cli.api import api
    from tunewright.cli.convert import convert
    from tunewright.cli.export import export
    from tunewright.cli.imports import import_
    from tunewright.cli.join import join
    from tunewright.cli.predict import predict
    from tunewright.cli.reproduce import reproduce
    from tunewright.cli.serve import serve
    from tunewright.cli.verify import verify
    from tunewright.cli.visible import as_line
    from tunewright.config import STAGES
    from tunewright.errors import ConfigError

NOT_PROMOTED = 5

app = typer.Typer(
    name="tunewright",
    cls=command_line.OneLine,
    help="From instruction data to a registered fine-tuned LLM and a decision you can defend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(show_version: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    with command_line.one_line_errors(as_json=False, uses_home=False):
        config.quiet_libraries()  # before any command imports Prefect, which would begin with what it tells its maker
    if show_version:
        typer.echo(f"tunewright {version('tunewright')}")
        raise typer.Exit


@app.command()
def run(
    file: command_line.File,
    assignments: command_line.Set = None,
    until: command_line.Until = None,
    refresh: command_line.Refresh = None,
    deployment: command_line.Deployment = None,
    as_json: command_line.Json = False,
    require_promotion: Annotated[
        bool, typer.Option("--require-promotion", help="Exit with 5 unless the candidate is promoted")
    ] = False,
    quiet: command_line.Quiet = False,
    verbose: command_line.Verbose = False,
) -> None:
    """Run the pipeline now, up to a registered model; unchanged stages come from the cache.

    Exit codes: 0 finished, 2 configuration, 3 data refused, 4 training did not finish, 5 not promoted and
    --require-promotion given, 130 interrupted by Ctrl-C, 143 ended by SIGTERM, 1 anything else.
    """
    console = command_line.console_of(as_json)
    with command_line.one_line_errors(as_json) as until_end:
        command_line.prepare(console, quiet=quiet, verbose=verbose)
        pipeline = command_line.load(until_end, file, deployment, assignments, until, refresh)
        if require_promotion and STAGES.index(pipeline.until) < STAGES.index("decide"):
            raise ConfigError(
                f"--require-promotion: a run that ends with {pipeline.until} has no verdict; leave it out"
            )
        config.make_home()
        with interrupts.at_once():
            from tunewright.cli import deployment_file, prefect_server, terminal
            from tunewright.flows import calls, run_name
            from tunewright.flows.finetune import finetune
            from tunewright.flows.inputs import looked_at
            from tunewright.flows.outcome import Outcome
        if not quiet:
            terminal.show_settings(console, pipeline, everything=verbose)
        run_name.ORIGINS.set(pipeline.origins)
        sections = {name: getattr(pipeline.settings, name) for name in config.Settings.model_fields}
        with deployment_file.placed(pipeline), looked_at(pipeline.settings):
            calls.stages(pipeline.settings, pipeline.until, pipeline.refresh)  # before a server starts for the run
            steps = prefect_server.call(finetune, **sections, until=pipeline.until, refresh=pipeline.refresh)
        outcome = Outcome.of(steps, pipeline.settings)
        if outcome.tokens and pipeline.until == "render" and not quiet:
            from tunewright.tasks.render import preview

            for text in preview(outcome.tokens, 3):
                console.print(text)
        if quiet:
            terminal.show_last_word(console, outcome)
        else:
            terminal.show_outcome(console, outcome, command_line.repeated(file, deployment, assignments))
    if as_json:
        print(as_line(outcome.as_json()))
    if require_promotion and outcome.name != "Promoted":
        raise typer.Exit(NOT_PROMOTED)


@app.command()
def plan(
    file: command_line.File,
    assignments: command_line.Set = None,
    until: command_line.Until = None,
    refresh: command_line.Refresh = None,
    deployment: command_line.Deployment = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Plan for another device: cpu, or a card such as rtx-4090")
    ] = "",
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Time a few training steps on this machine (at most 30 s), also for later plans"
        ),
    ] = False,
    as_json: command_line.Json = False,
    quiet: command_line.Quiet = False,
    verbose: command_line.Verbose = False,
) -> None:
    """Show which stages would run and why, and the time, memory and disk of training; nothing is run."""
    console = command_line.console_of(as_json)
    with command_line.one_line_errors(as_json) as until_end:
        command_line.prepare(console, quiet=quiet, verbose=verbose)
        pipeline = command_line.load(until_end, file, deployment, assignments, until, refresh)
        with interrupts.at_once():
            from tunewright.cli import deployment_file, terminal
            from tunewright.cli import plan as plan_command
            from tunewright.cli.plan import view
            from tunewright.flows import calls
            from tunewright.reports.progress import told_while_slow

        with deployment_file.placed(pipeline), told_while_slow("planning"):
            planned = plan_command.look_up(
                pipeline, command_line.repeated(file, deployment, assignments), device, calibrate=calibrate
            )
        if quiet:
            view.show_last_word(console, planned)
        else:
            terminal.show_settings(console, pipeline, everything=verbose)
            view.show_plan(console, planned)
    if as_json:
        stages = [calls.as_json(step) for step in planned.steps]
        print(as_line({"stages": stages} | plan_command.as_json(planned)))


@app.command()
def compare(
    file: command_line.File,
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE,VALUE", help="Values of one setting to compare; repeatable")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, max=20, help="Train each variant with N seeds")] = 1,
    prune: Annotated[bool, typer.Option(help="Stop variants early that fall behind")] = True,
    assignments: command_line.Set = None,
    deployment: command_line.Deployment = None,
    as_json: command_line.Json = False,
    quiet: command_line.Quiet = False,
    verbose: command_line.Verbose = False,
) -> None:
    """Train variants and rank them on the validation rows; the test rows are not used.

    Every combination of the values is a variant. Variants already trained come from the cache.
    """
    console = command_line.console_of(as_json)
    with command_line.one_line_errors(as_json) as until_end:
        command_line.prepare(console, quiet=quiet, verbose=verbose)
        pipeline = command_line.load(until_end, file, deployment, assignments)
        with interrupts.at_once():
            from tunewright.cli import compare as compare_command
            from tunewright.cli import deployment_file, prefect_server
            from tunewright.flows.compare import compare as compare_flow

        asked = compare_command.variants(pipeline, vary or [])
        variants = {name: variant.settings for name, variant in asked.items()}
        config.make_home()
        with deployment_file.placed(pipeline):
            found = prefect_server.call(compare_flow, pipeline.settings, variants, seeds, prune)
        if quiet:
            console.print(found.sentence, markup=False)
        else:
            compare_command.show(console, found, asked, command_line.repeated(file, deployment, assignments))
    if as_json:
        print(as_line(compare_command.as_json(found)))


@app.command()
def data(
    file: command_line.File,
    row: Annotated[str | None, typer.Option(metavar="ID", help="Row to show, by the beginning of its row_id")] = None,
    line: Annotated[str | None, typer.Option(metavar="FILE:LINE", help="Row to show, by file and line")] = None,
    text: Annotated[str | None, typer.Option(metavar="WORDS", help="Row to show, by words it contains")] = None,
    version: Annotated[
        str | None, typer.Option(metavar="N", help="Accepted version; default: the current data")
    ] = None,
    assignments: command_line.Set = None,
    deployment: command_line.Deployment = None,
    as_json: command_line.Json = False,
) -> None:
    """Show the stages and versions of the data, or what happened to one row; nothing is run."""
    console = command_line.console_of(as_json)
    with command_line.one_line_errors(as_json) as until_end:
        command_line.prepare(console)
        pipeline = command_line.load(until_end, file, deployment, assignments)
        if sum(given is not None for given in (row, line, text)) > 1:
            raise ConfigError("--row, --line, --text: accepted: only one of them")
        with interrupts.at_once():
            from tunewright.cli import data as data_command
            from tunewright.cli import deployment_file
            from tunewright.cli.data import as_json as data_json
            from tunewright.cli.data import view as data_view

        what = command_line.repeated(file, deployment, assignments)
        with deployment_file.placed(pipeline):
            found = data_command.look_up(pipeline.settings, version, what)
        if row is None and line is None and text is None:
            shown = data_json.data_json(found)
            data_view.show_data(console, found, what)
        else:
            shown = data_json.row_json(found, data_command.find(found, row, line, text))
            data_view.show_row(console, found, shown, what)
    if as_json:
        print(as_line(shown))


@app.command()
def settings(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Sections or settings, such as training or training.epochs; default: all"),
    ] = None,
    as_json: command_line.Json = False,
) -> None:
    """Show what a deployment file can set: each setting with its default and description."""
    with command_line.one_line_errors(as_json, uses_home=False):
        from tunewright.cli import settings as settings_command

        found = [each for name in names or [None] for each in settings_command.listed(name)]
        settings_command.show(command_line.console_of(as_json), found)
    if as_json:
        print(as_line({"settings": [each._asdict() for each in found]}))


app.command("import")(import_)
for command in (
    predict,
    join,
    serve,
    api,
    export,
    verify,
    reproduce,
    convert,
    operate.deploy,
    operate.up,
    operate.doctor,
    operate.clean,
):
    app.command()(command)
app.add_typer(release.app)
app.add_typer(review.app)
app.add_typer(operate.home_app)


def main() -> None:
    """The entry point of `tunewright`."""
    interrupts.end_at_once()
    app()
