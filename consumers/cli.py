"""The `staleproof` command: reads settings, starts one process, and turns errors into one line and an exit code.

| exit code | means |
|---|---|
| 0 | done; `check`: nothing failed; `selfcheck`: no doubts |
| 1 | `check`: something failed; `selfcheck`: doubts; `fence`: declined; a server is away, or an error for a person |
| 2 | a setting, a view, an option or a precondition is wrong |
| 3 | changes may have been lost |
| 130 | `replay`: stopped before it was complete; the same command goes on |
| 70 | a fault of staleproof itself |
| 130, 143 | ended at once by a second SIGINT, SIGTERM |
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from cdc.errors import ConfigError, GapError, StaleproofError
from consumers.redis_users import Form, Role
from consumers.service import configure_logging, stopped_by_signals
from consumers.settings import Settings, load_settings
from invalidator.document import nearest

INTERNAL_FAULT = 70
STOPPED = 130

app = typer.Typer(
    name="staleproof",
    help="Cache invalidation from database changes, in every region, that is never stale for good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

replay = typer.Typer(
    name="replay", help="Rebuild caches beside the live stream; no key ever moves back.", no_args_is_help=True
)
app.add_typer(replay)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Settings file. [default: $STALEPROOF_CONFIG, else staleproof.yaml]", show_default=False
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")]


@app.command()
def init(
    dsn: Annotated[
        str | None, typer.Option("--dsn", help="Propose views from this database.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Directory for the files.")] = Path(),
    debug: DebugOption = False,
) -> None:
    """Write a commented staleproof.yaml and views.yaml to start from."""
    with _reported(debug=debug):
        from consumers import starter  # noqa: PLC0415 - each command pays only for what it uses

        for line in starter.run(dsn, output):
            typer.echo(line)


@app.command()
def check(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Connect to everything; say what is wrong, and the statement that mends it."""
    with _reported(debug=debug):
        from consumers import check as command  # noqa: PLC0415

        good = command.run(load_settings(config), as_json=as_json)
    if not good:
        raise typer.Exit(1)


@app.command()
def capture(config: ConfigOption = None, debug: DebugOption = False) -> None:
    """Read the database's changes into Kafka until stopped."""
    with _reported(debug=debug):
        settings = load_settings(config)
        from consumers import capture as command  # noqa: PLC0415

        stop = threading.Event()
        with stopped_by_signals(stop):
            command.run(settings, stop)


@app.command()
def invalidate(
    region: Annotated[str, typer.Option("--region", help="The region of the settings to keep fresh.")],
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Apply the changes in Kafka to one region's Redis until stopped."""
    with _reported(debug=debug):
        settings = load_settings(config)
        check_region(settings, region)
        from consumers import invalidate as command  # noqa: PLC0415

        stop = threading.Event()
        with stopped_by_signals(stop):
            command.run(settings, region, stop)


@app.command()
def fence(
    view: Annotated[str | None, typer.Option("--view", help="Close this view.", show_default=False)] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Remove only this key of the view.", show_default=False)
    ] = None,
    region: Annotated[
        str | None, typer.Option("--region", help="Only there. [default: every region]", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every view; instead of --view.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="For the workers' logs.")] = "fence command",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was ordered as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Order every worker to forget a key, a view or everything, through the control topic."""
    with _reported(debug=debug):
        settings = load_settings(config)
        if region is not None:
            check_region(settings, region)
        from consumers import fence as command  # noqa: PLC0415

        aim = command.Aim(view=view, key=key, region=region, everything=everything, reason=reason)
        agreed = command.run(settings, aim, confirm=(lambda _: True) if yes else _confirmed, as_json=as_json)
    if not agreed:
        typer.echo("staleproof: nothing was ordered", err=True)
        raise typer.Exit(1)


@app.command()
def selfcheck(
    region: Annotated[str, typer.Option("--region", help="The region of the settings to ask.")],
    max_age_seconds: Annotated[
        float, typer.Option("--max-age-seconds", min=0.0, help="An older watermark is a reason for doubt.")
    ] = 10.0,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Ask a region's Redis about its guard: what is open, how far it is, and whether it can be relied on."""
    with _reported(debug=debug):
        settings = load_settings(config)
        check_region(settings, region)
        from consumers import selfcheck as command  # noqa: PLC0415

        good = command.run(settings, region, max_age_seconds=max_age_seconds, as_json=as_json)
    if not good:
        raise typer.Exit(1)


@replay.command("database")
def replay_database(
    view: Annotated[list[str] | None, typer.Option("--view", help="This view; repeatable.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every view that has a `load`, or is refreshed.")] = False,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="Only this cache key; repeatable.", show_default=False)
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option("--keys-file", help="Cache keys, one per line; - for stdin.", show_default=False)
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="SQL over the columns of the view's load.", show_default=False)
    ] = None,
    warm_from: Annotated[
        str | None, typer.Option("--warm-from", help="The keys that this region has cached.", show_default=False)
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option("--region", "--into", help="Fill this region; repeatable. [default: each]", show_default=False),
    ] = None,
    fence_first: Annotated[
        bool, typer.Option("--fence-first", help="Make the view unreadable at once, then fill it.")
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="In the end remove cached keys that the database does not have.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")] = False,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=32, help="Threads, a connection each.")] = 3,
    batch: Annotated[int, typer.Option("--batch", min=1, max=10_000, help="Keys per read and snapshot.")] = 500,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, help="Keys per second at most.", show_default=False)
    ] = None,
    patience_seconds: Annotated[
        float, typer.Option("--patience-seconds", min=0.0, help="How long to wait for a region that is away.")
    ] = 60.0,
    state: Annotated[
        Path, typer.Option("--state", help="Where to note how far it is; a killed run goes on from there.")
    ] = Path("staleproof-replay.json"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Fill regions with the objects of the database, under the guard."""
    with _reported(debug=debug):
        settings = load_settings(config)
        for name in (*(region or ()), *([warm_from] if warm_from else [])):
            check_region(settings, name)
        from consumers import replay_database as command  # noqa: PLC0415
        from consumers.replay_job import Aim  # noqa: PLC0415

        aim = Aim(
            views=tuple(view or ()),
            everything=everything,
            regions=tuple(dict.fromkeys(region or ())),
            keys=(*(key or ()), *(command.read_keys(keys_file) if keys_file else ())),
            where=where,
            warm_from=warm_from,
            fence_first=fence_first,
            sweep=sweep,
            dry_run=dry_run,
            parallel=parallel,
            batch=batch,
            rate=rate,
            patience_seconds=patience_seconds,
        )
        stop = threading.Event()
        confirm = (lambda _: True) if yes else _confirmed
        with stopped_by_signals(stop):
            complete = command.run(settings, aim, stop, state=state, confirm=confirm, as_json=as_json)
    if not complete:
        raise typer.Exit(STOPPED if stop.is_set() else 1)


@replay.command("kafka")
def replay_kafka(
    start: Annotated[
        str,
        typer.Option("--from", help="beginning, end, offset:N, time:ISO-8601 or ms, position:LSN. Inclusive."),
    ],
    end: Annotated[str, typer.Option("--to", help="As --from. Exclusive.")] = "end",
    tables: Annotated[
        list[str] | None, typer.Option("--table", help="Only this table; repeatable.", show_default=False)
    ] = None,
    views: Annotated[
        list[str] | None, typer.Option("--view", help="Only this view; repeatable.", show_default=False)
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", help="Only this cache key; repeatable.", show_default=False)
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option("--region", help="Only there; repeatable. [default: every region]", show_default=False),
    ] = None,
    topic: Annotated[str | None, typer.Option("--topic", help="Only this topic.", show_default=False)] = None,
    partition: Annotated[
        int | None, typer.Option("--partition", min=0, help="Only this partition of it.", show_default=False)
    ] = None,
    topic_prefix: Annotated[
        str | None,
        typer.Option(
            "--topic-prefix", help="Read copies: PREFIX.schema.table. [default: source.name]", show_default=False
        ),
    ] = None,
    allow_holes: Annotated[
        bool, typer.Option("--allow-holes", help="Also where records of the range may be missing.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="At most so many records per second.", show_default=False)
    ] = None,
    state: Annotated[Path, typer.Option("--state", help="Where a killed replay goes on from.")] = Path(
        "staleproof-replay-kafka.json"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replayed.")] = False,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Apply a range of the captured topics once more: removes what its changes outdate. Safe beside live traffic."""
    with _reported(debug=debug):
        settings = load_settings(config)
        for region in regions or ():
            check_region(settings, region)
        from consumers import replay_kafka as command  # noqa: PLC0415

        request = command.Request(
            start=start, end=end, tables=tuple(tables or ()), views=tuple(views or ()), keys=tuple(keys or ()),
            regions=tuple(sorted(set(regions or ()))), topic=topic, partition=partition, topic_prefix=topic_prefix,
            allow_holes=allow_holes, records_per_second=rate, state=state, dry_run=dry_run, as_json=as_json,
        )  # fmt: skip
        stop = threading.Event()
        with stopped_by_signals(stop):
            complete = command.run(settings, request, stop)
    if not complete:
        go_on = "" if dry_run else f": {state} knows where; the same command again goes on"
        typer.echo(f"staleproof: stopped before the end{go_on}", err=True)
        raise typer.Exit(STOPPED)


@app.command()
def acl(
    region: Annotated[
        str | None,
        typer.Option("--region", help="Users for this region. [default: the only one]", show_default=False),
    ] = None,
    role: Annotated[
        list[Role] | None, typer.Option("--role", help="Only this one; repeatable. [default: all]", show_default=False)
    ] = None,
    password_file: Annotated[
        list[str] | None,
        typer.Option(
            "--password-file",
            help="ROLE=FILE: the password's hash is printed in its place; repeatable.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="An ACL file, or ACL SETUSER commands.")] = Form.FILE,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Print users of Redis with the rights that readers, workers and operators need, and no more."""
    with _reported(debug=debug):
        settings = load_settings(config)
        if region is not None:
            check_region(settings, region)
        from consumers import acl as command  # noqa: PLC0415 - each command loads only what it needs

        request = command.Request(
            region=region,
            roles=tuple(dict.fromkeys(role or Role)),
            password_files=tuple(password_file or ()),
            form=form,
        )
        users, notes = command.run(settings, request)
        for line in users:
            typer.echo(line)
        for note in notes:
            typer.echo(f"staleproof: {note}", err=True)


@app.command("version")
def show_version() -> None:
    """Print the version."""
    try:
        typer.echo(version("staleproof"))
    except PackageNotFoundError:
        typer.echo("unknown: staleproof is not installed")


def check_region(settings: Settings, region: str) -> None:
    """Raises ConfigError, naming the nearest region or all of them, for one that the settings do not have."""
    if region not in settings.regions:
        raise ConfigError(f"there is no region {region!r} in the settings; {nearest(region, settings.regions)}")


def _confirmed(question: str) -> bool:
    """Whether the person at the terminal agrees. Raises ConfigError where nobody sits at one."""
    if not _at_terminal():
        raise ConfigError("not confirmed, and no terminal to ask on: add --yes")
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # ^C or ^D at the question
        return False


def _at_terminal() -> bool:
    return sys.stdin.isatty()


def exit_code(error: Exception) -> int:
    """See the table above."""
    if isinstance(error, ConfigError):
        return 2
    if isinstance(error, GapError):
        return 3
    return 1 if isinstance(error, StaleproofError) else INTERNAL_FAULT


@contextmanager
def _reported(*, debug: bool) -> Iterator[None]:
    """One line for an error, and its exit code. What we did not raise on purpose may quote values: only its kind."""
    configure_logging(debug=debug)
    try:
        yield
    except Exception as error:  # the outermost frame: whatever it is, one line and an exit code
        if debug:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, StaleproofError):
            text = f"unexpected {type(error).__name__}: run again with --debug, and please report it"
        typer.echo(f"staleproof: {text}", err=True)
        raise typer.Exit(exit_code(error)) from None


def main() -> None:
    """Entry point of the `staleproof` command."""
    app()


if __name__ == "__main__":
    main()
