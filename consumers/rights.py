"""What Redis's users must be able to do, and must not: tried with ACL DRYRUN by `check`, judged here. Pure.

The commands are those of `redis_users.py` with arguments, and what nobody who reads should send. Nothing of it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from consumers.findings import Finding, Level
from consumers.redis_users import Role, name_of
from consumers.settings import RegionSettings
from invalidator.layout import FORMAT, Layout
from invalidator.reader_commands import FILL, LEASE, READ
from invalidator.redis_facts import Command, RedisFacts, Rights
from invalidator.redis_url import DEFAULT_USER, Topology, database, user

KEY = "staleproof-check"
"""Of an entry and a lease that are spoken of and never written."""

SHOWN_MAX = 6


def trials(region: RegionSettings, plain: Sequence[str] = ()) -> dict[str, tuple[Command, ...]]:
    """User to the commands that are tried as it: our own, and the readers' where the settings name one.

    `plain`: patterns of the keys of plain views.
    """
    tried = {login_of(region): (*worker_needs(region, plain), *operator_needs(region))}
    if region.reader_username is not None:
        more = (*reader_needs(region), *forbidden_to_readers(region))
        tried[region.reader_username] = (*tried.get(region.reader_username, ()), *more)
    return tried


def login_of(region: RegionSettings) -> str:
    """Who we are to Redis."""
    return region.username or user(region.url.get_secret_value()) or DEFAULT_USER


def judge_rights(
    region: str, servers: Sequence[RedisFacts], settings: RegionSettings, plain: Sequence[str] = ()
) -> Iterator[Finding]:
    """Whether our own user can work, and whether the readers' can read and fill and do nothing else."""
    for redis in servers:
        subject = f"region {region}" + (f", {redis.server}" if redis.server else "")
        if redis.rights is None:
            if settings.reader_username is not None:
                text = "ACL DRYRUN is denied to our user, or not known here: what the readers' user may do is not known"
                yield Finding(level=Level.WARN, subject=subject, text=text, fix="ACL SETUSER <user> +acl|dryrun")
            continue
        yield from _judge_own(subject, region, redis.rights[login_of(settings)], settings, plain)
        if settings.reader_username is not None:
            yield from _judge_reader(subject, region, redis.rights[settings.reader_username], settings)
            if redis.is_open:
                text = "who gives no login may do everything: the user `default` is on and has no password"
                fix = "ACL SETUSER default off  # once workers and tools log in as users of their own"
                yield Finding(level=Level.WARN, subject=subject, text=text, fix=fix)


def _judge_own(
    subject: str, region: str, rights: Rights, settings: RegionSettings, plain: Sequence[str]
) -> Iterator[Finding]:
    """An operator's user may do none of what only workers do, and is no fault."""
    if rights.allowed.isdisjoint(_written_by_workers(settings)):
        return
    missing = _not_in(rights.allowed, worker_needs(settings, plain))
    if missing:
        text = f"our user {rights.user} cannot do all that a worker does: denied are {missing}"
        yield Finding(level=Level.FAIL, subject=subject, text=text, fix=_remedy(region, Role.WORKER, settings))


def _judge_reader(subject: str, region: str, rights: Rights, settings: RegionSettings) -> Iterator[Finding]:
    fix = _remedy(region, Role.READER, settings)
    if not rights.exists:
        text = f"there is no user {rights.user}, which reader_username names"
        yield Finding(level=Level.FAIL, subject=subject, text=text, fix=fix)
        return
    missing = _not_in(rights.allowed, reader_needs(settings))
    if missing:
        text = f"the readers' user {rights.user} cannot read and fill: denied are {missing}"
        yield Finding(level=Level.FAIL, subject=subject, text=text, fix=fix)
    excess = _shown(command for command in forbidden_to_readers(settings) if command in rights.allowed)
    if excess:
        text = f"the readers' user {rights.user} may do more than read and fill: {excess}"
        yield Finding(level=Level.FAIL, subject=subject, text=text, fix=fix)
    if not missing and not excess:
        text = f"the readers' user {rights.user} may read and fill, and nothing else that was tried"
        yield Finding(level=Level.OK, subject=subject, text=text)


def reader_needs(region: RegionSettings) -> tuple[Command, ...]:
    """What readers send, and what their functions do, in the first and the last shard."""
    found: list[Command] = [("TIME",), *_connection(region)]
    for header, fences, leases, entry in _keys_of_shards(region):
        found += [
            ("FCALL_RO", READ, "2", header, entry, FORMAT, "view", "digest"),
            ("FCALL", FILL, "4", header, fences, leases, entry, FORMAT),
            ("FCALL", LEASE, "1", leases, FORMAT),
            ("HGET", header, "v"),
            ("HMGET", header, "v"),
            ("HMGET", fences, "*"),
            ("GET", entry),
            ("GETRANGE", entry, "0", "0"),
            ("SET", entry, "value", "PX", "1"),
            ("HGET", leases, KEY),
            ("HLEN", leases),
            ("HGETALL", leases),
            ("HSET", leases, KEY, "lease"),
            ("HDEL", leases, KEY),
        ]
    return tuple(found)


def forbidden_to_readers(region: RegionSettings) -> tuple[Command, ...]:
    """What would break the guard, other readers, or the server."""
    found: list[Command] = [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("SWAPDB", "0", "1"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FUNCTION", "LOAD", "REPLACE", "code"),
        ("FUNCTION", "DELETE", "staleproof1"),
        ("FUNCTION", "FLUSH"),
        ("FUNCTION", "RESTORE", "dump"),
        ("EVAL", "return 1", "0"),
        ("SCRIPT", "FLUSH"),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "maxmemory", "0"),
        ("ACL", "SETUSER", "x"),
        ("ACL", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "PAUSE", "0"),
        ("MONITOR",),
        ("SHUTDOWN",),
        ("REPLICAOF", "NO", "ONE"),
        ("MODULE", "LIST"),
        ("GET", "another-application"),
        ("SET", "another-application", "value"),
    ]
    for header, fences, leases, entry in _keys_of_shards(region):
        guard = (header, fences)
        found += [("FCALL", function, "2", *guard, FORMAT) for function in _WORKERS_FUNCTIONS]
        for key in guard:
            found += [
                ("HSET", key, "field", "value"),
                ("HDEL", key, "field"),
                ("DEL", key),
                ("UNLINK", key),
                ("SET", key, "value"),
                ("EXPIRE", key, "1"),
                ("RENAME", key, entry),
                ("RESTORE", key, "0", "dump"),
            ]
        found += [("HSET", entry, "field", "value"), ("SET", leases, "value"), ("EXPIRE", entry, "1")]
    return tuple(found)


def worker_needs(region: RegionSettings, plain: Sequence[str] = ()) -> tuple[Command, ...]:
    """What `invalidate` and `replay` send, and what their functions do."""
    found: list[Command] = [
        ("FUNCTION", "LOAD", "REPLACE", "code"),
        ("FUNCTION", "LIST"),
        ("INFO", "memory"),
        ("SCAN", "0"),
        *_connection(region),
        *_written_by_workers(region),
        *(("UNLINK", keys.replace("*", KEY)) for keys in plain),
    ]
    for header, fences, _, entry in _keys_of_shards(region):
        found += [
            ("FCALL_RO", READ, "2", header, entry, FORMAT, "view", "digest"),
            ("HGETALL", header),
            ("HLEN", fences),
            ("HGET", header, "v"),
            ("HMGET", fences, "*"),
            ("GET", entry),
            ("GETRANGE", entry, "0", "0"),
            ("SET", entry, "value"),
            ("EXISTS", header),
        ]
    return tuple(found)


def operator_needs(region: RegionSettings) -> tuple[Command, ...]:
    """What `check` and `selfcheck` send."""
    found: list[Command] = [("INFO", "memory"), ("FUNCTION", "LIST"), *_connection(region)]
    for header, fences, _, _ in _keys_of_shards(region):
        found += [("HGETALL", header), ("HLEN", fences)]
    return tuple(found)


_WORKERS_FUNCTIONS = ("sp1_apply", "sp1_hear", "sp1_pass", "sp1_close", "sp1_cold", "sp1_owe", "sp1_pay")


def _written_by_workers(region: RegionSettings) -> Iterator[Command]:
    for header, fences, _, entry in _keys_of_shards(region):
        yield from (("FCALL", function, "3", header, fences, entry, FORMAT) for function in _WORKERS_FUNCTIONS)
        yield from (("HSET", key, "field", "value") for key in (header, fences))
        yield from (("HDEL", header, "field"), ("UNLINK", fences), ("UNLINK", entry))


def _connection(region: RegionSettings) -> Iterator[Command]:
    if region.topology is Topology.CLUSTER:
        yield from (("CLUSTER", "SLOTS"), ("ASKING",))
    if number := database(region.url.get_secret_value()):
        yield ("SELECT", str(number))


def _keys_of_shards(region: RegionSettings) -> Iterator[tuple[str, str, str, str]]:
    """Header, fences, leases and an entry, of the first shard and the last."""
    layout = Layout(prefix=region.prefix, shards=region.shards)
    for shard in sorted({0, region.shards - 1}):
        names = layout.header_key(shard), layout.fences_key(shard), layout.leases_key(shard)
        yield (*names, layout.entry_key(shard, KEY))


def _not_in(allowed: frozenset[Command], needed: Iterable[Command]) -> str:
    return _shown(command for command in needed if command not in allowed)


def _shown(commands: Iterable[Command]) -> str:
    """The first words of the first few."""
    names = list(dict.fromkeys(" ".join(command[:2]) for command in commands))
    more = f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else ""
    return ", ".join(names[:SHOWN_MAX]) + more


def _remedy(region: str, role: Role, settings: RegionSettings) -> str:
    return f"staleproof acl --region {region} --role {role}  # prints user {name_of(settings, role)}: load it"
