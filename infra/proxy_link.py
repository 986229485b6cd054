"""One proxied connection: two lanes of bytes between a client and a server, and what faults do to them.

In flow two connected sockets and the faults in force; the link ends when both sides have finished, or is cut or reset.
Runs in the proxy's event loop. At most BUFFER_BYTES_MAX wait per lane: beyond that the sender is not read.
"""

import asyncio
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

CHUNK_BYTES_MAX: Final = 64 * 1024
BUFFER_BYTES_MAX: Final = 1024 * 1024
RATE_SLICES_PER_SECOND: Final = 50  # a limited lane sends small pieces instead of a burst each second

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER with 0 seconds


class Way(StrEnum):
    """The direction of a lane: what the client sends, and what the server sends."""

    REQUESTS = "requests"
    REPLIES = "replies"


class Then(StrEnum):
    """What a client meets after its reply was swallowed: a connection that stays open and mute, or a reset."""

    SILENCE = "silence"
    RESET = "reset"


@dataclass(slots=True)
class LaneFaults:
    """Faults of one direction, for every link. Zero and None mean none."""

    delay_ms: float = 0.0
    bytes_per_second: float | None = None
    blackhole: bool = False
    cut_after_bytes: int | None = None


@dataclass(slots=True)
class Swallow:
    """The replies to the next `requests` requests that hold `containing` vanish; None: to all of them."""

    requests: int | None
    containing: bytes
    then: Then

    def takes(self) -> bool:
        """Count one request that fits; tell whether its reply is to vanish."""
        if self.requests is None:
            return True
        self.requests -= 1
        return self.requests >= 0


@dataclass(slots=True)
class Faults:
    """What is switched on. `changed` wakes whoever waits for time to pass under faults that no longer hold."""

    lanes: dict[Way, LaneFaults] = field(default_factory=lambda: {way: LaneFaults() for way in Way})
    half_open: bool = False
    swallow: Swallow | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def announce(self) -> None:
        """Wake everybody who waits; whoever waits from now on waits for the next change."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def melted(self) -> None:
        """Wait while links are half-open."""
        while self.half_open:
            await self.changed.wait()

    async def changed_within(self, seconds: float) -> None:
        """Wait that long, or until something changes."""
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            return


@dataclass(slots=True)
class Tally:
    """What passed the proxy, counted where it is read. Bursts: bytes of one side without any of the other between."""

    connections: int = 0
    bytes: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    bursts: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    swallowed: int = 0


class _Cut(Exception):
    """The bytes that may pass have passed."""


class _Reset(Exception):
    """The client is to meet a reset."""


class _Lane:
    """Bytes on their way in one direction, and when they arrived. No bytes are the sender's end."""

    __slots__ = ("chunks", "passed_bytes", "room", "source", "target", "waiting_bytes", "way", "work")

    def __init__(self, way: Way, source: socket.socket, target: socket.socket) -> None:
        self.way = way
        self.source = source
        self.target = target
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.waiting_bytes = 0
        self.passed_bytes = 0
        self.room = asyncio.Event()
        self.work = asyncio.Event()

    def put(self, at: float, data: bytes) -> None:
        self.chunks.append((at, data))
        self.waiting_bytes += len(data)
        self.work.set()

    def take(self) -> bytes:
        _, data = self.chunks.popleft()
        self.waiting_bytes -= len(data)
        self.room.set()
        return data


class Link:
    """One connection of a client and its counterpart to the server."""

    def __init__(self, client: socket.socket, server: socket.socket, faults: Faults, tally: Tally) -> None:
        self._sockets = (client, server)
        self._faults = faults
        self._tally = tally
        self._lanes = (_Lane(Way.REQUESTS, client, server), _Lane(Way.REPLIES, server, client))
        self._last: Way | None = None
        self._burst_tail = b""
        self._undecided = False
        self._swallow: Swallow | None = None
        self._reply_due = False
        self._lossy = False

    async def run(self) -> None:
        """Carry bytes until both sides have ended, or the link is cut, reset or cancelled; closes both sockets."""
        reset = True
        try:
            async with asyncio.TaskGroup() as tasks:
                readers = [tasks.create_task(self._read(lane)) for lane in self._lanes]
                writers = [tasks.create_task(self._write(lane)) for lane in self._lanes]
                await asyncio.gather(*readers)
                if self._lossy:  # its writer waits for an end that was dropped
                    for writer in writers:
                        writer.cancel()
            reset = False
        except* _Cut:
            reset = False  # what passed must arrive
        except* (_Reset, OSError):
            pass  # one side is gone: the other learns it by the reset
        finally:
            for one in self._sockets:
                if reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                one.close()

    def recount(self) -> None:
        """Count the bytes that a cut allows from here on."""
        for lane in self._lanes:
            lane.passed_bytes = 0

    def heal(self) -> bool:
        """Forget a reply that was to vanish; tell whether the link can go on: one that lost bytes never can."""
        if not self._lossy:
            self._swallow = None
        return not self._lossy

    # -- in: what a side sent

    async def _read(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        data = b" "
        while data:
            await self._faults.melted()
            while lane.waiting_bytes >= BUFFER_BYTES_MAX:
                lane.room.clear()
                await lane.room.wait()
            try:
                data = await loop.sock_recv(lane.source, CHUNK_BYTES_MAX)
            except OSError:
                await self._faults.melted()
                if not self._is_dropped(lane.way):
                    raise
                data = b""
            await self._faults.melted()
            if data:
                self._count(lane.way, data)
            if self._is_dropped(lane.way):
                self._drop(lane.way, data)
            else:
                lane.put(loop.time(), data)

    def _count(self, way: Way, data: bytes) -> None:
        self._tally.bytes[way] += len(data)
        begins = self._last is not way
        self._last = way
        self._tally.bursts[way] += begins
        if way is Way.REQUESTS:
            self._judge_request(data, begins=begins)

    def _judge_request(self, data: bytes, *, begins: bool) -> None:
        """Decide about a reply at its request, once a burst; `containing` may lie across two chunks of it."""
        swallow = self._faults.swallow
        self._undecided = begins or self._undecided
        burst = data if begins else self._burst_tail + data
        self._burst_tail = b""
        if swallow is None or not self._undecided:
            return
        if swallow.containing in burst:
            self._undecided = False
            if swallow.takes():
                self._swallow, self._reply_due = swallow, True
        else:
            self._burst_tail = burst[-len(swallow.containing) :]

    def _is_dropped(self, way: Way) -> bool:
        swallowed = way is Way.REPLIES and self._swallow is not None
        return swallowed or self._faults.lanes[way].blackhole

    def _drop(self, way: Way, data: bytes) -> None:
        self._lossy = True
        if way is Way.REPLIES and self._swallow is not None and data and self._reply_due:
            self._reply_due = False
            self._tally.swallowed += 1
            if self._swallow.then is Then.RESET:
                raise _Reset

    # -- out: what the other side gets

    async def _write(self, lane: _Lane) -> None:
        data = b" "
        while data:
            while not lane.chunks:
                lane.work.clear()
                await lane.work.wait()
            await self._until_due(lane)
            data = lane.take()
            await self._send(lane, data)
        lane.target.shutdown(socket.SHUT_WR)

    async def _until_due(self, lane: _Lane) -> None:
        loop, faults = asyncio.get_running_loop(), self._faults
        while True:
            await faults.melted()
            left_seconds = lane.chunks[0][0] + faults.lanes[lane.way].delay_ms / 1000 - loop.time()
            if left_seconds <= 0:
                return
            await faults.changed_within(left_seconds)

    async def _send(self, lane: _Lane, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        while view:
            await self._faults.melted()
            faults = self._faults.lanes[lane.way]
            rate, cut = faults.bytes_per_second, faults.cut_after_bytes
            size = len(view) if rate is None else max(1, min(len(view), int(rate / RATE_SLICES_PER_SECOND)))
            if cut is not None:
                size = min(size, max(0, cut - lane.passed_bytes))
            await loop.sock_sendall(lane.target, view[:size])
            lane.passed_bytes += size
            view = view[size:]
            if cut is not None and lane.passed_bytes >= cut:
                raise _Cut
            if rate is not None:
                await self._faults.changed_within(size / rate)
