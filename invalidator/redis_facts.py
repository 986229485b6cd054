"""What a region's Redis says about itself, before anything is stored there. Door: redis, beside region.py.

Asks INFO, FUNCTION LIST and, of a Cluster, CLUSTER SLOTS only, which managed services allow; CONFIG they often refuse.
"""

from __future__ import annotations

from dataclasses import dataclass

import redis
from redis.sentinel import MasterNotFoundError

from cdc.errors import ConfigError, TransientError
from invalidator.node import Node
from invalidator.nodes import Connection, Nodes, connect
from invalidator.redis_errors import NO_CLUSTER, judge


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisFacts:
    """One server. `product` is `redis` or `valkey`, `refusal` why functions cannot be used here, if so.

    `server` tells it from the others of its region: host and port where there are several, else nothing.
    """

    product: str
    version: tuple[int, ...]
    eviction_policy: str
    maxmemory_bytes: int
    is_replica: bool
    is_cluster: bool
    refusal: str | None
    server: str = ""

    @property
    def version_text(self) -> str:
        """As people write it: 8.2.1."""
        return ".".join(map(str, self.version))


def describe(options: Connection) -> list[RedisFacts]:
    """Ask every server that takes writes. Raises ConfigError when one refuses us, TransientError when it is silent."""
    nodes = _nodes(options)
    try:
        primaries = nodes.primaries()
        return [_describe(node, named=len(primaries) > 1) for node in primaries]
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


def _describe(node: Node, *, named: bool) -> RedisFacts:
    with node.client as client:
        info = client.info("server", "memory", "replication", "cluster")
        place = client.connection_pool.connection_kwargs
        return _facts(info, _refusal(client), f"{place['host']}:{place['port']}" if named else "")


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
