"""Views: which cached objects exist, what their keys look like, and which tables' changes reach them. Pure.

    version: 1
    views:
      contact:
        key: "contact:{id}"
        mode: invalidate              # or refresh
        layout: guarded               # or plain: the key is the application's own, and so is the value
        ttl_seconds: 86400            # optional
        load: SELECT id, to_jsonb(c) AS value FROM contacts AS c   # optional; every object, for replay
        tables:
          public.contacts:
            columns: [email, status]  # optional; absent = all
          public.segment_members:
            parts: {id: contact_id}   # optional; key part -> column

The rule of keys: different key parts give different keys, within a view and across views, whatever the rows hold.
Parts are therefore percent-encoded into an alphabet that contains none of the characters that separate them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import combinations
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cdc.errors import BadRecord
from invalidator.document import Document, YamlPath, nearest, parse_document

VIEWS_VERSION = 1
KEY_ENCODING = 1
"""Part of every digest: another encoding means other keys, so entries under the old ones must be fenced."""

MAX_VIEWS = 1_000
MAX_TABLES = 100
MAX_PARTS = 8
MAX_TEMPLATE_LENGTH = 200
MAX_PART_LENGTH = 200
MAX_TTL_SECONDS = 10 * 365 * 86_400

SEPARATORS = ":/|#;,="
"""What an encoded part never contains. Two fields need at least one of these between them."""

_SAFE = re.compile(r"[A-Za-z0-9_.@+-]{0,200}")
_LITERAL = re.compile(r"[A-Za-z0-9_.@+:/|#;,=-]*")
_FIELD = re.compile(r"\{([^{}]*)\}")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_VIEW_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TABLE_NAME = re.compile(r'[^\s."{}]{1,63}\.[^\s."{}]{1,63}')
_PART = "([A-Za-z0-9_.@+%~-]{0,200})"
_SELECT = re.compile(r"(?i)(SELECT|WITH|TABLE|VALUES)\b")
_HASHED = re.compile(r"~[0-9a-f]{64}")
_SEGMENT = re.compile(f"([{re.escape(SEPARATORS)}])")

_Choice = TypeVar("_Choice", bound=StrEnum)


class Mode(StrEnum):
    """What a change does to an entry: remove it, or write the new row in its place."""

    INVALIDATE = "invalidate"
    REFRESH = "refresh"


class ValueLayout(StrEnum):
    """How a view's values lie in Redis.

    GUARDED: as entries, under keys of ours. PLAIN: as whatever the application stores, under exactly the view's key,
    for existing keys and readers in any language. Its promises are weaker: docs/plain.md.
    """

    GUARDED = "guarded"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class KeyTemplate:
    """`contact:{id}` in pieces: `literals` surround `fields`, so there is one literal more than fields."""

    text: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]

    def render(self, values: Sequence[object]) -> str:
        """The key of these parts, in the order of `fields`. Raises BadRecord for a part that cannot be in a key."""
        if len(values) == 1 == len(self.fields):
            (value,) = values
            # One integer is the commonest key by far: 0.4 µs here, 1 µs in the loop below.
            if type(value) is int and -1_000_000_000_000_000_000 < value < 1_000_000_000_000_000_000:
                return f"{self.literals[0]}{value}{self.literals[1]}"
        if len(values) != len(self.fields):
            raise BadRecord(
                f"key {self.text} has {len(self.fields)} parts, {len(values)} given: pass one value for each"
            )
        key = self.literals[0]
        for value, literal in zip(values, self.literals[1:], strict=True):
            key += encode_part(value) + literal
        return key


def can_render(template: KeyTemplate, key: str) -> bool:
    """Whether some parts render exactly `key`. A hash is taken as it is: of which text it is cannot be told."""
    return key_parts(template, key) is not None


def key_parts(template: KeyTemplate, key: str) -> tuple[str | None, ...] | None:
    """The parts, as text, that render exactly `key`; None when there are none. A part that was hashed is None.

    Between two separators stands at most one field, so there is only one way to cut a key into parts.
    """
    found = _pattern(template).fullmatch(key)
    try:
        return None if found is None else tuple(map(_decoded, found.groups()))
    except ValueError:
        return None


def _decoded(part: str) -> str | None:
    """The text behind an encoded part, None for a hash. Raises ValueError for what nothing is encoded to."""
    if _HASHED.fullmatch(part):
        return None
    text = part if _SAFE.fullmatch(part) else unquote_to_bytes(part).decode("utf-8", "surrogatepass")
    if encode_part(text) != part:
        raise ValueError("not an encoded part")
    return text


@cache
def _pattern(template: KeyTemplate) -> re.Pattern[str]:
    """What every key of the template looks like, a group for each part."""
    return re.compile(
        re.escape(template.literals[0]) + "".join(_PART + re.escape(literal) for literal in template.literals[1:])
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """How a change of `table` reaches a view: `parts` are the columns behind the template's fields, in their order.

    `columns` are those that matter; None means all. The columns in `parts` always matter.
    """

    table: str
    parts: tuple[str, ...]
    columns: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class View:
    """One kind of cached object. `digest` names what decides its keys and when they change: not `ttl_ms`, not `load`.

    `load`: a SELECT of every object: a column for each part of the key, and `value`, its JSON as the application caches
    it. None where replay has nothing to go by, and in refreshed views, whose values are rows.
    """

    name: str
    key: KeyTemplate
    mode: Mode
    ttl_ms: int | None
    rules: tuple[Rule, ...]
    digest: str
    load: str | None = None
    layout: ValueLayout = ValueLayout.GUARDED

    @property
    def is_plain(self) -> bool:
        """Whether the application alone writes and reads its values."""
        return self.layout is ValueLayout.PLAIN


@dataclass(frozen=True, slots=True)
class Views:
    """All views, and for each table the rules that a change of it meets, in the order of the file.

    `plain`: names of those with the plain layout.
    """

    views: Mapping[str, View]
    by_table: Mapping[str, tuple[tuple[View, Rule], ...]]
    digest: str
    plain: frozenset[str] = frozenset()


def load_views(text: str, *, place: str) -> Views:
    """The views that a YAML text describes; `place` names it in messages. Raises ConfigError with line and remedy."""
    document = parse_document(text, place=place)
    top = _mapping(document, (), document.data, known=("version", "views"), required=("version", "views"))
    _check_version(document, top["version"])
    named = top["views"]
    if not isinstance(named, dict) or not named:
        raise document.error(("views",), "should map view names to views: describe at least one")
    if len(named) > MAX_VIEWS:
        raise document.error(("views",), f"describes {len(named)} views, more than {MAX_VIEWS}: use fewer")
    views = {name: _view(document, name, raw) for name, raw in named.items()}
    _refuse_shared_keys(document, views.values())
    return index_views(views.values())


def index_views(views: Iterable[View]) -> Views:
    """Views by name and by table, with their common digest."""
    by_name = {view.name: view for view in views}
    by_table: dict[str, list[tuple[View, Rule]]] = {}
    for view in by_name.values():
        for rule in view.rules:
            by_table.setdefault(rule.table, []).append((view, rule))
    return Views(
        views=MappingProxyType(by_name),
        by_table=MappingProxyType({table: tuple(rules) for table, rules in by_table.items()}),
        digest=_digest(sorted((view.name, view.digest) for view in by_name.values())),
        plain=frozenset(view.name for view in by_name.values() if view.is_plain),
    )


def parse_template(text: str) -> KeyTemplate:
    """The template behind `contact:{id}`. Raises ValueError with the complaint and its remedy."""
    if not text or len(text) > MAX_TEMPLATE_LENGTH:
        raise ValueError(f"has {len(text)} characters: use 1 to {MAX_TEMPLATE_LENGTH}")
    pieces = _FIELD.split(text)
    literals, fields = tuple(pieces[::2]), tuple(pieces[1::2])
    _check_literals(literals)
    _check_fields(fields)
    for left, right, between in zip(fields, fields[1:], literals[1:-1], strict=False):
        if not any(character in SEPARATORS for character in between):
            raise ValueError(
                f"{{{left}}} and {{{right}}} would run together: put a separator between them, such as ':'"
            )
    return KeyTemplate(text, literals, fields)


def encode_part(value: object) -> str:
    """One key part as text of A-Z a-z 0-9 _ . @ + - % (and ~ before a hash), at most 200 characters.

    Different texts give different parts. Integer 42 and text "42" give the same part, as do True and "true": a column
    has one type, so they never mean two rows. Raises BadRecord for what has no single text form: None, floats,
    lists, objects.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, int):
        text = _decimal(value)
    else:
        raise BadRecord(
            f"a key part of type {type(value).__name__} has no single text form: "
            "build keys from integers, texts and booleans"
        )
    if _SAFE.fullmatch(text):
        return text
    raw = text.encode("utf-8", "surrogatepass")
    # Quoting at most triples: a text longer than the limit is hashed without building its quoted form first.
    if len(raw) <= MAX_PART_LENGTH:
        encoded = quote_from_bytes(raw, safe="@+").replace("~", "%7E")
        if len(encoded) <= MAX_PART_LENGTH:
            return encoded
    return "~" + hashlib.sha256(raw).hexdigest()


def _decimal(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # more than 4,300 digits: Python refuses, and so would every database
        raise BadRecord("a key part is an integer of thousands of digits: no column holds it") from None


def _check_version(document: Document, version: object) -> None:
    if version != VIEWS_VERSION or isinstance(version, bool):
        complaint = f"should be {VIEWS_VERSION}, the only version that this release reads: set it or upgrade staleproof"
        raise document.error(("version",), complaint)


def _view(document: Document, name: str, raw: object) -> View:
    path: YamlPath = ("views", name)
    if not _VIEW_NAME.fullmatch(name):
        raise document.error(path, "is not a view name: use 1 to 32 of a-z, 0-9 and _, beginning with a letter")
    known = ("key", "mode", "layout", "ttl_seconds", "load", "tables")
    fields = _mapping(document, path, raw, known=known, required=("key", "tables"))
    template = _template(document, (*path, "key"), fields["key"])
    mode = _choice(document, (*path, "mode"), fields.get("mode", Mode.INVALIDATE.value), Mode)
    ttl_ms = _ttl_ms(document, (*path, "ttl_seconds"), fields["ttl_seconds"]) if "ttl_seconds" in fields else None
    rules = _rules(document, (*path, "tables"), fields["tables"], template)
    if mode is Mode.REFRESH:
        _check_refresh(document, path, template, rules)
    load = _load(document, (*path, "load"), fields["load"], mode) if "load" in fields else None
    layout = _choice(document, (*path, "layout"), fields.get("layout", ValueLayout.GUARDED.value), ValueLayout)
    if layout is ValueLayout.PLAIN:
        _check_plain(document, path, fields, template, mode)
    digest = _view_digest(name, template, mode, rules, layout)
    return View(name, template, mode, ttl_ms, rules, digest, load, layout)


def _template(document: Document, path: YamlPath, raw: object) -> KeyTemplate:
    if not isinstance(raw, str):
        raise document.error(path, 'should be text in quotes, such as "contact:{id}"')
    try:
        return parse_template(raw)
    except ValueError as error:
        raise document.error(path, str(error)) from None


def _check_literals(literals: tuple[str, ...]) -> None:
    for literal in literals:
        allowed = _LITERAL.match(literal)
        bad = literal[allowed.end() if allowed else 0 :][:1]
        if bad:
            remedy = (
                "write a field as {name}"
                if bad in "{}"
                else f"use letters, digits and _ . @ + - {' '.join(SEPARATORS)}"
            )
            raise ValueError(f"holds {bad!a} outside of a field: {remedy}")


def _check_fields(fields: tuple[str, ...]) -> None:
    if len(fields) > MAX_PARTS:
        raise ValueError(f"has {len(fields)} fields, more than {MAX_PARTS}: use fewer")
    for name in fields:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(
                f"{{{name}}} is not a field: use letters, digits and _; `parts` maps it to a column of any name"
            )
        if fields.count(name) > 1:
            raise ValueError(f"{{{name}}} stands twice: once is enough to tell keys apart")


def _choice(document: Document, path: YamlPath, raw: object, kind: type[_Choice]) -> _Choice:
    values = [choice.value for choice in kind]
    if isinstance(raw, str) and raw in values:
        return kind(raw)
    remedy = nearest(raw, values) if isinstance(raw, str) else f"use {' or '.join(values)}"
    raise document.error(path, f"unknown {path[-1]} {_shown(raw)}; {remedy}")


def _ttl_ms(document: Document, path: YamlPath, raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= MAX_TTL_SECONDS:
        complaint = (
            f"should be a whole number from 1 to {MAX_TTL_SECONDS}, not {_shown(raw)}; leave it out for no expiry"
        )
        raise document.error(path, complaint)
    return raw * 1_000


def _load(document: Document, path: YamlPath, raw: object, mode: Mode) -> str:
    if mode is Mode.REFRESH:
        raise document.error(path, "has no use with mode: refresh, whose values are the table's rows: leave it out")
    text = raw.strip().rstrip(";") if isinstance(raw, str) else ""
    if not _SELECT.match(text):
        complaint = "should be a SELECT with a column for each part of the key and `value`, the object as JSON"
        raise document.error(path, complaint)
    return text


def _rules(document: Document, path: YamlPath, raw: object, template: KeyTemplate) -> tuple[Rule, ...]:
    if not isinstance(raw, dict) or not 1 <= len(raw) <= MAX_TABLES:
        raise document.error(
            path, f"should map 1 to {MAX_TABLES} source tables to rules, such as `public.contacts: {{}}`"
        )
    return tuple(_rule(document, (*path, table), table, fields, template) for table, fields in raw.items())


def _rule(document: Document, path: YamlPath, table: str, raw: object, template: KeyTemplate) -> Rule:
    if not _TABLE_NAME.fullmatch(table):
        raise document.error(
            path, f"is not a table name: write schema.table, such as public.{table.rpartition('.')[2] or 'contacts'}"
        )
    fields = {} if raw is None else _mapping(document, path, raw, known=("columns", "parts"))
    columns = _columns(document, (*path, "columns"), fields["columns"]) if "columns" in fields else None
    parts = _parts(document, (*path, "parts"), fields["parts"], template) if "parts" in fields else {}
    return Rule(table, tuple(parts.get(name, name) for name in template.fields), columns)


def _columns(document: Document, path: YamlPath, raw: object) -> frozenset[str]:
    if not isinstance(raw, list) or not all(isinstance(column, str) and column for column in raw):
        raise document.error(
            path, "should be a list of column names, such as [email, status]; leave it out to mean all"
        )
    for i, column in enumerate(raw):
        if column in raw[:i]:
            raise document.error((*path, i), f'names "{column}" twice: keep one of them')
    return frozenset(raw)


def _parts(document: Document, path: YamlPath, raw: object, template: KeyTemplate) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(column, str) and column for column in raw.values()):
        raise document.error(path, "should map key parts to column names, such as {id: contact_id}")
    for name in raw:
        if name not in template.fields:
            complaint = f"the key {template.text} has no such part; {nearest(name, template.fields)}"
            raise document.error((*path, name), complaint)
    return raw


def _check_refresh(document: Document, path: YamlPath, template: KeyTemplate, rules: tuple[Rule, ...]) -> None:
    remedy = "use mode: invalidate"
    if len(rules) != 1:
        raise document.error((*path, "mode"), f"refresh writes one table's row, and {len(rules)} are named: {remedy}")
    rule = rules[0]
    if not template.fields:
        raise document.error((*path, "mode"), f"refresh needs a key with a field, one entry per row: {remedy}")
    if rule.parts != template.fields:
        complaint = (
            f"refresh needs a key named after its own columns: write them in the key instead of `parts`, or {remedy}"
        )
        raise document.error((*path, "tables", rule.table, "parts"), complaint)
    if rule.columns is not None and not rule.columns:
        complaint = f"refresh stores these columns, and none is named: name some, leave it out to mean all, or {remedy}"
        raise document.error((*path, "tables", rule.table, "columns"), complaint)


def _check_plain(
    document: Document, path: YamlPath, fields: Mapping[str, object], template: KeyTemplate, mode: Mode
) -> None:
    """The application stores these values: we only remove them, and must find them all by their template."""
    if mode is not Mode.INVALIDATE:
        raise document.error((*path, "mode"), "a plain view is the application's to fill: use mode: invalidate")
    for field, remedy in (
        ("ttl_seconds", "leave it out, and store the values with an expiry (SET … EX)"),
        ("load", "leave it out: nothing of ours fills a plain view"),
    ):
        if field in fields:
            raise document.error((*path, field), f"has no use with layout: plain: {remedy}")
    if not template.literals[0]:
        complaint = f"{template.text} begins with a field, so that any other application's key may look like it"
        raise document.error((*path, "key"), f'{complaint}: begin a plain key with a word of its own, "contact:{{id}}"')


def _refuse_shared_keys(document: Document, views: Iterable[View]) -> None:
    for first, second in combinations(views, 2):
        if can_share_a_key(first.key, second.key):
            complaint = (
                f"{second.key.text} can give the same key as {first.key.text} of view {first.name}: "
                f'begin it with a word of its own, such as "{second.name}:"'
            )
            raise document.error(("views", second.name, "key"), complaint)


def can_share_a_key(first: KeyTemplate, second: KeyTemplate) -> bool:
    """Whether some parts of one template and some of the other render the same key.

    Encoded parts contain no separator, so equal keys have the same separators, and between two of them each template
    has one stretch: a word, or one field with a word before and after it. All stretches must be able to agree.
    """
    ours, theirs = _stretches(first), _stretches(second)
    return len(ours) == len(theirs) and all(map(_agree, ours, theirs))


def _stretches(template: KeyTemplate) -> list[str]:
    """The template cut at its separators (kept), each field written as a NUL, which no literal holds."""
    return _SEGMENT.split("\0".join(template.literals))


def _agree(first: str, second: str) -> bool:
    if "\0" not in first and "\0" not in second:
        return first == second
    if "\0" not in first:
        first, second = second, first
    before, _, after = first.partition("\0")
    if "\0" not in second:
        return len(second) >= len(before) + len(after) and second.startswith(before) and second.endswith(after)
    other_before, _, other_after = second.partition("\0")
    starts = before.startswith(other_before) or other_before.startswith(before)
    return starts and (after.endswith(other_after) or other_after.endswith(after))


def _mapping(
    document: Document, path: YamlPath, raw: object, *, known: Sequence[str], required: Sequence[str] = ()
) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise document.error(path, f"should be a mapping of {', '.join(known)}")
    for name in raw:
        if name not in known:
            raise document.error((*path, name), f"unknown field; {nearest(name, known)}")
    for name in required:
        if name not in raw:
            raise document.error(path, f'"{name}" is missing: add it')
    return raw


def _view_digest(name: str, template: KeyTemplate, mode: Mode, rules: tuple[Rule, ...], layout: ValueLayout) -> str:
    tables = [(rule.table, rule.parts, None if rule.columns is None else sorted(rule.columns)) for rule in rules]
    what: list[object] = [KEY_ENCODING, name, template.text, mode.value, sorted(tables, key=lambda table: table[0])]
    return _digest(what if layout is ValueLayout.GUARDED else [*what, layout.value])


def _digest(canonical: object) -> str:
    text = json.dumps(canonical, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _shown(raw: object) -> str:
    return repr(raw)[:60] if isinstance(raw, (str, int, float, bool)) or raw is None else f"a {type(raw).__name__}"
