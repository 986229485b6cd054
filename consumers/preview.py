"""What a rebuild would change, and nothing changed: the dry run.

In flow the same objects as into a rebuild; out flow counts per cause, and some keys of each, never values.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import msgspec

from cdc.errors import BadRecord
from consumers.rebuild import Counts, Rebuild, Target, by_shard, in_scripts
from consumers.view_rows import Objects, ViewRows
from invalidator import entry as entries
from invalidator.loading import Proof, ProvenSource
from invalidator.region import Region

SAMPLES = 5
SECOND_LOOK_SECONDS = 1.0
"""An entry that differs may be on its way out: the change of its row is in the stream. It is looked at once more."""


class Samples:
    """Some keys per cause and region. Thread-safe."""

    def __init__(self) -> None:
        self.keys: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def add(self, cause: str, keys: Iterable[str]) -> None:
        """Keep the first few."""
        with self._lock:
            kept = self.keys.setdefault(cause, [])
            kept += list(keys)[: SAMPLES - len(kept)]


class Preview(Rebuild):
    """Stands in for a rebuild, and only looks.

    Counts `<cause> <region>`, of keys: missing, same, differs (from the database, at two looks), extra (an entry of
    what the database does not have), closed and cold (no entry of the view can be served now).
    """

    def __init__(self, rows: ViewRows, source: ProvenSource, target: Target, samples: Samples) -> None:
        super().__init__(rows, source, target)
        self._samples = samples

    def fill(self, objects: Objects, proof: Proof | None) -> Counts:  # noqa: ARG002 - nothing is written
        """Compare."""
        counts = Counts(read=len(objects.values), keyless=objects.keyless)
        for region in self._target.regions:
            differing = self._compare(region, objects, counts)
            if differing:
                self._wait(SECOND_LOOK_SECONDS)
                again = self._load_keys(differing)
                still = self._compare(region, again.objects, counts)
                told = {*again.objects.values, *again.absent}
                hashed = [key for key in differing if key not in told]  # they cannot be asked for: one look has to do
                self._note("differs", region, still + hashed, counts)
        return counts

    def remove(self, keys: Sequence[str], *, keep_negative: bool = True) -> Counts:  # noqa: ARG002 - neither is extra
        """Look which of them have an entry that says something else than that there is no such object."""
        counts = Counts()
        for region in self._target.regions:
            found = self._entries(region, keys, Counts())
            extra = [key for key, payload in found.items() if payload is not None and payload != b""]
            self._note("extra", region, extra, counts)
        return counts

    def _compare(self, region: Region, objects: Objects, counts: Counts) -> list[str]:
        """Count what is missing or the same; out come keys that differ."""
        found = self._entries(region, objects.values, counts)
        missing = [key for key, payload in found.items() if payload is None]
        self._note("missing", region, missing, counts)
        differing = [
            key for key, payload in found.items() if payload is not None and not _same(payload, objects.values[key])
        ]
        counts[f"same {region.name}"] += len(found) - len(missing) - len(differing)
        return differing

    def _entries(self, region: Region, keys: Iterable[str], counts: Counts) -> dict[str, bytes | None]:
        """The payload of each entry that can be served, b"" for a negative one, None where there is none."""
        found: dict[str, bytes | None] = {}
        for shard, some in by_shard(region, keys).items():
            for part in in_scripts(some):
                looked = self._patiently(
                    region,
                    lambda: region.look(shard, part, self._view.name, self._view.digest),  # noqa: B023 - called at once
                )
                if looked.status != "OPEN":
                    counts[f"{looked.status.lower()} {region.name}"] += len(part)
                    continue
                found |= zip(part, map(_payload, looked.entries), strict=True)
        return found

    def _note(self, cause: str, region: Region, keys: Sequence[str], counts: Counts) -> None:
        counts[f"{cause} {region.name}"] += len(keys)
        self._samples.add(f"{cause} {region.name}", keys)


def _payload(data: bytes | None) -> bytes | None:
    if data is None:
        return None
    try:
        return entries.decode(data).payload
    except BadRecord:
        return b"not an entry"


def _same(payload: bytes, value: bytes | None) -> bool:
    if not payload or value is None:
        return not payload and value is None
    try:
        return _told_apart(msgspec.json.decode(payload)) == _told_apart(msgspec.json.decode(value))
    except msgspec.DecodeError:
        return False


def _told_apart(value: object) -> object:
    """As it is, but that `true` is not 1, which Python takes for equal."""
    match value:
        case bool():
            return (value,)
        case list():
            return [_told_apart(item) for item in value]
        case dict():
            return {name: _told_apart(item) for name, item in value.items()}
    return value
