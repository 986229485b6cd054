"""Payloads: every encoding comes back as the same value, and nothing that is not one of ours crashes a reader."""

from __future__ import annotations

import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pydantic
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import BadRecord, ConfigError
from invalidator.codecs import Codec, Coder, is_frozen

CODECS = [Codec(serializer=name, compress_from_bytes=least) for name in ("json", "msgpack") for least in (None, 0)]


class Struct(msgspec.Struct):
    a: int
    b: list[str]


class Frozen(msgspec.Struct, frozen=True):
    a: int


@dataclasses.dataclass
class Data:
    a: int
    b: list[str]


@dataclasses.dataclass(frozen=True)
class FrozenData:
    a: int


class Model(pydantic.BaseModel):
    a: int
    b: list[str]


class FrozenModel(pydantic.BaseModel, frozen=True):
    a: int


class FrozenOfList(msgspec.Struct, frozen=True):
    a: list[str]


class FrozenOfFrozen(msgspec.Struct, frozen=True):
    a: Frozen | None
    b: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FrozenDataOfStruct:
    a: Struct


class FrozenModelOfDict(pydantic.BaseModel, frozen=True):
    a: dict[str, int]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", [Struct, Data, Model, Any])
def test_a_value_comes_back_as_it_was(codec: Codec, kind: Any) -> None:
    value = {"a": 1, "b": ["x"] * 50} if kind is Any else kind(a=1, b=["x"] * 50)
    encoding, payload = Coder[Any](codec, kind).encode(value)
    assert (
        encoding == ("J" if codec.serializer == "json" else "M") if codec.compress_from_bytes == 0 else encoding in "jm"
    )
    for other in CODECS:
        assert Coder[Any](other, kind).decode(encoding, payload) == value


def test_only_what_is_large_enough_is_compressed() -> None:
    coder = Coder[Any](Codec(compress_from_bytes=100), Any)
    assert [coder.encode("x" * size)[0] for size in (97, 98)] == ["j", "J"]


@pytest.mark.parametrize("encoding", ["j", "m", "J", "M", "x", ""])
@given(payload=st.binary(max_size=200))
def test_rubbish_is_no_value(encoding: str, payload: bytes) -> None:
    for kind in (Struct, Model):
        with pytest.raises(BadRecord):
            Coder[Any](Codec(), kind).decode(encoding, payload)


def test_a_small_entry_that_would_grow_large_is_not_read() -> None:
    bomb = zstandard.ZstdCompressor().compress(b'"' + b"x" * 100_000 + b'"')
    assert len(bomb) < 100
    assert len(Coder[Any](Codec(), Any).decode("J", bomb)) == 100_000
    small = Codec(decoded_bytes_max=10_000)
    with pytest.raises(BadRecord):
        Coder[Any](small, Any).decode("J", bomb)
    without_size = zstandard.ZstdCompressor(write_content_size=False).compress(b'"' + b"x" * 100_000 + b'"')
    with pytest.raises(BadRecord):
        Coder[Any](small, Any).decode("J", without_size)


def test_threads_compress_with_one_coder() -> None:
    coder = Coder[str](Codec(compress_from_bytes=0), str)

    def comes_back(number: int) -> bool:
        text = "".join(random.Random(number).choices("abcdefgh", k=50_000))
        return all(coder.decode(*coder.encode(text)) == text for _ in range(20))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(comes_back, range(16)))


def test_deep_json_is_no_crash() -> None:
    with pytest.raises(BadRecord):
        Coder[Any](Codec(), Any).decode("j", b"[" * 100_000 + b"]" * 100_000)


def test_an_unknown_serializer_or_type_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="json or msgpack"):
        Codec(serializer="pickle")
    with pytest.raises(ConfigError, match="cannot be decoded"):
        Coder[Any](Codec(), lambda: None)


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        *((Frozen, True), (Struct, False), (FrozenData, True), (Data, False), (FrozenModel, True), (Model, False)),
        *((str, True), (dict, False), (Any, False)),
        *(
            (FrozenOfList, False),
            (FrozenDataOfStruct, False),
            (FrozenModelOfDict, False),
            (FrozenOfFrozen, True),
            (tuple[str, ...], True),
        ),
        (str | None, True),
    ],
)
def test_only_what_cannot_be_set_is_shared(kind: Any, frozen: bool) -> None:
    assert is_frozen(kind) is frozen
