"""Records of the control topic: what every worker must hear, whichever partitions it owns. Pure.

One partition, so one order. Three kinds: a heartbeat proves progress and carries a snapshot, an epoch record says
that a new history begins, a raise closes a scope. All are facts: applying one twice changes nothing.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cdc.errors import BadRecord
from cdc.events import Position, Stamp
from cdc.snapshots import Snapshot, parse_pg_snapshot

CONTROL_VERSION = 1

# What is written as fixed-width text further on must fit: anything else is a record that cannot be read.
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=(1 << 47) - 1)]
EpochNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
PositionText = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
InstanceText = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="heartbeat", tag_field="kind"):
    """A transactional message that the source side committed, published once Kafka had everything before it.

    `snapshot` is PostgreSQL's text form, taken inside the heartbeat's own transaction; `stamp` is that transaction.
    `instance` (16 hexadecimal digits) is the open stream of capture that committed it: it has one heartbeat under way
    at a time, and may publish it late when it was replaced. `time_ms` is the database's clock. `barriers` maps each
    captured topic to the end offset of every partition (index = partition) at the moment of publishing; it is also the
    list of topics and partitions that exist.
    """

    v: int = CONTROL_VERSION
    source: str
    history: str
    instance: InstanceText = "0" * 16
    number: int
    position: PositionText
    stamp: Count
    snapshot: str
    time_ms: Milliseconds
    barriers: dict[str, list[Count]]

    @property
    def at(self) -> Position:
        """Where the heartbeat's transaction stands in the log."""
        return Position.parse(self.position)

    @property
    def seen(self) -> Snapshot:
        """What the heartbeat's transaction could see."""
        return parse_pg_snapshot(self.history, self.snapshot)

    @property
    def own_stamp(self) -> Stamp:
        """The heartbeat's own transaction."""
        return Stamp(self.stamp)


class EpochStarted(msgspec.Struct, frozen=True, kw_only=True, tag="epoch", tag_field="kind"):
    """A new history begins: changes between the old one and this may have been lost, so every region is closed.

    No record of the epoch stands before `lsn` in the log. `stamp` is the next transaction id that nobody had completed
    when this was announced: whatever was visible then has a smaller one. 0: not known.
    """

    v: int = CONTROL_VERSION
    source: str
    history: str
    epoch: EpochNumber
    reason: str
    lsn: Count = 0
    stamp: Count = 0


class Raise(msgspec.Struct, frozen=True, kw_only=True, tag="raise", tag_field="kind"):
    """An order that no captured record caused.

    It closes the views that `table` (`schema.table`) feeds, or `view`, or the whole region where both are None; with
    `key`, a cache key of `view`, only that key is fenced: `stamp` is then a transaction that the sender completed in
    the source before the order: who sees it reads what the operator wants read. `region` None: in every region.
    `position` is how far the sender had come in the log, for people; nothing is decided by it.
    """

    v: int = CONTROL_VERSION
    source: str
    position: str
    region: str | None
    view: str | None
    reason: str
    table: str | None = None
    key: str | None = None
    stamp: Count = 0


ControlRecord = Heartbeat | EpochStarted | Raise

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[ControlRecord] = msgspec.json.Decoder(ControlRecord)


def encode_control(record: ControlRecord) -> bytes:
    """The record as JSON."""
    return _encoder.encode(record)


def decode_control(value: bytes) -> ControlRecord:
    """The record behind `value`. Raises BadRecord when it is not one that this version understands."""
    try:
        record = _decoder.decode(value)
        if record.v != CONTROL_VERSION:
            raise BadRecord(
                f"control record of version {record.v}; this release reads version {CONTROL_VERSION}: upgrade"
            )
        if isinstance(record, Heartbeat):
            record.at, record.seen  # noqa: B018 - both parse, and both must
        elif isinstance(record, Raise):
            _check_scope(record)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRecord(f"control record cannot be read: {error}") from error
    return record


def _check_scope(order: Raise) -> None:
    """Raises BadRecord unless the order names one scope."""
    if order.table is not None and (order.view is not None or order.key is not None):
        raise BadRecord("a raise of a table names a view or a key too: name one of them in each raise")
    if order.key is not None and order.view is None:
        raise BadRecord("a raise of a key names no view: name the view that the key belongs to")
    if order.key is not None and order.stamp <= 0:
        raise BadRecord("a raise of a key has no stamp: complete a transaction in the source and name it")
