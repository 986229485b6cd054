"""PostgreSQL's text of a value -> Debezium's rendering of it. Pure.

As Debezium with `decimal.handling.mode=string` and `time.precision.mode=adaptive`:

| PostgreSQL | JSON |
|---|---|
| boolean | true, false |
| smallint, integer, bigint, oid | number |
| real, double precision | number; `NaN` and infinities stay text, JSON has no numbers for them |
| date | days since 1970-01-01 |
| timestamp(0..3), time(0..3) | milliseconds |
| timestamp, time | microseconds |
| timestamptz | `2026-01-02T03:04:05.678Z`, fraction as long as PostgreSQL writes it |
| bytea | base64 |
| numeric, text, varchar, char, uuid, json, jsonb, enum, arrays, every other type | PostgreSQL's text |

Infinite dates and times, and those before the year 1, stay PostgreSQL's text: Debezium's numbers for them are out of
every reader's range. The session must speak `DateStyle ISO`, `TimeZone UTC`, `bytea_output hex`.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

UNAVAILABLE = "__debezium_unavailable_value"
"""Debezium's word for a TOASTed value that the log does not repeat."""

UNAVAILABLE_BYTES = b64encode(UNAVAILABLE.encode()).decode()
"""The same for a bytea column."""

Converter = Callable[[str], Any]

_BOOL, _BYTEA, _INT8, _INT2, _INT4, _OID = 16, 17, 20, 21, 23, 26
_FLOAT4, _FLOAT8, _DATE, _TIME, _TIMESTAMP, _TIMESTAMPTZ = 700, 701, 1082, 1083, 1114, 1184
_UNIX_EPOCH = date(1970, 1, 1).toordinal()
_DAY_US = 86_400_000_000
_Y2K = datetime(2000, 1, 1)  # noqa: DTZ001 - a timestamp without time zone has none
_Y2K_US = 946_684_800_000_000
_MILLISECOND_DIGITS = 3
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_JULIAN_UNIX_EPOCH = 2_440_588
"""1970-01-01 by the day count that PostgreSQL reads after a J."""


def converter(type_oid: int, type_modifier: int) -> Converter | None:
    """What turns a column's text into its JSON value; None when the text itself is the value."""
    if 0 <= type_modifier <= _MILLISECOND_DIGITS and type_oid in _MILLISECONDS:
        return _MILLISECONDS[type_oid]
    return _CONVERTERS.get(type_oid)


def source_text(type_oid: int, type_modifier: int) -> Callable[[str], str] | None:
    """The way back: what turns a converted value, as a text, into one that PostgreSQL reads; None where it reads it so.

    That raises ValueError for what no value is converted to. Texts that were left alone pass.
    """
    if 0 <= type_modifier <= _MILLISECOND_DIGITS and type_oid in _MILLISECONDS:
        back = _SOURCES[type_oid]
        return lambda text: back(f"{text}000" if _NUMBER.fullmatch(text) and text != "0" else text)
    return _SOURCES.get(type_oid)


def unavailable(type_oid: int) -> str:
    """What stands in for a column's unchanged TOASTed value."""
    return UNAVAILABLE_BYTES if type_oid == _BYTEA else UNAVAILABLE


def _bool(text: str) -> bool:
    return text == "t"


def _float(text: str) -> float | str:
    return text if text[-1] in "Ny" else float(text)


def _base64(text: str) -> str:
    if text == UNAVAILABLE_BYTES:
        return text
    if not text.startswith("\\x"):
        raise ValueError("bytea that is not hexadecimal")
    return b64encode(bytes.fromhex(text[2:])).decode()


def _days(text: str) -> int | str:
    if len(text) == 10 and text[0].isdigit():
        return date.fromisoformat(text).toordinal() - _UNIX_EPOCH
    if text[-1] not in "yC":
        return _days_of_any_year(text)
    return text


def _days_of_any_year(text: str) -> int:
    """Years beyond 9999, which Python's calendar lacks; the calendar repeats every 400 years of 146,097 days."""
    year, month, day = text.split("-")
    cycles = (int(year) - 2000) // 400
    return date(int(year) - 400 * cycles, int(month), int(day)).toordinal() - _UNIX_EPOCH + 146_097 * cycles


def _time_us(text: str) -> int:
    seconds = int(text[:2]) * 3600 + int(text[3:5]) * 60 + int(text[6:8])
    return seconds * 1_000_000 + (int(text[9:].ljust(6, "0")) if len(text) > 8 else 0)


def _time_ms(text: str) -> int:
    return _time_us(text) // 1000


def _timestamp_us(text: str) -> int | str:
    if text[0] == "2" and text[4] == "-" and len(text) <= 26:  # this millennium, the fast way
        since = datetime.fromisoformat(text) - _Y2K
        return _Y2K_US + since.days * _DAY_US + since.seconds * 1_000_000 + since.microseconds
    day, _, time = text.partition(" ")
    days = _days(day) if time[-1:] != "C" else day
    return days * _DAY_US + _time_us(time) if isinstance(days, int) else text


def _timestamp_ms(text: str) -> int | str:
    value = _timestamp_us(text)
    return value // 1000 if isinstance(value, int) else value


def _instant(text: str) -> str:
    return text[:-3].replace(" ", "T") + "Z" if text.endswith("+00") else text


def _date_source(text: str) -> str:
    return f"J{_JULIAN_UNIX_EPOCH + int(text)}" if _NUMBER.fullmatch(text) else text


def _time_source(text: str) -> str:
    if not _NUMBER.fullmatch(text):
        return text
    seconds, microseconds = divmod(int(text), 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{microseconds:06}"


def _timestamp_source(text: str) -> str:
    if not _NUMBER.fullmatch(text):
        return text
    days, rest = divmod(int(text), _DAY_US)
    return f"{_date_source(str(days))} {_time_source(str(rest))}"


def _bytes_source(text: str) -> str:
    return "\\x" + b64decode(text, validate=True).hex()


_SOURCES: dict[int, Callable[[str], str]] = {
    _BYTEA: _bytes_source,
    _DATE: _date_source,
    _TIME: _time_source,
    _TIMESTAMP: _timestamp_source,
}

_CONVERTERS: dict[int, Converter] = {
    _BOOL: _bool,
    _BYTEA: _base64,
    _INT8: int,
    _INT2: int,
    _INT4: int,
    _OID: int,
    _FLOAT4: _float,
    _FLOAT8: _float,
    _DATE: _days,
    _TIME: _time_us,
    _TIMESTAMP: _timestamp_us,
    _TIMESTAMPTZ: _instant,
}
_MILLISECONDS: dict[int, Converter] = {_TIME: _time_ms, _TIMESTAMP: _timestamp_ms}
