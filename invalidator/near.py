"""The near cache: values that this process has read, for who states a bound. Bounded in bytes. Pure.

In flows what a read returned with its Evidence; out flows the same, to be judged again like every value: by the
watermark that it was stored with. A view's values go when its generation moves, or a region that lost changes says so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import msgspec

from invalidator.judging import Evidence

ENTRY_BYTES = 400
"""What the objects around a key and a payload take, roughly."""


class Near(msgspec.Struct, frozen=True, kw_only=True):
    """How many bytes a process keeps, and after what share of its bound a value is looked for again beside its use."""

    bytes_max: int = 64 << 20
    refresh_after: float = 0.5


class Kept(msgspec.Struct, frozen=True):
    """A value, still encoded (None: absent), and what is known of it."""

    payload: bytes | None
    encoding: str
    evidence: Evidence
    generations: str
    view: object = None
    """The TypedView that `value` belongs to, where values of its type never change: it may be handed out as it is."""
    value: object = None


class NearCache:
    """Values of all views, the least recently used one goes first. Safe between threads."""

    def __init__(self, settings: Near) -> None:
        self._bytes_max = settings.bytes_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._generations: dict[str, str] = {}
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """How many are in use, by our own estimate."""
        return self._bytes

    def find(self, view: str, name: str) -> Kept | None:
        """What is kept of a key, if its generation is still the view's."""
        key = (view, name)
        with self._lock:  # whoever walks through the values must not see them move
            kept = self._kept.get(key)
            if kept is None or kept.generations != self._generations.get(view):
                return None
            self._kept.move_to_end(key)
        return kept

    def moved_on(self, view: str, generations: str) -> None:
        """A readable entry of the view has these generations: what carries others is not used any more."""
        if self._generations.get(view) != generations:
            self._generations[view] = generations

    def keep(self, view: str, name: str, kept: Kept) -> None:
        """Keep a value; others go if there is no room."""
        size = _size(name, kept)
        if size > self._bytes_max:
            return
        with self._lock:
            self._remove((view, name))
            self._kept[view, name] = kept
            self._bytes += size
            while self._bytes > self._bytes_max:
                self._remove(next(iter(self._kept)))

    def generations(self, view: str) -> str:
        """The newest that were met; empty before any was."""
        return self._generations.get(view, "")

    def forget(self, view: str, name: str) -> None:
        """Drop one value."""
        with self._lock:
            self._remove((view, name))

    def forget_view(self, view: str) -> None:
        """Drop what is kept of a view: it is closed."""
        with self._lock:
            self._generations.pop(view, None)
            for key in [key for key in self._kept if key[0] == view]:
                self._remove(key)

    def _remove(self, key: tuple[str, str]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= _size(key[1], kept)


def _size(name: str, kept: Kept) -> int:
    return ENTRY_BYTES + len(name) + len(kept.payload or b"") + sum(map(len, kept.evidence.proofs))
