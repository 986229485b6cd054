"""Objects from the database into regions: many guarded fills, safe beside the live stream, its workers and readers.

In flow objects of a view (a page after a key, or the keys of a list); out flow fills, each judged by the guard with the
snapshot that its batch was read in: a newer entry stays, and what a read cannot prove is kept, to be read again later.
A key of a list that the database does not have is unlinked, which is always safe.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import TypeAlias, TypeVar

import msgspec

from cdc.errors import BadRecord, ConfigError, TransientError
from consumers.view_rows import Objects, Parts, ViewRows
from invalidator import entry as entries
from invalidator.guard import Fill, Outcome
from invalidator.loading import FillMaker, Proof, ProvenSource
from invalidator.reader_commands import Filled
from invalidator.region import Region
from invalidator.views import key_parts

SCRIPT_KEYS = 250
"""So many fills hold Redis for about a millisecond."""

PAUSE_SECONDS = (0.1, 2.0)
"""A region that is away, cold or closed is asked again after so long, doubled up to the second."""

_MISMATCHES = {
    "history": "the database that was read is not the one that the region follows: correct source.dsn",
    "digest": "the region follows another definition of this view: give workers and replay the same views file",
    "forged": "the database is far beyond all that the region has heard of: correct source.dsn, or start capture",
}
"""Refusals that no repetition mends."""

T = TypeVar("T")


class Stopped(Exception):
    """We were asked to stop, between two steps."""


class _Unready(TransientError):
    """The region takes no fills of this view now."""


Counts: TypeAlias = Counter[str]
"""What became of keys. `<what> <region>`: filled, superseded (something as new is there), refused (the read could not
be proven), oversize, removed. Without a region: read, keyless (rows without a key), absent (asked for, and not in the
database), hashed (which object it is cannot be told), swept."""


class _Loaded(msgspec.Struct, frozen=True):
    objects: Objects
    proof: Proof | None
    absent: list[str]
    counts: Counts


class Refused:
    """Keys whose read could not be proven, per region: a transaction that changed them, or one like it, still ran.

    They are read again at the end, when it has ended. Thread-safe.
    """

    def __init__(self, keys: Mapping[str, Iterable[str]] | None = None) -> None:
        self._keys = {region: set(some) for region, some in (keys or {}).items()}
        self._lock = threading.Lock()

    def add(self, region: str, keys: Collection[str]) -> None:
        """Keep these."""
        if keys:
            with self._lock:
                self._keys.setdefault(region, set()).update(keys)

    def take(self, limit: int) -> dict[str, set[str]]:
        """Up to `limit` keys, with all regions that refused them; they are kept no longer."""
        with self._lock:
            chosen = set(islice(chain.from_iterable(self._keys.values()), limit))
            taken = {region: keys & chosen for region, keys in self._keys.items()}
            self._keys = {region: keys - chosen for region, keys in self._keys.items()}
        return {region: keys for region, keys in taken.items() if keys}

    def now(self) -> dict[str, list[str]]:
        """All that are kept."""
        with self._lock:
            return {region: sorted(keys) for region, keys in self._keys.items() if keys}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where fills go, where refused keys wait, and how long one may wait for a region that takes no fills."""

    regions: Sequence[Region]
    stop: threading.Event
    refused: Refused
    patience_seconds: float
    payload_bytes_max: int = 1 << 20


class Rebuild:
    """Brings one view's objects into regions, over one database connection: one object per thread."""

    def __init__(self, rows: ViewRows, source: ProvenSource, target: Target) -> None:
        self._rows = rows
        self._view = rows.view
        self._source = source
        self._target = target

    def load_page(self, after: Parts | None, limit: int) -> tuple[Objects, Proof | None]:
        """The objects after a key, with the proof of the read, as `fill` takes them."""
        return self._source.load(lambda database: self._rows.page(database, after, limit))

    def fill(self, objects: Objects, proof: Proof | None) -> Counts:
        """Offer objects to every region; what one refuses waits in `refused`. Raises TransientError, ConfigError."""
        counts: Counts = Counter(read=len(objects.values), keyless=objects.keyless)
        self._offer(objects, proof, dict.fromkeys(self._target.regions, objects.values), counts)
        return counts

    def fill_refused(self, limit: int) -> Counts:
        """Load up to `limit` of the refused keys again, and offer each to the regions that refused it."""
        taken = self._target.refused.take(limit)
        try:
            loaded = self._load_keys(sorted(set().union(*taken.values())))
            counts = self.remove(loaded.absent)
            wanted = {region: taken[region.name] for region in self._target.regions if region.name in taken}
            self._offer(loaded.objects, loaded.proof, wanted, counts)
        except BaseException:
            for region, keys in taken.items():
                self._target.refused.add(region, keys)
            raise
        told = {*loaded.objects.values, *loaded.absent}
        for region, keys in taken.items():
            counts[f"refused {region}"] += len(keys - told)  # hashed: of which object is not known any more
        return +counts

    def fill_keys(self, keys: Sequence[str]) -> Counts:
        """Load these keys and offer them; unlink those that the database does not have."""

        def work(some: Sequence[str]) -> Counts:
            loaded = self._load_keys(some)
            return loaded.counts + self.remove(loaded.absent) + self.fill(loaded.objects, loaded.proof)

        return self._divided(keys, work)

    def sweep(self, keys: Sequence[str]) -> Counts:
        """Unlink those of these keys that the database does not have, but for entries that say just that."""

        def work(some: Sequence[str]) -> Counts:
            loaded = self._load_keys(some)
            return loaded.counts + self.remove(loaded.absent, keep_negative=True)

        return self._divided(keys, work) + Counts(swept=len(keys))

    def remove(self, keys: Sequence[str], *, keep_negative: bool = False) -> Counts:
        """Unlink keys in every region."""
        counts: Counts = Counter()
        for region in self._target.regions:
            for shard, some in by_shard(region, keys).items():
                for part in in_scripts(some):
                    wrong = self._without_negative(region, shard, part) if keep_negative else part
                    if wrong:
                        removed = self._patiently(region, lambda: region.unlink(shard, wrong))  # noqa: B023 - called at once
                        counts[f"removed {region.name}"] += removed
        return counts

    def _without_negative(self, region: Region, shard: int, keys: Sequence[str]) -> Sequence[str]:
        """Those without an entry which can be served and says that there is no such object."""
        view = self._view
        found = self._patiently(region, lambda: region.look(shard, keys, view.name, view.digest)).entries
        return [key for key, data in zip(keys, found, strict=True) if data is None or not is_negative(data)]

    def _load_keys(self, keys: Sequence[str]) -> _Loaded:
        """Raises BadRecord where a key is none that its columns could hold."""
        parts = {key: key_parts(self._view.key, key) for key in keys}
        known = {key: tuple(map(str, texts)) for key, texts in parts.items() if texts is not None and None not in texts}
        objects, proof = self._source.load(lambda database: self._rows.of(database, list(known.values())))
        absent = [key for key in known if key not in objects.values]
        return _Loaded(objects, proof, absent, Counts(hashed=len(parts) - len(known), absent=len(absent)))

    def _divided(self, keys: Sequence[str], work: Callable[[Sequence[str]], Counts]) -> Counts:
        """Work on all keys, in halves where one of them is impossible: the database surely does not have that one."""
        try:
            return work(keys)
        except BadRecord:
            if len(keys) == 1:
                return self.remove(keys) + Counts(absent=1)
            middle = len(keys) // 2
            return self._divided(keys[:middle], work) + self._divided(keys[middle:], work)

    # --- fills --------------------------------------------------------------------------------------------------------

    def _offer(
        self, objects: Objects, proof: Proof | None, wanted: Mapping[Region, Collection[str]], counts: Counts
    ) -> None:
        """Offer to each region what it wants."""
        for region, keys in wanted.items():
            values = objects.values
            if keys is not values:
                values = {key: values[key] for key in keys if key in values}
            left: Collection[str] = values
            if proof is not None and proof.storable:
                left = self._offer_to(region, values, proof, counts)
            self._target.refused.add(region.name, left)

    def _offer_to(
        self, region: Region, values: Mapping[str, bytes | None], proof: Proof, counts: Counts
    ) -> Collection[str]:
        maker = FillMaker(self._view, region.layout, proof)
        fills: dict[int, list[Fill]] = {}
        for key, payload in values.items():
            if payload is not None and len(payload) > self._target.payload_bytes_max:
                counts[f"oversize {region.name}"] += 1
                continue
            shard, fill = maker.fill(key, payload)
            fills.setdefault(shard, []).append(fill)
        refused: list[str] = []
        for shard, some in fills.items():
            for part in in_scripts(some):
                answers = self._taken(region, shard, part)
                filled = answers.count(_APPLIED)
                superseded = answers.count(_SUPERSEDED)
                counts[f"filled {region.name}"] += filled
                counts[f"superseded {region.name}"] += superseded
                if filled + superseded < len(answers):
                    refused += self._refused(region, part, answers)
        return refused

    def _taken(self, region: Region, shard: int, fills: Sequence[Fill]) -> list[Filled]:
        """The region's answers, once it takes fills of this view at all."""

        def offer() -> list[Filled]:
            answers = region.fill_many(shard, fills)
            if answers[0].outcome is Outcome.COLD:
                raise _Unready(f"region {region.name} is cold: start its worker")
            if answers[0].reason == "closed":
                raise _Unready(f"region {region.name} has view {self._view.name} closed")
            return answers

        return self._patiently(region, offer)

    def _refused(self, region: Region, fills: Sequence[Fill], answers: Sequence[Filled]) -> list[str]:
        reasons = {answer.reason for answer in answers}
        for reason, remedy in _MISMATCHES.items():
            if reason in reasons:
                raise ConfigError(f"region {region.name} refuses every fill of view {self._view.name}: {remedy}")
        return [fill.key for fill, answer in zip(fills, answers, strict=True) if answer.outcome is Outcome.REFUSED]

    def _patiently(self, region: Region, call: Callable[[], T]) -> T:
        return patiently(region.name, call, self._target.stop, self._target.patience_seconds)

    def _wait(self, seconds: float) -> None:
        if self._target.stop.wait(seconds):
            raise Stopped


def patiently(region: str, call: Callable[[], T], stop: threading.Event, patience_seconds: float) -> T:
    """What `call` returns, once the region can be asked. Raises TransientError when patience ends, Stopped."""
    began, (pause, longest) = time.monotonic(), PAUSE_SECONDS
    while True:
        try:
            return call()
        except TransientError as error:
            waited = time.monotonic() - began
            if waited > patience_seconds:
                message = f"{error}: waited {waited:.0f} s for region {region}: run the same command again"
                raise TransientError(message) from error
        if stop.wait(pause):
            raise Stopped
        pause = min(2 * pause, longest)


def is_negative(data: bytes) -> bool:
    """Whether an entry says that the database has no such object."""
    try:
        return entries.decode(data).content is entries.Content.ABSENT
    except BadRecord:
        return False


_APPLIED, _SUPERSEDED = Filled(Outcome.APPLIED), Filled(Outcome.SUPERSEDED)


def by_shard(region: Region, keys: Iterable[str]) -> dict[int, list[str]]:
    """Keys by the shard in which they lie."""
    shards: dict[int, list[str]] = {}
    for key in keys:
        shards.setdefault(region.layout.place(key)[0], []).append(key)
    return shards


def in_scripts(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """Pieces that one script takes."""
    return (items[start : start + SCRIPT_KEYS] for start in range(0, len(items), SCRIPT_KEYS))
