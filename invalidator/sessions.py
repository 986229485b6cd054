"""Database sessions of several makes: what staleproof asks of them is one SELECT at a time. Imports none of them.

In flow a session and a statement; out flows its row, as a tuple whatever rows the application chose for itself. Known
are psycopg, SQLAlchemy, Django, asyncpg, and whatever else has DB-API's `cursor()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias, TypeVar

import msgspec

from cdc.errors import ConfigError, TransientError

T = TypeVar("T")


class SourceFault(TransientError):
    """The database cannot be reached, or does not answer what staleproof itself asks of it."""


def fault(error: Exception) -> SourceFault:
    """What a driver raised, as ours."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return SourceFault(f"the database cannot be asked: {text}: see that it is up, and that the pool is large enough")


class Ask(msgspec.Struct, frozen=True):
    """A statement whose row is wanted: of several in one text, that of number `result`."""

    sql: str
    result: int = 0


class Run(msgspec.Struct, frozen=True):
    """The application's own load is to run now."""


class Undo(msgspec.Struct, frozen=True):
    """Roll back what was begun here."""


Step: TypeAlias = Ask | Run | Undo
Steps: TypeAlias = Generator[Step, Any, T]
"""Logic that needs a session: it yields steps, is sent rows or the load's value, and returns what came of it."""


def is_psycopg(session: object) -> bool:
    """Whether we can open transactions of our own on it."""
    return hasattr(session, "pgconn")


def check_in_transaction(session: Any) -> None:
    """Raises ConfigError for a session that is known to be in no transaction, where nothing can be proven."""
    if getattr(session, "in_atomic_block", True) is False:
        raise ConfigError("a Django connection proves what it reads only inside transaction.atomic(): open that first")


def remembers_objects(session: Any) -> bool:
    """Whether an ORM's session holds objects, which it may give instead of asking the database."""
    return len(getattr(session, "identity_map", ())) > 0


def has_changed_objects(session: Any) -> bool:
    """Whether an ORM's session gives what it has not even written yet."""
    return any(len(getattr(session, name, ())) > 0 for name in ("new", "dirty", "deleted"))


def perform(steps: Steps[T], session: Any, load: Callable[[Any], Any] | None = None) -> T:
    """Run `steps` on a session."""
    try:
        step = next(steps)
        while True:
            try:
                answer = _answer(step, session, load)
            except BaseException as error:  # noqa: BLE001 - theirs to judge; what they do not catch comes back
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def perform_async(steps: Steps[T], session: Any, load: Callable[[Any], Awaitable[Any]] | None = None) -> T:
    """As `perform`, on a session whose calls are awaited."""
    try:
        step = next(steps)
        while True:
            try:
                answer = await _answer_async(step, session, load)
            except BaseException as error:  # noqa: BLE001 - as above
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        value: T = stop.value
        return value


def _answer(step: Step, session: Any, load: Callable[[Any], Any] | None) -> Any:
    if isinstance(step, Run):
        return load(session) if load else None
    try:
        return _row(session, step) if isinstance(step, Ask) else session.rollback()
    except Exception as error:
        raise fault(error) from error


async def _answer_async(step: Step, session: Any, load: Callable[[Any], Awaitable[Any]] | None) -> Any:
    if isinstance(step, Run):
        return await load(session) if load else None
    try:
        return await (_row_async(session, step) if isinstance(step, Ask) else session.rollback())
    except Exception as error:
        raise fault(error) from error


def _row(session: Any, ask: Ask) -> tuple[Any, ...]:
    if hasattr(session, "exec_driver_sql"):
        return tuple(session.exec_driver_sql(ask.sql).one())
    if hasattr(session, "get_bind"):  # a SQLAlchemy Session: its connection, without the ORM
        return tuple(session.connection().exec_driver_sql(ask.sql).one())
    with session.cursor(row_factory=_tuples) if is_psycopg(session) else session.cursor() as cursor:
        cursor.execute(ask.sql)
        for _ in range(ask.result):
            cursor.nextset()
        return tuple(cursor.fetchone())


async def _row_async(session: Any, ask: Ask) -> tuple[Any, ...]:
    if hasattr(session, "exec_driver_sql"):
        return tuple((await session.exec_driver_sql(ask.sql)).one())
    if hasattr(session, "get_bind"):
        return tuple((await (await session.connection()).exec_driver_sql(ask.sql)).one())
    if hasattr(session, "fetchrow"):
        return tuple(await session.fetchrow(ask.sql))
    async with session.cursor(row_factory=_tuples) as cursor:
        await cursor.execute(ask.sql)
        for _ in range(ask.result):
            cursor.nextset()
        return tuple(await cursor.fetchone())


def _tuples(cursor: object) -> Callable[..., Any]:  # noqa: ARG001 - psycopg's form of a row factory
    return tuple
