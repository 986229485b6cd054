"""The objects of a view as the database has them: keys, and values as JSON. Door: psycopg queries.

In flow a view and which of its objects are wanted: a page after a key, or those of given keys. Out flow keys as the
planner renders them with values as readers store them: of a refreshed view its table's rows, rendered as the worker
does; of any other what its `load` selects. Runs inside whatever transaction the connection is in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NoReturn, TypeAlias

import msgspec
import psycopg
from psycopg import sql
from psycopg.types.string import TextLoader

from cdc.connectors.pg_values import converter, source_text
from cdc.errors import BadRecord, ConfigError, TransientError
from consumers.database import Database
from invalidator.views import Mode, View

SESSION = {
    "datestyle": "ISO",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "intervalstyle": "postgres",
}
"""How a session must render values; pg_values.py reads exactly these."""

VALUE_COLUMN = "value"

_JSON = (114, 3802)
"""Types whose text is JSON for certain."""

# A result names the type below a domain, the stream the domain; -1: without it `character` means one character.
_COLUMNS = """
SELECT format_type(t.oid, -1), a.atttypid, coalesce(a.attgenerated = '', true)
FROM unnest(%s::oid[], %s::oid[], %s::int[]) WITH ORDINALITY AS t(oid, relation, number, n)
LEFT JOIN pg_attribute AS a ON a.attrelid = t.relation AND a.attnum = t.number
ORDER BY n
"""

Parts: TypeAlias = tuple[str, ...]
"""PostgreSQL's texts of a key's parts, in the order of the template's fields."""


class Objects(msgspec.Struct, frozen=True):
    """Some objects: per cache key its JSON, or None for one that is null. `last`: the parts to go on after, if any.

    `last` has the leading parts only where the others are missing: of what follows in them nothing has a key.
    `keyless`: rows met without a key, for want of a part or because a part has no text form.
    """

    values: dict[str, bytes | None]
    last: Parts | None = None
    keyless: int = 0


class _Column(msgspec.Struct, frozen=True):
    """`oid`: of the type as the stream names it, which may be a domain; `base_oid` and `type`: what is below it.

    `streamed` False: generated, and so in no change.
    """

    name: str
    oid: int
    base_oid: int
    modifier: int
    type: str
    streamed: bool


class ViewRows:
    """Asks for objects of one view; `where` narrows them by SQL over the columns of `load`, or of the table.

    `published`: the columns of a refreshed view's table that are in the stream, where the database can tell.
    Raises ConfigError where `load`, the table or `where` do not fit the view.
    """

    def __init__(
        self, database: Database, view: View, where: str | None = None, published: frozenset[str] | None = None
    ) -> None:
        self.view = view
        self._place = f"view {view.name}: its table" if view.mode is Mode.REFRESH else f"view {view.name}: its load"
        self._where = where
        if view.mode is Mode.REFRESH:
            (rule,) = view.rules
            table = sql.Identifier(*rule.table.split(".", 1)).as_string()
            inner: sql.Composable = sql.SQL("SELECT * FROM " + _literal(table))  # noqa: S608 - quoted
            self._part_names: Sequence[str] = rule.parts
        elif view.load is not None:
            inner = sql.SQL(_literal(view.load) + "\n")  # it may end with a comment
            self._part_names = view.key.fields
        else:
            raise ConfigError(
                f"view {view.name} has no `load`, so nothing says what its objects are: add to the views file a SELECT"
                f" of {', '.join(view.key.fields) or 'one row'} and `value`, the object as JSON"
            )
        self._from = sql.SQL("({}) AS v").format(inner)
        columns = {column.name: column for column in self._describe(database)}
        for name in (*self._part_names, *([] if view.mode is Mode.REFRESH else [VALUE_COLUMN])):
            if name not in columns:
                raise ConfigError(
                    f"{self._place} has no column {name}: it needs {', '.join(self._part_names)} and {VALUE_COLUMN}"
                )
        self._parts = [columns[name] for name in self._part_names]
        self._values = self._value_columns(columns, published)
        self._loaders = {column.base_oid for column in columns.values()}
        self._part_converters = [converter(part.oid, part.modifier) for part in self._parts]
        self._part_sources = [source_text(part.oid, part.modifier) for part in self._parts]
        self._encode = self._row_encoder() if view.mode is Mode.REFRESH else self._value_encoder()
        self._check_where(database)

    def page(self, database: Database, after: Parts | None, limit: int) -> Objects:
        """Up to `limit` objects in the order of their parts, from the one after `after`."""
        conditions, arguments = self._conditions(), list[object]()
        if after is not None:
            given = [self._cast("%s", part) for part in self._parts[: len(after)]]
            conditions.append(sql.SQL("({}) > ({})").format(self._names(len(after)), sql.SQL(", ").join(given)))
            arguments += after
        order = sql.SQL(" ORDER BY {}").format(self._names()) if self._parts else sql.SQL("")
        query = self._select(conditions) + order + sql.SQL(f" LIMIT {limit:d}")
        rows = self._rows(database, query, arguments)
        last = tuple(takewhile(lambda part: part is not None, rows[-1][: len(self._parts)])) if rows else ()
        return self._objects(rows, last if last and len(rows) == limit else None)

    def of(self, database: Database, keys: Sequence[Parts]) -> Objects:
        """The objects of these keys; one that the database has not is not among them.

        Raises BadRecord where a part is none that its column could hold.
        """
        columns = self._possible(database, keys)
        conditions, arguments = self._conditions(), list[object]()
        for part, texts in zip(self._parts, columns, strict=True):
            # one array per part: pushed down to indexes, also where it narrows too little and the next line is needed
            conditions.append(sql.SQL("{} = ANY({})").format(_name(part, "v."), self._cast("%s::text[]", part, "[]")))
            arguments.append(texts)
        if len(self._parts) > 1:
            arrays = sql.SQL(", ").join(self._cast("%s::text[]", part, "[]") for part in self._parts)
            conditions.append(sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(self._names(), arrays))
            arguments += columns
        return self._objects(self._rows(database, self._select(conditions), arguments))

    def _possible(self, database: Database, keys: Sequence[Parts]) -> list[list[str]]:
        """PostgreSQL's texts of these keys, a list per part. Raises BadRecord where its column could not hold one.

        Asked by itself: an error of `load` says nothing about keys.
        """
        try:
            columns = [
                [key[number] if source is None else source(key[number]) for key in keys]
                for number, source in enumerate(self._part_sources)
            ]
            if columns:
                casts = sql.SQL(", ").join(self._cast("%s::text[]", part, "[]") for part in self._parts)
                database.execute(sql.SQL("SELECT num_nulls({})").format(casts), columns)
        except (psycopg.DataError, ValueError) as error:  # ValueError: not even a text that can be sent
            raise BadRecord(f"view {self.view.name}: a key that no object can have") from error
        return columns

    def estimate(self, database: Database) -> int:
        """About how many objects there are, as the planner of the database thinks."""
        query = sql.SQL("EXPLAIN (FORMAT JSON) ") + self._select(self._conditions())
        (plan,) = database.execute(query, []).fetchone() or ("[]",)
        return int((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]["Plan Rows"])

    # --- statements ---------------------------------------------------------------------------------------------------

    def _select(self, conditions: list[sql.Composable]) -> sql.Composed:
        columns = [*self._parts, *self._values]
        chosen = sql.SQL(", ").join(_name(column, "v.") for column in columns)
        where = sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("")
        return sql.SQL("SELECT {} FROM {}{}").format(chosen, self._from, where)

    def _conditions(self) -> list[sql.Composable]:
        return [sql.SQL(f"({_literal(self._where)}\n)")] if self._where else []

    def _names(self, count: int | None = None) -> sql.Composed:
        return sql.SQL(", ").join(_name(part, "v.") for part in self._parts[:count])

    def _cast(self, placeholder: str, part: _Column, suffix: str = "") -> sql.SQL:
        return sql.SQL(f"({placeholder})::{_literal(part.type)}{suffix}")

    def _rows(self, database: Database, query: sql.Composed, arguments: Sequence[object]) -> list[tuple[Any, ...]]:
        cursor = database.cursor()
        for oid in self._loaders:
            cursor.adapters.register_loader(oid, TextLoader)
        try:
            return cursor.execute(query, arguments).fetchall()
        except psycopg.errors.QueryCanceled as error:
            remedy = "let an index serve its key parts in their order, or read a standby"
            raise TransientError(f"{self._place} takes too long: {_reason(error)}: {remedy}") from error
        except psycopg.DataError as error:  # the server's words quote what it stumbled over
            raise ConfigError(f"{self._place} cannot be read: {type(error).__name__} in a row") from error
        except psycopg.ProgrammingError as error:
            self._complain(error)

    # --- rows -> objects ----------------------------------------------------------------------------------------------

    def _objects(self, rows: list[tuple[Any, ...]], last: Parts | None = None) -> Objects:
        values: dict[str, bytes | None] = {}
        keyless = 0
        render, count, converters = self.view.key.render, len(self._parts), self._part_converters
        for row in rows:
            parts = row[:count]
            try:
                key = render([text if c is None or text is None else c(text) for c, text in zip(converters, parts)])  # noqa: B905 - equally long
            except BadRecord:
                keyless += 1
                continue
            if key in values:
                raise ConfigError(f"{self._place} has two rows for {key}: it should have one row per object")
            values[key] = self._encode(row[count:])
        return Objects(values, last, keyless)

    def _value_columns(self, columns: dict[str, _Column], published: frozenset[str] | None) -> list[_Column]:
        if self.view.mode is not Mode.REFRESH:
            return [columns[VALUE_COLUMN]]
        (rule,) = self.view.rules
        wanted = None if rule.columns is None else {*rule.parts, *rule.columns}
        sent = {c.name for c in columns.values() if c.streamed} if published is None else published
        return [c for c in columns.values() if c.name in sent and (wanted is None or c.name in wanted)]

    def _value_encoder(self) -> Callable[[Sequence[Any]], bytes | None]:
        """The value as it is: JSON."""
        is_json = self._values[0].oid in _JSON

        def encode(row: Sequence[Any]) -> bytes | None:
            (value,) = row
            if not is_json and value is not None:
                try:
                    msgspec.json.decode(value, type=msgspec.Raw)
                except msgspec.DecodeError:
                    remedy = f"write to_jsonb(...) AS {VALUE_COLUMN}"
                    raise ConfigError(f"{self._place} has a {VALUE_COLUMN} that is no JSON: {remedy}") from None
            return None if value is None else value.encode()

        return encode

    def _row_encoder(self) -> Callable[[Sequence[Any]], bytes | None]:
        """A row as JSON, as the worker stores it."""
        columns = [(column.name, converter(column.oid, column.modifier)) for column in self._values]

        def encode(row: Sequence[Any]) -> bytes:
            return msgspec.json.encode(
                {
                    name: text if convert is None or text is None else convert(text)
                    for (name, convert), text in zip(columns, row, strict=True)
                }
            )

        return encode

    # --- what is there ------------------------------------------------------------------------------------------------

    def _describe(self, database: Database) -> list[_Column]:
        try:
            cursor = database.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(self._from), [])
        except (psycopg.DataError, psycopg.ProgrammingError) as error:
            self._complain(error)
        assert cursor.description is not None
        assert cursor.pgresult is not None
        result, count = cursor.pgresult, len(cursor.description)
        origins = [[of(n) for n in range(count)] for of in (result.ftype, result.ftable, result.ftablecol)]
        facts = database.execute(_COLUMNS, origins).fetchall()
        columns = [
            _Column(c.name, oid or c.type_code, c.type_code, result.fmod(n), type_name, streamed)
            for n, (c, (type_name, oid, streamed)) in enumerate(zip(cursor.description, facts, strict=True))
        ]
        if len({column.name for column in columns}) < len(columns):
            raise ConfigError(f"{self._place} has two columns of one name: name each once")
        return columns

    def _check_where(self, database: Database) -> None:
        if self._where is None:
            return
        try:
            database.execute(self._select(self._conditions()) + sql.SQL(" LIMIT 0"), [])
        except (psycopg.DataError, psycopg.ProgrammingError) as error:
            raise ConfigError(f"--where is no condition on {self._place}: {_reason(error)}") from error

    def _complain(self, error: psycopg.Error) -> NoReturn:
        raise ConfigError(f"{self._place} cannot be read: {_reason(error)}") from error


def _name(column: _Column, before: str = "") -> sql.SQL:
    return sql.SQL(before + _literal(sql.Identifier(column.name).as_string()))


def _literal(text: str) -> str:
    """SQL of a person, whose percent signs are no placeholders."""
    return text.replace("%", "%%")


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or type(error).__name__
