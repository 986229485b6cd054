"""Which records a replay of Kafka means: edges as a person writes them, and the offsets that they stand for. Pure.

In flow two edges and what the log says of itself; out flows an extent for each partition, fixed before anything is
read. A range is half-open: from its first edge up to, not including, its second. Where records may be missing from it,
it is refused, unless holes are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Protocol, TypeAlias, assert_never

import msgspec

from cdc.errors import ConfigError, GapError
from cdc.events import POSITION_WIDTH, Offset, parse_lsn
from consumers.stream import Extent, Partition

_LSN = re.compile(r"(?:(?P<epoch>[0-9a-f]{8})@)?(?P<lsn>[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})")
_POSITION = re.compile(rf"[0-9a-f]{{{POSITION_WIDTH}}}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_LOWEST = "0" * POSITION_WIDTH
_HIGHEST = "g"  # beyond every digit

FORMS = (
    "write beginning, end, offset:<n>, time:<ISO 8601 with a zone, or milliseconds since 1970>, or"
    " position:<LSN as PostgreSQL prints it> (of an earlier epoch: position:<epoch>@<LSN>)"
)


class Whole(Enum):
    """The edges of what is there."""

    BEGINNING = "beginning"
    END = "end"


class AtOffset(msgspec.Struct, frozen=True, tag=True):
    """One offset, of every partition that is meant."""

    offset: int


class AtTime(msgspec.Struct, frozen=True, tag=True):
    """The first record that Kafka stamped at or after this, milliseconds since 1970."""

    time_ms: int


class AtPosition(msgspec.Struct, frozen=True, tag=True):
    """The first record at or after this place of the source's log. `epoch` (8 digits) empty: the newest of the log."""

    epoch: str
    rest: str


Edge: TypeAlias = Whole | AtOffset | AtTime | AtPosition


class Log(Protocol):
    """What Kafka says of its topics."""

    def missing(self, topics: Sequence[str]) -> list[str]:
        """Those that are not there."""

    def compacted(self, topics: Sequence[str]) -> frozenset[str]:
        """Those whose older records of a key may be gone."""

    def extents(self, topics: Sequence[str]) -> dict[str, list[Extent]]:
        """What each partition holds now, open transactions left out; list index = partition."""

    def at_time(self, partitions: Sequence[Partition], time_ms: int) -> dict[Partition, Offset]:
        """The first record stamped at or after that time; a partition without one is left out."""

    def first(self, partition: Partition, extent: Extent) -> tuple[int, str] | None:
        """Offset and position of the first record of the extent that tells one; None where none is near."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The range that a person wants. `only`: of this partition.

    `repeated_max`: so many records may come again, from an older position on, after capture was killed. `in_order`
    False: copies, whose positions need not ascend at all.
    """

    start: Edge
    end: Edge
    topics: tuple[str, ...]
    only: Partition | None = None
    allow_holes: bool = False
    repeated_max: int = 0
    in_order: bool = True


class Fixed(msgspec.Struct, frozen=True, kw_only=True):
    """The offsets to read, and of what is there the positions that are meant: `since` up to, not including, `until`."""

    extents: dict[Partition, Extent]
    since: str
    until: str


def parse_edge(text: str, option: str) -> Edge:
    """The edge behind an option's text. Raises ConfigError."""
    kind, _, rest = text.partition(":")
    if text in ("beginning", "end"):
        return Whole(text)
    if kind == "offset" and _NUMBER.fullmatch(rest):
        return AtOffset(int(rest))
    if kind == "time":
        return AtTime(_time_ms(rest, option))
    if kind == "position":
        if _POSITION.fullmatch(rest):
            return AtPosition(rest[:8], rest[8:])
        found = _LSN.fullmatch(rest)
        if found is not None:
            return AtPosition(found["epoch"] or "", f"{parse_lsn(found['lsn']):016x}{0:08x}")
    raise ConfigError(f"{option} {text!r} is no edge of a range: {FORMS}")


def _time_ms(text: str, option: str) -> int:
    if _NUMBER.fullmatch(text):
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is no time: {FORMS}") from None
    if time.tzinfo is None:
        raise ConfigError(f"{option}: {text!r} is in no time zone: add one, such as {text}Z for UTC")
    return int(time.timestamp() * 1000)


def fix_range(log: Log, asked: Asked) -> Fixed:
    """What is meant, as of now.

    Raises ConfigError for what is not there or cannot be told, GapError where records of the range have expired.
    """
    held = _held(log, asked)
    start, end = (_in_an_epoch(log, held, edge) for edge in (asked.start, asked.end))
    starts = _places(log, held, start, asked, "--from")
    ends = _places(log, held, end, asked, "--to")
    fixed = Fixed(extents={}, since=_position(start, _LOWEST), until=_position(end, _HIGHEST))
    if fixed.since > fixed.until:
        raise ConfigError("--from is a position after --to: exchange them")
    searched = isinstance(start, AtPosition)
    for partition, begin in starts.items():
        last = ends[partition]
        if begin > last and not asked.allow_holes and not searched:
            raise ConfigError(f"{_name(partition)}: --from is offset {begin}, after --to, offset {last}: exchange them")
        first = max(held[partition].begin, begin - asked.repeated_max) if searched else begin  # see _search
        fixed.extents[partition] = Extent(Offset(first), Offset(max(first, last)))
    return fixed


def _position(edge: Edge, otherwise: str) -> str:
    return edge.epoch + edge.rest if isinstance(edge, AtPosition) else otherwise


def check_held(partition: Partition, begin: int, held: Extent, what: str) -> None:
    """Raises GapError where `begin` is not there any more."""
    if begin < held.begin:
        raise GapError(
            f"{_name(partition)}: {what} is offset {begin}, and kafka has {held.begin} to {held.end}: the records"
            " between have expired; begin later, rebuild from the database, or add --allow-holes"
        )


def _held(log: Log, asked: Asked) -> dict[Partition, Extent]:
    """What is there of the partitions that are meant."""
    missing = log.missing(asked.topics)
    if missing:
        raise ConfigError(
            f"there is no topic {missing[0]}: start `staleproof capture` once, correct source.name, or for copies"
            " --topic-prefix"
        )
    compacted = log.compacted(asked.topics)
    if compacted and not asked.allow_holes:
        raise ConfigError(
            f"topic {min(compacted)} is compacted: changes of its range may be gone; set cleanup.policy=delete, rebuild"
            " from the database, or add --allow-holes"
        )
    held = {
        (topic, number): extent
        for topic, extents in log.extents(asked.topics).items()
        for number, extent in enumerate(extents)
    }
    if asked.only is not None and asked.only[1] >= 0:
        if asked.only not in held:
            count = sum(topic == asked.only[0] for topic, _ in held)
            raise ConfigError(f"topic {asked.only[0]} has no partition {asked.only[1]}: it has 0 to {count - 1}")
        return {asked.only: held[asked.only]}
    return held


def _in_an_epoch(log: Log, held: dict[Partition, Extent], edge: Edge) -> Edge:
    if isinstance(edge, AtPosition) and not edge.epoch:
        return AtPosition(_newest_epoch(log, held), edge.rest)
    return edge


def _places(log: Log, held: dict[Partition, Extent], edge: Edge, asked: Asked, option: str) -> dict[Partition, int]:
    """The offset of the edge in each partition, within what it holds."""
    wanted: dict[Partition, int]
    match edge:
        case Whole.BEGINNING:
            return {partition: extent.begin for partition, extent in held.items()}
        case Whole.END:
            return {partition: extent.end for partition, extent in held.items()}
        case AtOffset():
            return {p: _offset(p, extent, edge.offset, asked.allow_holes, option) for p, extent in held.items()}
        case AtTime():
            found = log.at_time(list(held), edge.time_ms)
            wanted = {p: min(found.get(p, extent.end), extent.end) for p, extent in held.items()}
        case AtPosition():
            if not asked.in_order:  # all of it is read, and the positions sort out what is meant
                return _places(log, held, Whole.BEGINNING if option == "--from" else Whole.END, asked, option)
            wanted = {p: _search(log, p, extent, edge.epoch + edge.rest) for p, extent in held.items()}
        case _:
            assert_never(edge)
    if option == "--from" and not asked.allow_holes:
        for partition, offset in wanted.items():
            _refuse_doubtful(partition, offset, held[partition])
    return wanted


def _offset(partition: Partition, held: Extent, offset: int, allow_holes: bool, option: str) -> int:
    if not allow_holes:
        check_held(partition, offset, held, option)
        if offset > held.end:
            raise ConfigError(
                f"{_name(partition)}: {option} is offset {offset}, and kafka has {held.begin} to {held.end}: ask for"
                " what is there, choose one with --topic and --partition, or add --allow-holes"
            )
    return min(max(offset, held.begin), held.end)


def _refuse_doubtful(partition: Partition, offset: int, held: Extent) -> None:
    """The range begins with the first record that is left: those before it may have belonged to it."""
    if offset == held.begin > 0 and held.begin < held.end:
        raise GapError(
            f"{_name(partition)}: --from is at or before offset {offset}, the first that kafka has still (to"
            f" {held.end}): records of the range may have expired; begin later, rebuild from the database, or add"
            " --allow-holes"
        )


def _newest_epoch(log: Log, held: dict[Partition, Extent]) -> str:
    """The epoch of the newest record that tells one."""
    epochs = [found[1][:8] for p, extent in held.items() if (found := _last(log, p, extent)) is not None]
    if not epochs:
        raise ConfigError("no record tells a position: ask for offset: or time: instead")
    return max(epochs)


def _last(log: Log, partition: Partition, held: Extent) -> tuple[int, str] | None:
    """The last record, or one near it, that tells a position."""
    back = 1
    while held.begin <= held.end - back:
        found = log.first(partition, Extent(Offset(held.end - back), held.end))
        if found is not None:
            return found
        back *= 2
    return log.first(partition, held) if held.begin < held.end else None


def _search(log: Log, partition: Partition, held: Extent, position: str) -> int:
    """The first record at or after `position`: a search by halves, as positions ascend.

    Not strictly: after capture was killed, records come again from an older one on, and where it was killed again soon
    the last ones are older than those before. All that is before `position` stands before any record that is not, so an
    end is right wherever the search finds it. A beginning may be found too late, by as many records as came again.
    """
    low, high = int(held.begin), int(held.end)
    while low < high:
        middle = (low + high) // 2
        found = log.first(partition, Extent(Offset(middle), Offset(high)))
        if found is not None and found[1] < position:
            low = found[0] + 1
        else:
            high = middle
    return low


def _name(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
