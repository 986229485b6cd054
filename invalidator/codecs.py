"""How values become the payload of an entry and come back. Pure.

In flows a value of the application's type, out flow an encoding (one letter in the entry) and bytes; and the other way
round. JSON or msgpack, each compressed with zstd where that was chosen; a reader understands all of them, whatever it
writes itself. Types are whatever msgspec decodes into (Structs, dataclasses, dict, ...) and pydantic's models.
"""

from __future__ import annotations

import datetime as dt
import types
import typing
import uuid
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar, Union

import msgspec

from cdc.errors import BadRecord, ConfigError

T = TypeVar("T")

_PLAIN = (
    *(str, int, float, bool, bytes, type(None), Decimal, uuid.UUID),
    *(dt.datetime, dt.date, dt.time, dt.timedelta),
)

JSON, MSGPACK, JSON_ZSTD, MSGPACK_ZSTD = "jmJM"
"""The letters: upper case is compressed."""


class Codec(msgspec.Struct, frozen=True, kw_only=True):
    """How a view's values are written: `json` or `msgpack`; from so many bytes on compressed, None for never.

    `decoded_bytes_max`: what does not fit in it after decompression is not read: a small entry can name any size.
    """

    serializer: str = "json"
    compress_from_bytes: int | None = None
    decoded_bytes_max: int = 16 << 20

    def __post_init__(self) -> None:
        if self.serializer not in ("json", "msgpack"):
            raise ConfigError(f"serializer {self.serializer!r} is not known: use json or msgpack")
        if self.compress_from_bytes is not None:
            _zstd()


class Coder(Generic[T]):
    """Encodes and decodes the values of one view. Raises ConfigError for a type that nothing here decodes into."""

    def __init__(self, codec: Codec, kind: Any) -> None:
        self._codec = codec
        self.shareable = is_frozen(kind)
        """Whether one object may be handed to several callers."""
        validate, dump = _pydantic(kind)
        try:
            if validate is None:
                self._decode_json: Callable[[Any], Any] = msgspec.json.Decoder(kind).decode
                self._decode_msgpack: Callable[[Any], Any] = msgspec.msgpack.Decoder(kind).decode
            else:
                self._decode_json = lambda data: validate(msgspec.json.decode(data))
                self._decode_msgpack = lambda data: validate(msgspec.msgpack.decode(data))
        except TypeError as error:
            raise ConfigError(f"values cannot be decoded into {kind!r}: {error}") from error
        write = msgspec.json.encode if codec.serializer == "json" else msgspec.msgpack.encode
        self._write: Callable[[Any], bytes] = write if dump is None else lambda value: write(dump(value))
        self._plain, self._compressed = (JSON, JSON_ZSTD) if codec.serializer == "json" else (MSGPACK, MSGPACK_ZSTD)

    def encode(self, value: T) -> tuple[str, bytes]:
        """The encoding's letter and the payload."""
        data = self._write(value)
        least = self._codec.compress_from_bytes
        if least is None or len(data) < least:
            return self._plain, data
        return self._compressed, _zstd().ZstdCompressor().compress(data)  # one that threads share crashes the process

    def decode(self, encoding: str, payload: bytes | memoryview) -> T:
        """The value. Raises BadRecord for what is not one of this type, or too large."""
        try:
            if encoding in "JM":
                payload, encoding = self._expand(payload), encoding.lower()
            if encoding == JSON:
                value: T = self._decode_json(payload)
            elif encoding == MSGPACK:
                value = self._decode_msgpack(payload)
            else:
                raise ValueError(f"unknown encoding {encoding!a}")
        except (
            ValueError,
            msgspec.MsgspecError,
            RecursionError,
        ) as error:  # pydantic's and zstd's are ValueErrors here
            raise BadRecord(f"not a value of this view: {type(error).__name__}") from None
        return value

    def _expand(self, payload: bytes | memoryview) -> bytes:
        zstd = _zstd()
        try:
            if not 0 <= zstd.frame_content_size(payload) <= self._codec.decoded_bytes_max:
                raise ValueError("too large, or of no size")
            data: bytes = zstd.ZstdDecompressor().decompress(payload)
        except zstd.ZstdError as error:
            raise ValueError("not zstd") from error
        return data


def is_frozen(kind: Any) -> bool:
    """Whether nothing in such a value can be set: plain values, and frozen Structs, dataclasses and models of them."""
    if kind in _PLAIN or (isinstance(kind, type) and issubclass(kind, Enum)):
        return True
    if typing.get_origin(kind) in (Union, types.UnionType, tuple, frozenset):
        return all(part is Ellipsis or is_frozen(part) for part in typing.get_args(kind))
    settings = getattr(kind, "__struct_config__", None) or getattr(kind, "__dataclass_params__", None)
    model = getattr(kind, "model_config", None)
    if not (getattr(settings, "frozen", False) or (isinstance(model, dict) and model.get("frozen"))):
        return False
    try:
        if model is None:
            parts = [part for part in typing.get_type_hints(kind).values() if typing.get_origin(part) is not ClassVar]
        else:
            parts = [field.annotation for field in kind.model_fields.values()]
        return all(map(is_frozen, parts))
    except (NameError, TypeError, RecursionError):  # a type that is not known here, or that holds itself
        return False


def _zstd() -> Any:
    try:
        import zstandard  # noqa: PLC0415 - optional: only who compresses needs it
    except ImportError:
        raise ConfigError("compressed values need zstandard: install staleproof[zstd]") from None
    return zstandard


def _pydantic(kind: Any) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
    """How a pydantic model is validated and dumped; nothing for other types."""
    if not hasattr(kind, "__pydantic_validator__"):
        return None, None
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - only who has models pays for it

    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def validate(data: Any) -> Any:
        try:
            return adapter.validate_python(data)
        except ValidationError:
            raise ValueError("not valid") from None

    return validate, lambda value: adapter.dump_python(value, mode="json")
