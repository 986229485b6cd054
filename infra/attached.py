"""Servers that run already: those of `python -m infra.stack up`, or of another test session.

They are not ours: they can't be broken on purpose, and what a site leaves there is removed, also what an earlier
session that was killed has left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

import psycopg
from kafka import KafkaAdminClient
from psycopg import sql
from redis import Redis

from infra import warden
from infra.processes import StackError
from infra.servers import ServerHandle, Servers
from infra.stack import State
from infra.warden import Identity

STATE_FILE: Final = "stack.json"
KAFKA_LIMIT_MS: Final = 10_000

_SITE: Final = re.compile(r"sp(?P<pid>[0-9]+)x(?P<started_ticks>[0-9]+)x[0-9]+")


def site_name(owner: Identity, number: int) -> str:
    """The name of a site: tells, without asking anybody, whether the process that made it is still there."""
    return f"sp{owner.pid}x{owner.started_ticks}x{number}"


def is_left_over(name: str) -> bool:
    """Whether this is the name of a site whose process is gone."""
    match = _SITE.fullmatch(name)
    return match is not None and not warden.is_alive(Identity(**{k: int(v) for k, v in match.groupdict().items()}))


@dataclass(frozen=True, kw_only=True, slots=True)
class AttachedServers:
    """Addresses of servers that somebody else runs."""

    directory: Path
    postgres_dsn: str
    kafka_bootstrap: str
    redis_urls: Mapping[str, str]
    ports: Mapping[str, int]
    processes: Mapping[str, ServerHandle]
    """Empty."""

    @classmethod
    def read(cls, place: Path, regions: Iterable[str]) -> Self:
        """From the state file `place`, or the directory that holds it; only these regions, or all where none is named.

        Raises StackError when nothing runs there, or a region is missing.
        """
        directory = place.parent if place.name == STATE_FILE else place
        state = State.read(directory)
        if state is None or state.supervisor not in state.living():
            raise StackError(f"no servers run in {directory}: start them with `python -m infra.stack up`")
        wanted = list(regions) or list(state.redis_urls)
        missing = [region for region in wanted if region not in state.redis_urls]
        if missing:
            raise StackError(f"the servers in {directory} have no region {missing[0]}; they have {[*state.redis_urls]}")
        return cls(
            directory=directory,
            postgres_dsn=state.postgres_dsn,
            kafka_bootstrap=state.kafka_bootstrap,
            redis_urls=MappingProxyType({region: state.redis_urls[region] for region in wanted}),
            ports=MappingProxyType(dict(state.ports)),
            processes=MappingProxyType({}),
        )


def forget_left_over(servers: Servers) -> list[str]:
    """Remove every site whose process is gone; their names."""
    with psycopg.connect(servers.postgres_dsn, autocommit=True) as admin:
        names = [name for (name,) in admin.execute("SELECT datname FROM pg_database").fetchall()]
    left = [name for name in names if is_left_over(name)]
    if left:
        forget(servers, left)
    return left


def forget(servers: Servers, names: Iterable[str]) -> None:
    """Remove the databases, slots, topics and Redis keys of these sites."""
    sites = list(names)
    with psycopg.connect(servers.postgres_dsn, autocommit=True) as admin:
        for name in sites:
            admin.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s", [name]
            )
            admin.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [name]
            )
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    _forget_topics(servers.kafka_bootstrap, sites)
    for url in servers.redis_urls.values():
        with Redis.from_url(url) as client:
            for name in sites:
                for key in client.scan_iter(match=f"{{{name}:*}}:*", count=1_000):
                    client.unlink(key)


def _forget_topics(bootstrap: str, names: Iterable[str]) -> None:
    admin = KafkaAdminClient(
        bootstrap_servers=bootstrap, bootstrap_timeout_ms=KAFKA_LIMIT_MS, request_timeout_ms=KAFKA_LIMIT_MS
    )
    try:
        prefixes = tuple(f"{name}." for name in names)
        topics = [topic for topic in admin.list_topics() if topic.startswith(prefixes)]
        if topics:
            admin.delete_topics(topics)
    finally:
        admin.close()
