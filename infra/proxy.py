"""A TCP proxy that makes a network fail on purpose: in front of one server, on loopback, in a thread of its own.

    with FaultProxy(redis_port) as proxy:
        client = Redis(port=proxy.port, socket_timeout=0.5)
        proxy.swallow_replies(1, containing=b"FCALL")   # the server executes it, the caller never hears of it
        ...
        proxy.heal()

Every call returns when the fault is in force: what is read from a socket later meets it, what was read before may still
arrive. A proxied connection is a stream, so one that has lost bytes is never continued: it stays mute, and `heal`
resets it. Works for any protocol whose answers come over the address that was asked (Redis, PostgreSQL; not Kafka,
whose brokers name their own addresses).
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from infra.processes import StackError, free_port
from infra.proxy_link import Faults, LaneFaults, Link, Swallow, Tally, Then, Way

__all__ = ["Counts", "FaultProxy", "Then", "Way"]

LINKS_MAX: Final = 1_000
BACKLOG: Final = 128
CALL_LIMIT_SECONDS: Final = 5.0

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What passed so far, since the proxy's start.

    `requests` and `replies` are bursts: bytes of one side without any of the other between them. For a protocol that
    asks and waits they are round trips. `swallowed` are replies that vanished after the server had begun to answer.
    """

    connections: int
    open_connections: int
    requests: int
    replies: int
    request_bytes: int
    reply_bytes: int
    swallowed: int


class FaultProxy:
    """Listens on `port`, a free one, and connects each client to the target. Faults hold for every connection."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target_port = target_port
        self._faults = Faults()
        self._tally = Tally()
        self._links: dict[asyncio.Task[None], Link | None] = {}
        self._failure: BaseException | None = None
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        try:
            self._do(self._listen)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Reset every connection and end the thread; a second call does nothing. Raises what broke the proxy itself."""
        if self._loop.is_closed():
            return
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_LIMIT_SECONDS)
        self._loop.close()
        if self._failure is not None:
            raise StackError("the fault proxy itself failed; please report this") from self._failure

    def counts(self) -> Counts:
        """What passed so far."""
        return self._do(self._counts)

    # -- faults

    def retarget(self, port: int) -> None:
        """Connect new clients to another server: a fail-over behind one address. Open connections stay: see `reset`."""

        def change() -> None:
            self._target_port = port

        self._do(change)

    def delay(self, way: Way, delay_ms: float) -> None:
        """Let bytes of this direction arrive later, 0 to end it; how many are under way does not matter."""
        self._change(lambda: setattr(self._lane(way), "delay_ms", delay_ms))

    def limit_rate(self, way: Way, bytes_per_second: float | None) -> None:
        """Limit this direction of each connection, None to end it."""
        self._change(lambda: setattr(self._lane(way), "bytes_per_second", bytes_per_second))

    def blackhole(self, way: Way) -> None:
        """Read and drop this direction, its end included; connections stay open."""
        self._change(lambda: setattr(self._lane(way), "blackhole", True))

    def cut_after(self, way: Way, size_bytes: int) -> None:
        """Close each connection once it has passed that many bytes in this direction, counted from now."""

        def change() -> None:
            self._lane(way).cut_after_bytes = size_bytes
            for link in self._links.values():
                if link is not None:
                    link.recount()

        self._change(change)

    def half_open(self) -> None:
        """Neither read nor write nor close, in both directions, as if the peer had lost its power."""
        self._change(lambda: setattr(self._faults, "half_open", True))

    def swallow_replies(self, requests: int | None = 1, *, containing: bytes = b"", then: Then = Then.SILENCE) -> None:
        """Forward the next requests (None: all until healed) and let the replies vanish; see `Counts.swallowed`.

        A request is a burst of the client; only those that hold `containing` count, so that a client's greeting is left
        alone. Such a connection stays mute from there on, or is reset as soon as the server has begun to answer.
        """
        self._change(lambda: setattr(self._faults, "swallow", Swallow(requests, containing, then)))

    def refuse(self) -> None:
        """Refuse new connections, as if nothing listened."""
        self._run(self._stop_listening())

    def reset(self) -> None:
        """Reset (RST) every open connection, on both sides, once."""
        self._run(self._reset(list(self._links)))

    def heal(self) -> None:
        """End every fault. Connections that lost bytes are reset; what others held back goes on its way."""
        self._run(self._heal())

    # -- in the loop's thread

    def _lane(self, way: Way) -> LaneFaults:
        return self._faults.lanes[way]

    def _listen(self) -> None:
        if self._listener is not None:
            return
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=BACKLOG)
        self._listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept(self._listener))

    async def _stop_listening(self) -> None:
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        with suppress(asyncio.CancelledError):
            await self._accepting
        self._listener.close()
        self._listener = self._accepting = None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            if len(self._links) >= LINKS_MAX:
                client.close()
                continue
            self._tally.connections += 1
            task = self._loop.create_task(self._serve(client))
            self._links[task] = None
            task.add_done_callback(partial(self._forget, client))

    async def _serve(self, client: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        server = socket.socket()
        for one in (client, server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.sock_connect(server, ("127.0.0.1", self._target_port))
        except BaseException as error:
            client.close()
            server.close()
            if isinstance(error, OSError):
                return  # the target is away: the client learns it by the end of its connection
            raise
        link = self._links[task] = Link(client, server, self._faults, self._tally)
        await link.run()

    def _forget(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        client.close()  # open still where the task was cancelled before its first step
        del self._links[task]
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _reset(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _heal(self) -> None:
        for way in Way:
            self._faults.lanes[way] = LaneFaults()
        self._faults.half_open = False
        self._faults.swallow = None
        broken = [task for task, link in self._links.items() if link is not None and not link.heal()]
        self._faults.announce()
        await self._reset(broken)
        self._listen()

    async def _end(self) -> None:
        await self._stop_listening()
        await self._reset(list(self._links))

    def _counts(self) -> Counts:
        tally = self._tally
        return Counts(
            connections=tally.connections,
            open_connections=len(self._links),
            requests=tally.bursts[Way.REQUESTS],
            replies=tally.bursts[Way.REPLIES],
            request_bytes=tally.bytes[Way.REQUESTS],
            reply_bytes=tally.bytes[Way.REPLIES],
            swallowed=tally.swallowed,
        )

    # -- from the caller's thread

    def _change(self, change: Callable[[], None]) -> None:
        def apply() -> None:
            change()
            self._faults.announce()

        self._do(apply)

    def _do(self, action: Callable[[], _T]) -> _T:
        async def run() -> _T:
            return action()

        return self._run(run())

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_LIMIT_SECONDS)
