"""What a region's Redis says about itself, before anything is stored there. Door: redis, beside region.py.

Asks INFO, FUNCTION LIST, ACL DRYRUN and, of a Cluster, CLUSTER SLOTS only, which managed services allow; CONFIG they
often refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import redis
from redis.sentinel import MasterNotFoundError

from cdc.errors import ConfigError, TransientError
from invalidator.node import Node
from invalidator.nodes import Connection, Nodes, connect
from invalidator.redis_errors import NO_CLUSTER, judge
from invalidator.redis_url import DEFAULT_USER

Command: TypeAlias = tuple[str, ...]
"""A command with its arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rights:
    """What a user may do on a server: `allowed` of what was tried. Where it does not exist, nothing."""

    user: str
    exists: bool
    allowed: frozenset[Command]


_ALMIGHTY = {DEFAULT_USER: Rights(user=DEFAULT_USER, exists=True, allowed=frozenset({("FLUSHALL",)}))}
_OF_A_STRANGER = ("db", "socket_timeout", "socket_connect_timeout", "retry", "driver_info")


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisFacts:
    """One server. `product` is `redis` or `valkey`, `refusal` why functions cannot be used here, if so.

    `server` tells it from the others of its region: host and port where there are several, else nothing. `rights` by
    user; None: ours could not ask. `is_open`: without a login, too, anything can be sent.
    """

    product: str
    version: tuple[int, ...]
    eviction_policy: str
    maxmemory_bytes: int
    is_replica: bool
    is_cluster: bool
    refusal: str | None
    server: str = ""
    rights: Mapping[str, Rights] | None = None
    is_open: bool = False

    @property
    def version_text(self) -> str:
        """As people write it: 8.2.1."""
        return ".".join(map(str, self.version))


def describe(options: Connection, trials: Mapping[str, Sequence[Command]] | None = None) -> list[RedisFacts]:
    """Ask every server that takes writes; `trials`: users, and the commands to try as them, none of which runs.

    Raises ConfigError when one refuses us, TransientError when it is silent.
    """
    nodes = _nodes(options)
    try:
        primaries = nodes.primaries()
        return [_describe(node, trials or {}, named=len(primaries) > 1) for node in primaries]
    except (
        redis.AuthenticationError,
        redis.exceptions.NoPermissionError,
        redis.exceptions.AuthorizationError,
    ) as error:
        raise ConfigError(
            f"Redis refuses the login or INFO ({type(error).__name__}): correct url, username, password or ACL"
        ) from None
    except redis.TimeoutError:
        raise TransientError(
            f"Redis did not answer within {options.timeout_seconds:g} s: start it, or correct url or timeout_ms"
        ) from None
    except MasterNotFoundError:
        raise TransientError(
            f"no Sentinel of url knows a primary {options.sentinel_master}: correct url or sentinel_master"
        ) from None
    except (redis.ConnectionError, OSError) as error:
        raise TransientError(f"Redis cannot be reached ({_reason(error)}): start it, or correct url") from None
    except redis.RedisError as error:
        if judge(str(error)) is NO_CLUSTER:
            raise ConfigError(f"Redis is not part of a cluster: {NO_CLUSTER.hint}") from None
        raise TransientError(f"Redis answers with an error ({type(error).__name__}): look at its log") from None


def _nodes(options: Connection) -> Nodes:
    try:
        return connect(options)
    except (ValueError, TypeError, redis.RedisError, OSError):
        raise ConfigError(
            "url or the TLS files cannot be used: write redis://host:6379/0 or rediss://, PEM files"
        ) from None


def _describe(node: Node, trials: Mapping[str, Sequence[Command]], *, named: bool) -> RedisFacts:
    with node.client as client:
        info = client.info("server", "memory", "replication", "cluster")
        place = client.connection_pool.connection_kwargs
        facts = _facts(info, _refusal(client), f"{place['host']}:{place['port']}" if named else "")
        return replace(facts, rights=_rights(client, trials), is_open=bool(trials) and _is_open(node))


def _rights(client: redis.Redis, trials: Mapping[str, Sequence[Command]]) -> dict[str, Rights] | None:
    found = {}
    for user, commands in trials.items():
        with client.pipeline(transaction=False) as asked:
            for command in commands:
                asked.execute_command("ACL", "DRYRUN", user, *command)  # type: ignore[no-untyped-call]  # redis-py
            replies = asked.execute(raise_on_error=False)
        if any(map(_is_unanswered, replies)):
            return None
        allowed = frozenset(command for command, reply in zip(commands, replies, strict=True) if reply == b"OK")
        exists = not any(isinstance(reply, Exception) and str(reply).startswith("User ") for reply in replies)
        found[user] = Rights(user=user, exists=exists, allowed=allowed)
    return found


def _is_unanswered(reply: object) -> bool:
    """Whether our user may not ask, or the server does not know the question, as managed services may not."""
    unknown = isinstance(reply, redis.ResponseError) and str(reply).startswith("unknown ")
    return unknown or isinstance(reply, redis.exceptions.NoPermissionError)


def _is_open(node: Node) -> bool:
    """Whether somebody without a login may do everything, as the user `default` of a new server may."""
    given = node.client.connection_pool.connection_kwargs
    kwargs = {name: value for name, value in given.items() if name in _OF_A_STRANGER or name.startswith("ssl_")}
    host, port, path = node.place
    kind: Any = (
        redis.UnixDomainSocketConnection if path else redis.SSLConnection if node.encrypted else redis.Connection
    )
    kwargs |= {"path": path} if path else {"host": host, "port": port}
    pool = redis.ConnectionPool(connection_class=kind, **kwargs)
    with closing(redis.Redis.from_pool(pool)) as stranger:
        try:
            return _rights(stranger, {DEFAULT_USER: [("FLUSHALL",)]}) == _ALMIGHTY
        except redis.AuthenticationError:
            return False


def _refusal(client: redis.Redis) -> str | None:
    try:
        client.function_list()
    except redis.exceptions.NoPermissionError:
        return "the ACL of our user denies FUNCTION"
    except redis.ResponseError:
        return "this server does not know FUNCTION"
    return None


def _facts(info: dict[str, object], refusal: str | None, server: str) -> RedisFacts:
    valkey = info.get("valkey_version")
    version = str(valkey or info.get("redis_version", "0"))
    return RedisFacts(
        product="valkey" if valkey else "redis",
        version=tuple(int(number) for number in version.split(".") if number.isdigit()),
        eviction_policy=str(info.get("maxmemory_policy", "unknown")),
        maxmemory_bytes=int(str(info.get("maxmemory", 0))),
        is_replica=info.get("role") == "slave",
        is_cluster=str(info.get("cluster_enabled", 0)) == "1",
        refusal=refusal,
        server=server,
    )


def _reason(error: Exception) -> str:
    """Why the connection failed, without the address, which may hold a misplaced piece of a password."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
