"""`tunewright review`: people compare the candidate's answers with another contender's, blindly."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli import interrupts
from tunewright.cli.command_line import Json, console_of, one_line_errors
from tunewright.cli.registered_model import Alias, Name, Uri, Version, named_as_typed, registry_of
from tunewright.cli.release import By
from tunewright.cli.visible import as_line
from tunewright.errors import ConfigError
from tunewright.reports.pages import counted

if TYPE_CHECKING:  # what it imports takes seconds
    from tunewright.evidence.judgements import HumanPreference
    from tunewright.evidence.review import ReviewedVersion

app = typer.Typer(
    name="review",
    help="Let people compare the answers of a version with others, without knowing whose they are.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

FORMATS = (".html", ".csv")
LISTED = 10  # judgements that prefer the opponent

Against = Annotated[
    str | None,
    typer.Option(metavar="CONTENDER", help="Whose answers to compare with; default: champion, or base without one"),
]
Pairs = Annotated[int, typer.Option(metavar="N", min=1, help="Number of pairs, at most")]


@app.command()
def write(
    name: Name,
    version: Version = None,
    alias: Alias = "champion",
    against: Against = None,
    pairs: Pairs = 50,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="OUTPUT", help="A page for the browser (.html) or a table (.csv); default: NAME-N-review.html, here"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists")] = False,
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Write pairs of answers to test rows, as a page or a table, in which people choose the better one."""
    with one_line_errors(as_json), named_as_typed():
        registry = registry_of(name, alias, tracking_uri, as_json)
        if output is not None and output.suffix not in FORMATS:
            raise ConfigError(f"--output {output}: accepted: a name that ends in {' or '.join(FORMATS)}")
        with interrupts.at_once():
            from tunewright.cli.review import page
            from tunewright.evidence import review
            from tunewright.registry import release

        with release.opened(registry) as client:
            found = review.look_up(client, registry, version)
        opponent = against or found.usual_opponent
        asked = found.pairs_with(opponent, pairs)
        output = output or Path(f"{name}-{found.number}-review.html")
        if output.exists() and not overwrite:
            raise ConfigError(f"--output {output}: exists; --overwrite replaces it")
        (page.write if output.suffix == ".html" else review.write_csv)(output, asked)
        then = f"tunewright review record {name} FILE.csv --by REVIEWER --version {found.number}"
        _show_pairs(found, opponent, len(asked), str(output), then, as_json)


@app.command()
def queue(
    name: Name,
    version: Version = None,
    alias: Alias = "champion",
    against: Against = None,
    pairs: Pairs = 50,
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Put pairs of answers to test rows into a review queue of MLflow, on whose pages people choose the better one."""
    with one_line_errors(as_json), named_as_typed():
        registry = registry_of(name, alias, tracking_uri, as_json)
        with interrupts.at_once():
            from tunewright.cli.terminal import opened_by
            from tunewright.evidence import review, review_queue
            from tunewright.registry import release
            from tunewright.registry.address import tracking_uri as tracking_uri_of

        with release.opened(registry) as client:
            found = review.look_up(client, registry, version)
            opponent = against or found.usual_opponent
            asked = found.pairs_with(opponent, pairs)
            uri = tracking_uri_of(registry)
            page = review_queue.put(client, uri, found, asked)
        then = f"tunewright review collect {name} --version {found.number}"
        _show_pairs(found, opponent, len(asked), page if as_json else opened_by(page, uri), then, as_json)


@app.command()
def collect(
    name: Name,
    version: Version = None,
    alias: Alias = "champion",
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Record what people chose in MLflow's review queue, and show what all people say so far.

    A person's choice replaces the one that the same person made before of the same pair.
    """
    console = console_of(as_json)
    with one_line_errors(as_json), named_as_typed():
        registry = registry_of(name, alias, tracking_uri, as_json)
        with interrupts.at_once():
            from tunewright.evidence import judgements, review, review_queue
            from tunewright.registry import release

        with release.opened(registry) as client:
            found = review.look_up(client, registry, version)
            for reviewer, chosen in review_queue.collect(client, found).items():
                judgements.keep(client, found.run_id, chosen)
                console.print(f"Recorded: {len(chosen):,} choices by {reviewer}", markup=False, soft_wrap=True)
            people = review.summed_up(client, found, judgements.kept(client, found.run_id))
    _show(found, people, as_json)


@app.command()
def record(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The table that the page saved, or a filled-in one")],
    by: By = None,
    version: Version = None,
    alias: Alias = "champion",
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Record what one person chose, and show what all people say so far.

    The choices are kept in the version's run in MLflow. A person's choice replaces the one that the same person made
    before of the same pair.
    """
    console = console_of(as_json)
    with one_line_errors(as_json), named_as_typed():
        registry = registry_of(name, alias, tracking_uri, as_json)
        with interrupts.at_once():
            from tunewright.evidence import judgements, review
            from tunewright.registry import release

        reviewer = release.person(registry, by)
        with release.opened(registry) as client:
            found = review.look_up(client, registry, version)
            chosen, num_open = review.read(file, found, reviewer)
            people = review.summed_up(client, found, judgements.keep(client, found.run_id, chosen))
        left = f"; {num_open:,} without a choice" if num_open else ""
        console.print(f"Recorded: {len(chosen):,} choices by {reviewer}{left}", markup=False, soft_wrap=True)
    _show(found, people, as_json)


@app.command()
def show(
    name: Name,
    version: Version = None,
    alias: Alias = "champion",
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Show what people say of a version."""
    with one_line_errors(as_json), named_as_typed():
        registry = registry_of(name, alias, tracking_uri, as_json)
        with interrupts.at_once():
            from tunewright.evidence import judgements, review
            from tunewright.registry import release

        with release.opened(registry) as client:
            found = review.look_up(client, registry, version)
            people = judgements.summed_up(judgements.kept(client, found.run_id), found.clusters, found.judged)
    _show(found, people, as_json)


def _show_pairs(
    version: "ReviewedVersion", opponent: str, num_pairs: int, output: str, then: str, as_json: bool
) -> None:
    console = console_of(as_json)
    other = f"the {opponent}" if opponent in ("base", "champion") else opponent
    num_equal = version.num_equal[opponent]
    are = "is" if num_equal == 1 else "are"
    console.print(
        f"{output}: {num_pairs:,} pairs of answers of version {version.number} of {version.name} and of {other}, in "
        f"random order. {counted(num_equal, 'test row')} with the same answer of both {are} left out.",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"Then: {then}", markup=False, soft_wrap=True)
    if as_json:
        shown = {"name": version.name, "version": version.number, "against": opponent, "output": output}
        print(as_line({**shown, "num_pairs": num_pairs, "num_equal": num_equal}))


def _show(version: "ReviewedVersion", people: "list[HumanPreference]", as_json: bool) -> None:
    console = console_of(as_json)
    if not people:
        said = f"Nobody has reviewed version {version.number} of {version.name} yet"
        console.print(said, markup=False, soft_wrap=True)
    for each in people:
        console.print(f"{each.says(version.judge)}.", markup=False, soft_wrap=True)
        for lost in each.lost[:LISTED]:
            comment = f": {lost.comment}" if lost.comment else ""
            said = f"  row {lost.row_id[:12]}: {lost.by} prefers the {lost.opponent}{comment}"
            console.print(said, markup=False, soft_wrap=True)
        if len(each.lost) > LISTED:
            console.print(f"  and {len(each.lost) - LISTED:,} more; --json lists them all")
    if as_json:
        shown = {"name": version.name, "version": version.number, "judge": version.judge or None}
        print(as_line(shown | {"opponents": [_as_json(each) for each in people]}))


def _as_json(found: "HumanPreference") -> dict[str, Any]:
    lost = [each.model_dump(include={"row_id", "by", "comment"}) for each in found.lost]
    agrees = found.judge_agrees
    return vars(found) | {"lost": lost, "judge_agrees": agrees and agrees[1], "judge_agrees_interval": agrees}
