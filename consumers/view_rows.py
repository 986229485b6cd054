"""The objects of a view as the database has them: keys, and values as JSON. Door: psycopg queries.

In flow a view and which of its objects are wanted: a page after a key, or those of given keys. Out flow keys as the
planner renders them with values as readers store them: of a refreshed view its table's rows, rendered as the worker
does; of any other what its `load` selects. Runs inside whatever transaction the connection is in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import msgspec
import psycopg
from psycopg import sql
from psycopg.types.string import TextLoader

from cdc.connectors.pg_values import converter
from cdc.errors import BadRecord, ConfigError
from consumers.database import Database
from invalidator.views import Mode, View

SESSION = {"datestyle": "ISO", "timezone": "UTC", "bytea_output": "hex", "extra_float_digits": "1"}
"""How a session must render values; pg_values.py reads exactly these."""

VALUE_COLUMN = "value"

Parts: TypeAlias = tuple[str, ...]
"""PostgreSQL's texts of a key's parts, in the order of the template's fields."""


class Objects(msgspec.Struct, frozen=True):
    """Some objects: per cache key its JSON, or None for one that is null. `last`: the parts to go on after, if any.

    `keyless`: rows without a key, for want of a part or because a part has no text form.
    """

    values: dict[str, bytes | None]
    last: Parts | None = None
    keyless: int = 0


class _Column(msgspec.Struct, frozen=True):
    name: str
    oid: int
    modifier: int
    type: str


class ViewRows:
    """Asks for objects of one view; `where` narrows them by SQL over the columns of `load`, or of the table.

    Raises ConfigError where `load`, the table or `where` do not fit the view.
    """

    def __init__(self, database: Database, view: View, where: str | None = None) -> None:
        self.view = view
        self._place = f"view {view.name}: its table" if view.mode is Mode.REFRESH else f"view {view.name}: its load"
        self._where = where
        if view.mode is Mode.REFRESH:
            (rule,) = view.rules
            table = sql.Identifier(*rule.table.split(".", 1))
            inner: sql.Composable = sql.SQL("SELECT * FROM {}").format(table)
            self._part_names: Sequence[str] = rule.parts
        elif view.load is not None:
            inner = sql.SQL(_literal(view.load))
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
        self._values = self._value_columns(columns)
        self._loaders = {column.oid for column in columns.values()}
        self._part_converters = [converter(part.oid, part.modifier) for part in self._parts]
        self._encode = self._row_encoder() if view.mode is Mode.REFRESH else _encode_value
        self._check_where(database)

    def page(self, database: Database, after: Parts | None, limit: int) -> Objects:
        """Up to `limit` objects in the order of their parts, from the one after `after`."""
        conditions, arguments = self._conditions(), list[object]()
        if after is not None:
            given = [self._cast("{}", part) for part in self._parts]
            conditions.append(sql.SQL("({}) > ({})").format(self._names(), sql.SQL(", ").join(given)))
            arguments += after
        order = sql.SQL(" ORDER BY {}").format(self._names()) if self._parts else sql.SQL("")
        query = self._select(conditions) + order + sql.SQL(f" LIMIT {limit:d}")
        rows = self._rows(database, query, arguments)
        last = rows[-1][: len(self._parts)] if len(rows) == limit and self._parts else None
        return self._objects(rows, None if last is None or None in last else last)

    def of(self, database: Database, keys: Sequence[Parts]) -> Objects:
        """The objects of these keys; one that the database has not is not among them.

        Raises BadRecord where a part is none that its column could hold.
        """
        conditions, arguments = self._conditions(), list[object]()
        for number, part in enumerate(self._parts):
            # one array per part: pushed down to indexes, also where it narrows too little and the next line is needed
            conditions.append(
                sql.SQL("v.{} = ANY({})").format(sql.Identifier(part.name), self._cast("{}::text[]", part, "[]"))
            )
            arguments.append([key[number] for key in keys])
        if len(self._parts) > 1:
            arrays = sql.SQL(", ").join(self._cast("{}::text[]", part, "[]") for part in self._parts)
            conditions.append(sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(self._names(), arrays))
            arguments += arguments[-len(self._parts) :]
        try:
            return self._objects(self._rows(database, self._select(conditions), arguments))
        except psycopg.DataError as error:
            raise BadRecord(f"view {self.view.name}: {_reason(error)}") from error

    def estimate(self, database: Database) -> int:
        """About how many objects there are, as the planner of the database thinks."""
        query = sql.SQL("EXPLAIN (FORMAT JSON) ") + self._select(self._conditions())
        (plan,) = database.execute(query, []).fetchone() or ("[]",)
        return int((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]["Plan Rows"])

    # --- statements ---------------------------------------------------------------------------------------------------

    def _select(self, conditions: list[sql.Composable]) -> sql.Composed:
        columns = [*self._parts, *self._values]
        chosen = sql.SQL(", ").join(sql.SQL("v.") + sql.Identifier(column.name) for column in columns)
        where = sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("")
        return sql.SQL("SELECT {} FROM {}{}").format(chosen, self._from, where)

    def _conditions(self) -> list[sql.Composable]:
        return [sql.SQL(f"({_literal(self._where)})")] if self._where else []

    def _names(self) -> sql.Composed:
        return sql.SQL(", ").join(sql.SQL("v.") + sql.Identifier(part.name) for part in self._parts)

    def _cast(self, placeholder: str, part: _Column, suffix: str = "") -> sql.Composed:
        return sql.SQL(f"({placeholder})::{part.type}{suffix}").format(sql.Placeholder())

    def _rows(self, database: Database, query: sql.Composed, arguments: Sequence[object]) -> list[tuple[Any, ...]]:
        cursor = database.cursor()
        for oid in self._loaders:
            cursor.adapters.register_loader(oid, TextLoader)
        try:
            return cursor.execute(query, arguments).fetchall()
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

    def _value_columns(self, columns: dict[str, _Column]) -> list[_Column]:
        if self.view.mode is not Mode.REFRESH:
            return [columns[VALUE_COLUMN]]
        (rule,) = self.view.rules
        wanted = None if rule.columns is None else {*rule.parts, *rule.columns}
        return [column for column in columns.values() if wanted is None or column.name in wanted]

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
        found = [(c.name, c.type_code, cursor.pgresult.fmod(n)) for n, c in enumerate(cursor.description)]
        types = database.execute(  # -1: without it `character` means one character
            "SELECT format_type(t.oid, -1) FROM unnest(%s::oid[]) WITH ORDINALITY AS t(oid, n) ORDER BY n",
            ([oid for _, oid, _ in found],),
        ).fetchall()
        columns = [_Column(*facts, type_name) for facts, (type_name,) in zip(found, types, strict=True)]
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


def _encode_value(row: Sequence[Any]) -> bytes | None:
    (value,) = row
    return None if value is None else value.encode()


def _literal(text: str) -> str:
    """SQL of a person, whose percent signs are no placeholders."""
    return text.replace("%", "%%")


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or type(error).__name__
