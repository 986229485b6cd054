"""Alarms: what a person should hear of. A log line at error level, a metric, and a reason not to rely on the region.

In flow kind and reason; a kind is a constant, a reason never holds a row's value.
"""

from __future__ import annotations

from enum import StrEnum

import structlog

from consumers.telemetry import WorkerMetrics

log = structlog.get_logger()


class Alarm(StrEnum):
    """Kinds of alarm of a worker."""

    GAP = "gap"
    """Changes may have been lost between Kafka and the region: the region is closed."""
    EPOCH = "epoch"
    """A new history of the source began: the region is closed."""
    CLOSED = "closed"
    """Views were closed: records that name no stamp, or a table that is not captured."""
    ORDERED = "ordered"
    """An operator, or the source watch, ordered a scope to be fenced."""
    UNDECODABLE = "undecodable"
    """A record was set aside after its keys or views were fenced."""
    FORGED = "forged"
    """A record claims a stamp, position or epoch that cannot exist yet; handled as one that cannot be read."""
    TRUNCATE = "truncate"
    """A table was emptied: every entry of its views reloads."""
    MASS_CHANGE = "mass_change"
    """One transaction changed so many keys of a view that the whole view was raised."""
    REWOUND = "rewound"
    """The region's Redis forgot what it had acknowledged: it is brought forward again."""
    DISPLACED = "displaced"
    """Another worker moved rows that this one believed its own: a long pause, or other views."""
    LOST = "lost"
    """A shard is gone: the region starts cold."""
    GUARD_LOST = "guard_lost"
    """The fence hash was gone, evicted for instance: fills are refused until it is proven again."""
    STUCK = "stuck"
    """Scopes stay closed: no heartbeats come, or one row never reaches their barriers."""
    REDIS = "redis"
    """The region's Redis does not answer, or refuses to write."""


class Alarms:
    """Raises alarms of one region."""

    def __init__(self, region: str, metrics: WorkerMetrics) -> None:
        self._region = region
        self._metrics = metrics

    def up(self, kind: Alarm, reason: str, **details: object) -> None:
        """Tell a person."""
        self._metrics.alarms.labels(kind=kind.value).inc()
        log.error("alarm", region=self._region, kind=kind.value, reason=reason, **details)
