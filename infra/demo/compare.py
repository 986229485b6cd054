"""The comparison: every entry of every region against the database, by code that shares nothing with what it judges.

    python -m infra.demo.compare baseline --file objects.json
    python -m infra.demo.compare entries  --file objects.json --regions eu us ap [--naive]
                                                 # environment: DEMO_DSN, DEMO_REDIS_EU, ...

Neither invalidator nor consumers nor cdc is imported, and no loader: bytes are cut by the layout that
docs/protocol.md describes, and the expected objects are asked for by SQL of this file's own, in one snapshot.
`baseline` notes what the objects were before the load, so that `entries` can tell which of them have changed since.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

ENTRIES_PER_REGION_MIN = 1_000
CHANGED_SHARE_MIN = 0.30
FAULTS_SHOWN = 10
FETCH_KEYS = 500

ZERO_STATS = {"opens": 0, "clicks": 0}

OBJECTS_SQL = {
    "contact": """
        SELECT id, json_build_object('id', id, 'email', email, 'first_name', first_name, 'last_name', last_name,
            'city', city, 'language', language, 'status', status, 'attributes', attributes) FROM contacts""",
    "template": "SELECT t.id, row_to_json(t) FROM templates AS t",
    "campaign": """
        SELECT id, json_build_object('id', id, 'name', name, 'template_id', template_id, 'segment_id', segment_id,
            'status', status, 'scheduled', extract(epoch FROM scheduled_at)::bigint) FROM campaigns""",
    "segment": """
        SELECT s.id, json_build_object('id', s.id, 'name', s.name, 'rule', s.rule, 'count', count(m.contact_id),
            'members', coalesce(json_agg(m.contact_id ORDER BY m.contact_id) FILTER (WHERE m.contact_id IS NOT NULL),
                                '[]'))
        FROM segments AS s LEFT JOIN segment_members AS m ON m.segment_id = s.id GROUP BY s.id""",
    "contact_stats": """
        SELECT contact_id, json_build_object('opens', sum((kind = 'open')::int), 'clicks', sum((kind = 'click')::int))
        FROM tracking_events GROUP BY contact_id""",
}
"""Every object of every view that the database has, by its number."""


class Unreadable(Exception):
    """Bytes that are not what they should be: the comparison itself has failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What a region holds for one object. `value` None: it says that the database has none."""

    view: str
    number: int
    named: str
    value: Any
    readable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of the comparison."""

    regions: Mapping[str, int] = field(default_factory=dict)
    checked: int = 0
    changed: int = 0
    absent: int = 0
    unreadable: int = 0
    stale: int = 0
    faults: tuple[str, ...] = ()


class Database:
    """The objects as the database has them."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self.objects = objects

    def expected(self, view: str, number: int) -> Any:
        """The object, or None where there is none. Everybody has statistics."""
        found = self.objects.get(f"{view}:{number}")
        return ZERO_STATS if found is None and view == "contact_stats" else found


def read_database(connection: psycopg.Connection[Any]) -> Database:
    """Every object, in one snapshot."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return Database(
            {
                f"{view}:{number}": value
                for view, query in OBJECTS_SQL.items()
                for number, value in connection.execute(query).fetchall()
            }
        )


def digest(value: Any) -> str:
    """A short name for a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# --- bytes ------------------------------------------------------------------------------------------------------------


def parse_entry(name: str, raw: bytes, header: Mapping[str, str]) -> Stored:
    """An entry of format 1; `name` is its Redis key, `header` its shard's hash.

    | characters | |
    |---|---|
    | 4 | version, kind (f, e), content (v, a), encoding (j) |
    | 32 + 32 | generations of the region and of the view |
    | 12 + 12 | as of, expires |
    | 4 + 4 + 4 | lengths of proof, view and key, which follow; then the payload |
    """
    try:
        version, kind, content, encoding = (raw[at : at + 1].decode("ascii") for at in range(4))
        lengths = [int(raw[at : at + 4], 16) for at in (92, 96, 100)]
        view_at = 104 + lengths[0]
        key_at = view_at + lengths[1]
        end = key_at + lengths[2]
        view, key, payload = raw[view_at:key_at].decode(), raw[key_at:end].decode(), raw[end:]
        if version != "1" or kind not in ("f", "e") or content not in ("v", "a") or encoding != "j" or end > len(raw):
            raise ValueError("unknown form")
        value = json.loads(payload) if content == "v" else None
        if content == "a" and payload:
            raise ValueError("an absent entry with a payload")
        generations = raw[4:36].decode("ascii"), raw[36:68].decode("ascii")
    except ValueError as error:
        raise Unreadable(f"{name}: {error}") from error
    current = _generation(header, "s:"), _generation(header, f"s:{view}")
    place = _object(name.partition("}:e:")[2], name)
    return Stored(view=place[0], number=place[1], named=f"{view}|{key}", value=value, readable=generations == current)


def _generation(header: Mapping[str, str], scope: str) -> str | None:
    """The generation of an open scope: the 32 characters after its `o`."""
    text = header.get(scope, "")
    return text[1:33] if text.startswith("o") else None


def parse_naive(name: str, raw: bytes) -> Stored:
    """An entry of the plain cache: JSON, and nothing else."""
    view, number = _object(name, name)
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise Unreadable(f"{name}: {error}") from error
    return Stored(view=view, number=number, named=f"{view}|{view}:{number}", value=value, readable=True)


def _object(key: str, name: str) -> tuple[str, int]:
    view, _, number = key.partition(":")
    if view not in OBJECTS_SQL or not number.isdecimal():
        raise Unreadable(f"{name}: no object has this key")
    return view, int(number)


def read_region(client: redis.Redis, *, naive: bool) -> Iterator[tuple[str, Stored]]:
    """Every entry of one region. Keys that are neither entry nor the guard's own are Unreadable."""
    names = sorted({name.decode() for name in client.scan_iter(count=1_000)})
    headers = {} if naive else {name[:-2]: _hash(client, name) for name in names if name.endswith("}:h")}
    entries = names if naive else [name for name in names if not name.endswith(("}:h", "}:f", "}:l", "}:o"))]
    for start in range(0, len(entries), FETCH_KEYS):
        some = entries[start : start + FETCH_KEYS]
        for name, raw in zip(some, client.mget(some), strict=True):
            if not isinstance(raw, bytes):
                raise Unreadable(f"{name}: went away during the comparison; nothing should write any more")
            yield name, parse_naive(name, raw) if naive else parse_entry(name, raw, _header(name, headers))


def _header(name: str, headers: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """The header of the shard that an entry's key names."""
    shard, found, _ = name.partition("}:e:")
    if not found or f"{shard}}}" not in headers:
        raise Unreadable(f"{name}: neither an entry nor anything else that belongs here")
    return headers[f"{shard}}}"]


def _hash(client: redis.Redis, name: str) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in client.hgetall(name).items()}  # type: ignore[union-attr]


# --- judgement --------------------------------------------------------------------------------------------------------


def fault_of(stored: Stored, database: Database) -> str | None:
    """Why an entry is wrong; None when it is right. Never says a value."""
    if stored.named != f"{stored.view}|{stored.view}:{stored.number}":
        return "names another object"
    expected = database.expected(stored.view, stored.number)
    if stored.value == expected:
        return None
    if expected is None:
        return "holds an object that the database has not"
    if stored.value is None:
        return "says absent, and the database has it"
    if not isinstance(stored.value, dict):
        return "is not an object"
    names = sorted(name for name in {*expected, *stored.value} if expected.get(name) != stored.value.get(name))
    return f"differs in {', '.join(names)}"


def judge(
    regions: Mapping[str, Sequence[tuple[str, Stored]]], database: Database, baseline: Mapping[str, str]
) -> Verdict:
    """Compare every readable entry with the database."""
    checked = changed = absent = unreadable = 0
    faults: list[str] = []
    for region, entries in regions.items():
        for name, stored in entries:
            if not stored.readable:
                unreadable += 1
                continue
            checked += 1
            absent += stored.value is None
            changed += has_changed(stored, database, baseline)
            fault = fault_of(stored, database)
            if fault is not None:
                faults.append(f"{region} {name} {fault}")
    return Verdict(
        regions={region: len(entries) for region, entries in regions.items()},
        checked=checked,
        changed=changed,
        absent=absent,
        unreadable=unreadable,
        stale=len(faults),
        faults=tuple(faults[:FAULTS_SHOWN]),
    )


def has_changed(stored: Stored, database: Database, baseline: Mapping[str, str]) -> bool:
    """Whether the database has another object under this key than before the load."""
    key = f"{stored.view}:{stored.number}"
    now = database.expected(stored.view, stored.number)
    before = baseline.get(key, digest(ZERO_STATS if stored.view == "contact_stats" else None))
    return digest(now) != before


def complaints(verdict: Verdict, changed_share_min: float = CHANGED_SHARE_MIN) -> list[str]:
    """Why a comparison proves nothing; stale entries apart."""
    found = [
        f"region {region} holds {entries} entries, fewer than {ENTRIES_PER_REGION_MIN}"
        for region, entries in verdict.regions.items()
        if entries < ENTRIES_PER_REGION_MIN
    ]
    if verdict.changed < changed_share_min * verdict.checked:
        found.append(f"only {verdict.changed} of {verdict.checked} entries belong to rows that changed")
    if verdict.unreadable:
        found.append(f"{verdict.unreadable} entries could not be served, and were not compared")
    return found


# --- the command line -------------------------------------------------------------------------------------------------


def compare_entries(database: Database, baseline: Mapping[str, str], names: Sequence[str], *, naive: bool) -> Verdict:
    """Read the regions and judge them."""
    regions = {}
    for name in names:
        with redis.Redis.from_url(os.environ[f"DEMO_REDIS_{name.upper()}"], socket_timeout=10.0) as client:
            regions[name] = list(read_region(client, naive=naive))
    return judge(regions, database, baseline)


def main() -> int:
    """Print the verdict as JSON; the exit code is 0 when a comparison was made, whatever it found."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo.compare")
    parser.add_argument("what", choices=["baseline", "entries"])
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--regions", nargs="*", default=[])
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--changed-share", type=float, default=CHANGED_SHARE_MIN)
    options = parser.parse_args()
    with psycopg.connect(os.environ["DEMO_DSN"], autocommit=True) as connection:
        database = read_database(connection)
    if options.what == "baseline":
        digests = {key: digest(value) for key, value in database.objects.items()}
        options.file.write_text(json.dumps(digests), encoding="utf-8")
        return 0
    baseline = json.loads(options.file.read_text(encoding="utf-8"))
    try:
        verdict = compare_entries(database, baseline, options.regions, naive=options.naive)
    except Unreadable as error:
        print(f"the comparison failed: {error}", file=sys.stderr)
        return 1
    names = ("checked", "changed", "absent", "unreadable", "stale", "faults")
    answer = {
        **{name: getattr(verdict, name) for name in names},
        "complaints": complaints(verdict, options.changed_share),
    }
    print(json.dumps({**answer, "regions": dict(verdict.regions)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
