"""How far the regions are, read raw: open scopes and watermarks. What the live view shows and the drain waits for."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import redis

from invalidator.layout import Layout


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One region: whether all of it can be read, and its watermark. `lsn` and `time_ms` 0 before the first."""

    open: bool = False
    lsn: int = 0
    time_ms: int = 0


class RegionWatch:
    """Asks every region where it stands."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._clients = {
            name: redis.Redis.from_url(url, socket_timeout=5.0, decode_responses=True) for name, url in urls.items()
        }

    def standings(self) -> dict[str, Standing]:
        """Each region's standing now."""
        return {name: standing(client.hgetall(Layout().header_key(0))) for name, client in self._clients.items()}  # type: ignore[arg-type]

    def flush(self) -> None:
        """Empty the regions: an earlier run may have left entries."""
        for client in self._clients.values():
            client.flushall()

    def is_open(self) -> bool:
        """Whether every region serves."""
        return all(standing.open for standing in self.standings().values())

    def has_passed(self, lsn: int) -> bool:
        """Whether every region has applied all that was committed before `lsn`."""
        return all(standing.lsn > lsn for standing in self.standings().values())


def standing(header: Mapping[str, str]) -> Standing:
    """The standing that a shard's header shows. A watermark is a position (epoch, LSN, order) and milliseconds."""
    scopes = [text for name, text in header.items() if name.startswith("s:")]
    watermark = header.get("w", "")
    return Standing(
        open=bool(scopes) and all(text.startswith("o") for text in scopes) and bool(watermark),
        lsn=int(watermark[8:24] or "0", 16),
        time_ms=int(watermark[32:44] or "0", 16),
    )
