"""Where things lie in a region's Redis, and how the guard's small values are written. Pure; docs/protocol.md §2.

A shard is a hash tag: its header, its fences and its entries share one slot and move together. Every value is
fixed-width lower-case hexadecimal text, so that it sorts as it compares, here and in Lua.
"""

from __future__ import annotations

import re
import zlib

import msgspec

from cdc.events import OFFSET_WIDTH, POSITION_WIDTH, STAMP_WIDTH, split_stamps

FORMAT = "1"
EXACT_STAMPS = 8
"""A fence keeps up to so many stamps one by one; beyond, an interval."""

ZERO_POSITION = "0" * POSITION_WIDTH
ZERO_STAMP = "0" * STAMP_WIDTH
NO_DIGEST = "0" * 16
UNKNOWN_TOPIC = "0" * 32
NO_INSTANCE = "0" * 16
UNKNOWN_EPOCH = 0xFFFF_FFFF
HEX = re.compile(r"[0-9a-f]*")


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Key names of one region: `prefix` keeps applications apart, `shards` and `stripes` never change in place."""

    prefix: str = "sp"
    shards: int = 1
    stripes: int = 65_536

    def header_key(self, shard: int) -> str:
        """Hash: format, epoch, scopes, rows, newest heartbeat, watermark."""
        return f"{{{self.prefix}:{shard}}}:h"

    def fences_key(self, shard: int) -> str:
        """Hash: stripe (4 hexadecimal digits) or `*` to fence."""
        return f"{{{self.prefix}:{shard}}}:f"

    def leases_key(self, shard: int) -> str:
        """Hash: cache key to who loads it now."""
        return f"{{{self.prefix}:{shard}}}:l"

    def owed_key(self, shard: int) -> str:
        """Hash: what is owed to plain views (plain.py)."""
        return f"{{{self.prefix}:{shard}}}:o"

    def entry_key(self, shard: int, key: str) -> str:
        """String: the entry of cache key `key`."""
        return f"{{{self.prefix}:{shard}}}:e:{key}"

    def place(self, key: str) -> tuple[int, str]:
        """Shard and stripe (4 hexadecimal digits) of `key`: CRC-32 of its text."""
        crc = zlib.crc32(key.encode())
        return (crc >> 16) % self.shards, f"{(crc & 0xFFFF) % self.stripes:04x}"


class Fence(msgspec.Struct, frozen=True):
    """The newest changes of a scope: their highest position, and their stamps, exact or as an interval.

    `exact`: `stamps` are up to EXACT_STAMPS ascending stamps, possibly none. Otherwise `stamps` is (low, high).
    Written `=` (exact) or `-` (interval), position, stamps.
    """

    exact: bool
    position: str
    stamps: tuple[str, ...]

    @property
    def text(self) -> str:
        """As stored."""
        return ("=" if self.exact else "-") + self.position + "".join(self.stamps)

    @classmethod
    def parse(cls, text: str) -> Fence:
        """The fence behind `text`. Raises ValueError."""
        body = text[1 + POSITION_WIDTH :]
        wrong_length = len(text) <= POSITION_WIDTH or len(body) % STAMP_WIDTH or (text[0] == "-" and len(body) != 32)
        if text[:1] not in ("=", "-") or wrong_length or not HEX.fullmatch(text, 1):
            raise ValueError("not a fence")
        return cls(text[0] == "=", text[1 : 1 + POSITION_WIDTH], split_stamps(body))


EMPTY_FENCE = Fence(True, ZERO_POSITION, ())


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """State of a view, or of the region: open with a fence, or closed since a point of the control topic.

    Written: `o` or `c`, generation (32), digest (16); open: the fence; closed: the control offset from which heartbeats
    count (16), how many of one capture counted in a row (1 digit), that capture (16), the position of the third (32,
    once it counted).
    """

    generation: str
    digest: str
    fence: Fence | None = None
    closed_at: str = ""
    heartbeats: int = 0
    instance: str = NO_INSTANCE
    third: str = ""

    @property
    def open(self) -> bool:
        """Whether entries of this scope can be read and filled."""
        return self.fence is not None

    @property
    def text(self) -> str:
        """As stored."""
        if self.fence is not None:
            return f"o{self.generation}{self.digest}{self.fence.text}"
        return f"c{self.generation}{self.digest}{self.closed_at}{self.heartbeats}{self.instance}{self.third}"

    @classmethod
    def parse(cls, text: str) -> Scope:
        """The scope behind `text`. Raises ValueError."""
        generation, digest, rest = text[1:33], text[33:49], text[49:]
        if text[:1] == "o":
            return cls(generation=generation, digest=digest, fence=Fence.parse(rest))
        if text[:1] != "c" or len(rest) not in (33, 65):
            raise ValueError("not a scope")
        return cls(
            generation=generation,
            digest=digest,
            closed_at=rest[:16],
            heartbeats=int(rest[16]),
            instance=rest[17:33],
            third=rest[33:],
        )


REGION_SCOPE = "s:"


def view_scope(view: str) -> str:
    """Field of the header that holds the scope of `view`."""
    return f"s:{view}"


def row_field(topic: str, partition: int) -> str:
    """Field of the header that holds the row of a topic-partition."""
    return f"t:{topic}/{partition}"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint of one topic-partition in one shard, 136 hexadecimal digits.

    `next_offset`: everything before it is applied. `position` and `stamp` are the highest that passed, ignored records
    included; `sequence` the connector's number of the last record; `digest` the views by which it was planned;
    `leader_epoch` Kafka's, of the last record, -1 (written as eight f) where it is not known.
    """

    next_offset: int
    topic_id: str = UNKNOWN_TOPIC
    leader_epoch: int = -1
    sequence: int = 0
    position: str = ZERO_POSITION
    stamp: str = ZERO_STAMP
    digest: str = NO_DIGEST

    @property
    def text(self) -> str:
        """As stored."""
        return (
            f"{self.next_offset:016x}{self.topic_id}{self.leader_epoch & UNKNOWN_EPOCH:08x}{self.sequence:016x}"
            f"{self.position}{self.stamp}{self.digest}"
        )

    @classmethod
    def parse(cls, text: str) -> Row:
        """The row behind `text`. Raises ValueError."""
        if len(text) != 136:
            raise ValueError("not a row")
        return cls(
            next_offset=int(text[:16], 16),
            topic_id=text[16:48],
            leader_epoch=-1 if text[48:56] == f"{UNKNOWN_EPOCH:08x}" else int(text[48:56], 16),
            sequence=int(text[56:72], 16),
            position=text[72:104],
            stamp=text[104:120],
            digest=text[120:136],
        )


def offset_text(offset: int) -> str:
    """16 hexadecimal digits."""
    return f"{offset:0{OFFSET_WIDTH}x}"
