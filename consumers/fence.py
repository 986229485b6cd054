"""`staleproof fence`: an operator's order to forget a key, a view or a region, through the control topic.

Out flows one `cdc.control.Raise`. Every worker that it concerns obeys, and again after a rewind: the order is a record
like any other, so no Redis can lose it. What is closed by it opens after three heartbeats.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec

from cdc.connectors.postgres import PostgresSource
from cdc.control import Raise, encode_control
from cdc.errors import ConfigError, TransientError
from consumers.kafka import Producer
from consumers.kafka_admin import Admin
from consumers.regions import read_views
from consumers.settings import Settings, SourceSettings
from invalidator.document import nearest
from invalidator.views import Views, can_render

REASON_CHARACTERS_MAX = 200


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What a person wants fenced: a key of a view, a view, or `everything`. `region` None: in every region."""

    view: str | None = None
    key: str | None = None
    region: str | None = None
    everything: bool = False
    reason: str = "fence command"


class Ordered(msgspec.Struct, frozen=True, kw_only=True):
    """An order that Kafka acknowledged, and where it stands in the control topic."""

    topic: str
    offset: int
    source: str
    region: str | None
    view: str | None
    key: str | None
    reason: str


def run(settings: Settings, aim: Aim, *, confirm: Callable[[str], bool], as_json: bool) -> bool:
    """Order what `aim` says once `confirm` agrees to the question; False when it does not. Prints what was ordered.

    Raises ConfigError for an aim that hits nothing, TransientError when Kafka does not acknowledge.
    """
    order = order_for(aim, settings.source.name, read_views(settings.views))
    if not confirm(question(order, sorted(settings.regions))):
        return False
    if order.key is not None:
        order = msgspec.structs.replace(order, stamp=_transaction(settings.source))
    ordered = publish(settings, order)
    line = msgspec.json.encode(ordered).decode() if as_json else line_of(ordered)
    sys.stdout.write(line + "\n")
    return True


def _transaction(source: SourceSettings) -> int:
    """A completed transaction of ours. Raises TransientError where the database is away."""
    try:
        database = PostgresSource(dsn=source.dsn.get_secret_value(), timeout_seconds=source.connect_timeout_seconds)
    except TransientError as error:
        raise TransientError(f"{error}; a key is fenced by a transaction of its own: fence its view instead") from error
    try:
        return database.complete_transaction()
    finally:
        database.close()


def order_for(aim: Aim, source: str, views: Views) -> Raise:
    """The control record for `aim`. Raises ConfigError for one that no worker could obey, or that says too much."""
    if not aim.reason.isprintable() or not 1 <= len(aim.reason) <= REASON_CHARACTERS_MAX:
        raise ConfigError(f"--reason should be one line of 1 to {REASON_CHARACTERS_MAX} characters: it goes to the log")
    if aim.view is None:
        if aim.key is not None:
            raise ConfigError("--key needs its view: add --view NAME")
        if not aim.everything:
            raise ConfigError("nothing to fence is named: add --view NAME, or --all for every view")
    elif aim.everything:
        raise ConfigError(f"--all means every view, and --view {aim.view} only one: leave one of them out")
    else:
        _check_view(aim.view, aim.key, views)
    return Raise(source=source, position="", region=aim.region, view=aim.view, key=aim.key, reason=aim.reason)


def _check_view(name: str, key: str | None, views: Views) -> None:
    view = views.views.get(name)
    if view is None:
        raise ConfigError(f"there is no view {name!r} in the views file; {nearest(name, views.views)}")
    if key is not None and not can_render(view.key, key):
        raise ConfigError(
            f"{key!a} is no key of view {name}: its keys are {view.key.text}, where a part's characters other than"
            " A-Z a-z 0-9 _ . @ + - are percent-encoded"
        )


def question(order: Raise, regions: list[str]) -> str:
    """What a person is asked before it happens."""
    if order.key is not None:
        return f"Remove {order.key} {_where(order, regions)}?"
    what = "every view" if order.view is None else f"view {order.view}"
    return (
        f"Close {what} {_where(order, regions)}? Its entries become unreadable, and every read goes to the database"
        " until three heartbeats have passed."
    )


def line_of(ordered: Ordered) -> str:
    """For people."""
    what = ordered.key or ("every view" if ordered.view is None else f"view {ordered.view}")
    where = "in every region" if ordered.region is None else f"in region {ordered.region}"
    return f"ordered: fence {what} {where}; offset {ordered.offset} of {ordered.topic}"


def _where(order: Raise, regions: list[str]) -> str:
    return f"in region {order.region}" if order.region else f"in every region ({', '.join(regions)})"


def publish(settings: Settings, order: Raise) -> Ordered:
    """Write the order to the control topic and wait until Kafka has it. Raises ConfigError, TransientError."""
    source, kafka = settings.source, settings.kafka
    topic = source.control_topic
    with Admin(kafka) as admin:
        if admin.missing([topic]):
            raise ConfigError(
                f"there is no topic {topic} at {kafka.bootstrap_servers}: start `staleproof capture` once, or check"
                " source.name and kafka.bootstrap_servers"
            )
        (extent,) = admin.extents([topic])[topic]
    producer = Producer(kafka, inflight_records=1)
    try:
        producer.track(topic, [extent.end])
        value = encode_control(order)
        sent = producer.send(producer.batch(), topic, 0, key=source.name.encode(), value=value, header=None)
        if not sent or producer.flush(kafka.request_timeout_seconds):
            raise TransientError(
                f"Kafka did not acknowledge the order within {kafka.request_timeout_seconds} s, but may have it still:"
                " order it again, twice does no harm"
            )
        offset = producer.ends[topic][0] - 1
    finally:
        producer.close()
    return Ordered(
        topic=topic,
        offset=offset,
        source=order.source,
        region=order.region,
        view=order.view,
        key=order.key,
        reason=order.reason,
    )
