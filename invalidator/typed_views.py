"""What an application declares once per view, and what it asks for at each read, made ready for the reader. Pure."""

from __future__ import annotations

import functools
import operator
import types
import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, Generic, TypeAlias, TypeVar, Union

import msgspec

from cdc.errors import BadRecord, ConfigError
from invalidator.codecs import Codec, Coder
from invalidator.judging import ANY, Need
from invalidator.tokens import Session, Token
from invalidator.views import View, Views

T = TypeVar("T")
Seconds: TypeAlias = float | timedelta


class OnDoubt(StrEnum):
    """While the database is away or overloaded: raise, or serve what Redis holds beyond the bound."""

    CLOSED = "closed"
    OPEN = "open"


class TypedView(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A view as one reader uses it. `load` is the application's; only a driver looks at it."""

    view: View
    name_bytes: bytes
    coder: Coder[T]
    load: Any
    need: Need = ANY
    on_doubt: OnDoubt = OnDoubt.CLOSED

    def name(self, key: object) -> str:
        """The cache key of `key`. Raises ConfigError."""
        return render(self.view, key)


def known_view(views: Views, name: str) -> View:
    """The view of this name, which must be a guarded one. Raises ConfigError."""
    view = views.views.get(name)
    if view is None:
        raise ConfigError(f"there is no view {name!r}; known are {', '.join(sorted(views.views))}")
    if view.is_plain:
        raise ConfigError(
            f"view {name} has layout: plain, so its values are the application's own: read and store them with a Redis"
            f" client under {view.key.text}, or take `layout: plain` out of the views file"
        )
    return view


def typed_view(
    view: View, load: Any, kind: Any, codec: Codec, max_staleness: Seconds | None, on_doubt: OnDoubt
) -> TypedView[Any]:
    """A view ready for reading. Raises ConfigError."""
    return TypedView(
        view=view,
        name_bytes=view.name.encode(),
        coder=Coder(codec, kind),
        load=load,
        need=ANY if max_staleness is None else Need(_milliseconds(max_staleness)),
        on_doubt=OnDoubt(on_doubt),
    )


def need_of(
    view: TypedView[Any], max_staleness: Seconds | None, token: Token | Session | str | None, *, strong: bool
) -> Need:
    """What one read asks for. A token that is none, as a forged cookie is, asks the primary."""
    if max_staleness is None and token is None and not strong:
        return view.need
    bound = view.need.bound_ms if max_staleness is None else _milliseconds(max_staleness)
    if token is None or token == "":
        return ANY if bound is None and not strong else Need(bound, None, strong)
    if isinstance(token, Session):
        return Need(bound, token.token, strong or token.lost, track=True)
    if isinstance(token, str):
        try:
            token = Token.parse(token)
        except ValueError:
            return Need(bound, None, strong=True)
    return Need(bound, token, strong)


def returned_type(load: Callable[..., Any]) -> Any:
    """What a loader is annotated to return, without None; Any where it does not say. Raises ConfigError."""
    try:
        kind = typing.get_type_hints(load).get("return", Any)
    except NameError as error:
        raise ConfigError(f"{load!r}: its return type is not known here ({error}): use view(..., type=...)") from error
    if typing.get_origin(kind) in (Union, types.UnionType):
        rest = tuple(part for part in typing.get_args(kind) if part is not type(None))
        return functools.reduce(operator.or_, rest)
    return kind


def arguments(key: object) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """A key as a loader gets it: its parts by position, or by name."""
    if isinstance(key, Mapping):
        return (), key
    return (key if isinstance(key, tuple) else (key,)), {}


def with_loader(view: TypedView[Any], load: Any) -> TypedView[Any]:
    """The same view, loaded in another way."""
    return msgspec.structs.replace(view, load=load)


def _milliseconds(bound: Seconds) -> int:
    seconds = bound.total_seconds() if isinstance(bound, timedelta) else bound
    if not 0 <= seconds <= 86_400 * 365:
        raise ConfigError(f"max_staleness is {seconds} s: use 0 to a year, or leave it out for no bound")
    return int(seconds * 1_000)


_SINGLE_PARTS = frozenset((int, str))
"""The commonest keys: whether one is a Mapping takes 0.5 µs to find out."""


def render(view: View, key: object) -> str:
    """The cache key: `key` is the one part of the template, a tuple of its parts, or a mapping. Raises ConfigError."""
    fields = view.key.fields
    if len(fields) == 1 and (type(key) in _SINGLE_PARTS or not isinstance(key, Mapping | tuple)):
        try:
            return view.key.render((key,))
        except BadRecord as error:
            raise ConfigError(f"view {view.name}: {error}") from error
    if isinstance(key, tuple) and len(key) == len(fields):
        key = dict(zip(fields, key, strict=True))
    elif not isinstance(key, Mapping):
        key = {}
    if set(key) != set(fields):
        raise ConfigError(
            f"view {view.name} is asked for by {', '.join(fields)}; got {', '.join(map(str, key)) or 'none'}"
        )
    try:
        return view.key.render([key[name] for name in fields])
    except BadRecord as error:
        raise ConfigError(f"view {view.name}: {error}") from error
