"""How a served value differs from the database's, by field names. Pure; both are as JSON gives them."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

LINES_MAX: Final = 12
SHOWN_CHARACTERS_MAX: Final = 120

_NOTHING: Final = object()


def differences(served: Any, database: Any) -> list[str]:
    """One line for each place that differs, such as `items[0].price: served 3, the database says 5`."""
    lines = list(_compare("", served, database))
    more = len(lines) - LINES_MAX
    return lines if more <= 0 else [*lines[:LINES_MAX], f"and {more} more"]


def _compare(path: str, served: Any, database: Any) -> Iterator[str]:
    if isinstance(served, Mapping) and isinstance(database, Mapping):
        for name in dict.fromkeys([*database, *served]):
            place = f"{path}.{name}" if path else str(name)
            yield from _compare(place, served.get(name, _NOTHING), database.get(name, _NOTHING))
    elif isinstance(served, list) and isinstance(database, list):
        if len(served) != len(database):
            yield f"{path or 'the list'}: served {len(served)} items, the database has {len(database)}"
        for index, pair in enumerate(zip(served, database, strict=False)):
            yield from _compare(f"{path}[{index}]", *pair)
    elif not _same(served, database):
        yield f"{path or 'the value'}: {_told('served', served)}, {_told('the database says', database)}"


def _same(served: Any, database: Any) -> bool:
    return type(served) is type(database) and bool(served == database)


def _told(verb: str, value: Any) -> str:
    if value is _NOTHING:
        return "not served" if verb == "served" else "not in the database"
    text = "nothing (no such object)" if value is None else repr(value)
    return f"{verb} {text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + '…'}"
