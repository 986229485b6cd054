"""One server of a region that takes writes: single calls, and a line for what is sent ahead. Door: redis.

All of it raises what redis-py raises; region.py judges that. Only a call of a function that the server did not know is
sent again here, once the function library is loaded: it did not run.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import Any

import redis

from invalidator.redis_errors import LIBRARY_MISSING, judge

LIBRARY = "staleproof1"


class Node:
    """One server that takes writes. Calls are thread-safe; the line belongs to one thread.

    On the line requests are sent ahead of the replies to those before them; replies come in the order of sending.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._line: Any = None
        self._unanswered = 0
        self._kept: list[Any] = []
        self._pid = os.getpid()
        self._may_load = True
        self.drops = 0
        """So often its connections were given up."""

    @property
    def place(self) -> tuple[Any, Any, Any]:
        """Host, port, and path of a socket, as far as they are known; of Sentinel's primary, that of now."""
        pool: Any = self.client.connection_pool
        given = pool.connection_kwargs
        host, port = getattr(pool, "master_address", None) or (given.get("host"), given.get("port"))
        return host, port, given.get("path")

    @property
    def encrypted(self) -> bool:
        """Whether connections are."""
        return "SSL" in self.client.connection_pool.connection_class.__name__

    @property
    def is_answered(self) -> bool:
        """Whether no reply is due on the line."""
        return not self._unanswered

    def call(self, *command: Any, asking: bool = False) -> Any:
        """One request and its reply. `asking`: its slot is on the way to this server.

        A function that the server does not know is loaded and called again, once.
        """
        send: Any = self._ask if asking else self.client.execute_command
        try:
            return send(*command)
        except redis.ResponseError as error:
            if judge(str(error)) is not LIBRARY_MISSING or not self.load_if_allowed():
                raise
        return send(*command)

    def ask(self, *command: Any, asking: bool = False) -> Any:
        """As `call`, for what may run twice: on a connection that is kept for this, without redis-py's way around it.

        A kept connection that turns out to be closed, as one is after a restart, is replaced once. One whose reply did
        not come is closed, so that no other caller gets it.
        """
        if asking:
            return self.call(*command, asking=True)
        connection, is_kept = self._kept_connection()
        try:
            return self._exchange(connection, command)
        except redis.TimeoutError:
            raise
        except (redis.ConnectionError, OSError):
            if not is_kept:
                raise
        except redis.ResponseError as error:
            if judge(str(error)) is not LIBRARY_MISSING or not self.load_if_allowed():
                raise
        return self._exchange(self.client.connection_pool.get_connection(), command)

    def _kept_connection(self) -> tuple[Any, bool]:
        """A connection that this thread alone has, and whether it was used before."""
        pool: Any = self.client.connection_pool
        if self._pid != os.getpid():  # a child must not talk on its parent's connections
            self._kept, self._pid = [], os.getpid()
        try:
            connection = self._kept.pop()
        except IndexError:
            return pool.get_connection(), False
        is_primary = getattr(pool, "master_address", None) in (None, (connection.host, connection.port))
        if is_primary and not connection.should_reconnect():
            return connection, True
        connection.disconnect()
        pool.release(connection)
        return pool.get_connection(), False

    def _exchange(self, connection: Any, command: tuple[Any, ...]) -> Any:
        try:
            connection.send_packed_command(connection.pack_command(*command), check_health=False)
            reply = connection.read_response()
        except redis.ResponseError:
            self._kept.append(connection)
            raise
        except BaseException:
            connection.disconnect()
            self.client.connection_pool.release(connection)
            raise
        self._kept.append(connection)
        return reply

    def drop(self) -> None:
        """Give up every connection: another server may answer at this address.

        One that is in use is only marked, and closed by who uses it: a thread whose socket another one closed would
        meet anything, at worst the next socket of that number.
        """
        self.drops += 1
        pool: Any = self.client.connection_pool
        pool.update_active_connections_for_reconnect()
        with suppress(IndexError):  # other threads take them too
            while True:
                pool.release(self._kept.pop())
        pool.disconnect(inuse_connections=False)

    def load(self) -> None:
        """Load the function library unless exactly this one is there."""
        send: Any = self.client.execute_command
        if library().encode() not in _flat(send("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")):
            send("FUNCTION", "LOAD", "REPLACE", library())

    def load_if_allowed(self) -> bool:
        """Load the library unless our user may not, as readers' users may not: then whoever may has yet to do it."""
        if self._may_load:
            try:
                self.load()
            except redis.exceptions.NoPermissionError:
                self._may_load = False  # the server notes each denial in ACL LOG: one is enough
        return self._may_load

    def send(self, *command: Any) -> None:
        """Send a request on the line. Its reply must be asked for (`answer`), or the line given up (`hang_up`)."""
        if self._line is None:
            self._line = self.client.connection_pool.get_connection()
        self._line.send_packed_command(self._line.pack_command(*command))
        self._unanswered += 1

    def answer(self) -> Any:
        """The next reply on the line."""
        reply = self._line.read_response()
        self._unanswered -= 1
        if not self._unanswered:  # the pool looks whether it is still alive before it lends it again
            line, self._line = self._line, None
            self.client.connection_pool.release(line)
        return reply

    def hang_up(self) -> None:
        """Give up the replies that are due: whether those requests ran is not known."""
        line, self._line = self._line, None
        self._unanswered = 0
        if line is not None:
            line.disconnect()
            self.client.connection_pool.release(line)

    def _ask(self, *command: Any) -> Any:
        with self.client.pipeline(transaction=False) as both:
            both.execute_command("ASKING").execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py
            reply = both.execute(raise_on_error=False)[1]  # raising would put the command's values in the message
        if isinstance(reply, Exception):
            raise reply
        return reply


@cache
def library() -> str:
    """The function library: every file of `lua/`, in order of name."""
    files = sorted((f for f in resources.files("invalidator").joinpath("lua").iterdir()), key=lambda f: f.name)
    return f"#!lua name={LIBRARY}\n" + "".join(f.read_text() for f in files if f.name.endswith(".lua"))


def _flat(reply: Any) -> list[Any]:
    """Every leaf of a nested reply: RESP2 gives lists, RESP3 maps."""
    if isinstance(reply, dict):
        return [leaf for pair in reply.items() for leaf in _flat(pair)]
    if isinstance(reply, list | tuple):
        return [leaf for part in reply for leaf in _flat(part)]
    return [reply]
