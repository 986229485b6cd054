"""A user of Redis per role, with the rights that the role needs and no more. Pure.

In flows a region's settings, out flow lines of an ACL file, or ACL SETUSER commands. The servers check every command of
a function against the rights of who called it: so a user needs the function, each of its commands, and for each of
these the keys. Selectors, the parts in parentheses, keep them apart: what may be written under one key may not be under
another. docs/security.md says what a reader could still do by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from consumers.settings import RegionSettings
from invalidator.plain import pattern
from invalidator.reader_commands import FILL, LEASE, READ
from invalidator.redis_url import DEFAULT_USER, Topology, database, user
from invalidator.views import Views


class Role(StrEnum):
    """Who logs in.

    READER: applications. WORKER: `invalidate` and `replay`, and `check`. OPERATOR: `check` and `selfcheck` only.
    """

    READER = "reader"
    WORKER = "worker"
    OPERATOR = "operator"


class Form(StrEnum):
    """FILE: lines of an ACL file. COMMAND: what redis-cli takes."""

    FILE = "file"
    COMMAND = "command"


WORKER_COMMANDS = (
    "get", "getrange", "set", "exists", "unlink", "hget", "hmget", "hgetall", "hlen", "hscan", "hset", "hdel",
)  # fmt: skip
"""Every command with a key of the function library, and of the worker beside it."""


def lines(
    region: RegionSettings,
    roles: Sequence[Role],
    passwords: Mapping[Role, str],
    *,
    plain: Sequence[str] = (),
    form: Form = Form.FILE,
) -> Iterator[str]:
    """One line per role. Without its password a line holds a placeholder, which every server refuses.

    `plain`: patterns of the keys of plain views.
    """
    start = "user" if form is Form.FILE else "ACL SETUSER"
    for role in roles:
        granted = " ".join(rules(region, role, plain))
        yield f"{start} {name_of(region, role)} reset on {_hash(role, passwords)} {granted}"


def plain_patterns(views: Views) -> tuple[str, ...]:
    """Patterns of the keys that lie outside of the region's prefix."""
    return tuple(sorted(pattern(view.key) for view in views.views.values() if view.is_plain))


def name_of(region: RegionSettings, role: Role) -> str:
    """The user's name: what the settings say, if they do."""
    named = {
        Role.READER: region.reader_username,
        Role.WORKER: region.username or user(region.url.get_secret_value()),
        Role.OPERATOR: None,
    }[role]
    return named if named and named != DEFAULT_USER else f"staleproof-{role}"


def rules(region: RegionSettings, role: Role, plain: Sequence[str] = ()) -> list[str]:
    """What the role may do: rules of Redis 7.0 and Valkey 7.2, for a user that was reset."""
    common = ["resetchannels", "-@all", "+ping", *_connection(region)]
    if role is Role.READER:
        return [*common, *_reader(region)]
    if role is Role.WORKER:
        return [*common, *_worker(region, plain)]
    return [*common, *_operator(region)]


def _reader(region: RegionSettings) -> Iterator[str]:
    header, fences, leases, entries = _keys(region.prefix, "h", "f", "l", "e:*")
    yield from (f"+fcall_ro|{READ}", f"+fcall|{FILL}", f"+fcall|{LEASE}", "+time")
    yield from (header, fences, leases, entries)
    yield f"(+hget +hmget %R{header} %R{fences})"
    yield f"(+get +getrange +set {entries})"
    yield f"(+hget +hlen +hgetall +hset +hdel {' '.join(_exact(region, 'l'))})"


def _worker(region: RegionSettings, plain: Sequence[str]) -> Iterator[str]:
    yield from ("+info", "+scan", "+time", "+acl|dryrun", "+function|list", "+function|load", "+fcall", "+fcall_ro")
    yield from (f"+{command}" for command in WORKER_COMMANDS)
    yield from _keys(region.prefix, "*")
    if plain:  # one selector: UNLINK names keys of several views
        yield f"(+unlink {' '.join(f'~{keys}' for keys in plain)})"


def _operator(region: RegionSettings) -> Iterator[str]:
    header, fences = _keys(region.prefix, "h", "f")
    yield from ("+info", "+acl|dryrun", "+function|list", f"(+hgetall %R{header})", f"(+hlen %R{fences})")


def _connection(region: RegionSettings) -> Iterator[str]:
    """What connections say before anything else."""
    if region.topology is Topology.CLUSTER:
        yield from ("+cluster|slots", "+asking")
    if number := database(region.url.get_secret_value()):
        yield f"+select|{number}"


def _keys(prefix: str, *ends: str) -> list[str]:
    """Keys of every shard. A prefix holds no character that a pattern gives a meaning to."""
    return [f"~{{{prefix}:*}}:{end}" for end in ends]


def _exact(region: RegionSettings, end: str) -> Iterator[str]:
    """The same, and nothing else: `*` would take in entries whose cache key ends like this."""
    for digits in range(1, len(str(region.shards - 1)) + 1):
        yield f"~{{{region.prefix}:{'[0-9]' * digits}}}:{end}"


def _hash(role: Role, passwords: Mapping[Role, str]) -> str:
    """As Redis keeps passwords."""
    if role not in passwords:
        return f"#SHA256-OF-THE-PASSWORD-OF-THE-{role.upper()}"
    return "#" + hashlib.sha256(passwords[role].encode()).hexdigest()
