"""Every metric, declared once; units last. A process makes the set it needs on its own registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class WorkerMetrics:
    """Metrics of `staleproof invalidate`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"staleproof_worker_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"staleproof_worker_{name}", text, registry=registry)

        self.records = counter("records", "records applied or ignored by rule")
        self.invalidations = counter("invalidations", "keys that changed")
        self.unlinked = counter("entries_unlinked", "entries removed")
        self.kept = counter("entries_kept", "entries that were proven to show the change already")
        self.written = counter("entries_written", "entries refreshed")
        self.raises = counter("raises", "views raised", "view")
        self.closings = counter("closings", "scopes closed", "cause")
        self.moves = counter("moves", "times the region stood elsewhere than believed", "cause")
        self.cold_starts = counter("cold_starts", "shards created")
        self.alarms = counter("alarms", "gaps and closings that a person should hear of", "kind")
        self.quarantined = counter("records_quarantined", "records set aside after their scope was fenced")
        self.retries = counter("retries", "turns that ended in a passing fault")
        self.closed_scopes = gauge("closed_scopes", "scopes that cannot be filled now")
        self.watermark_ms = gauge("watermark_ms", "database time up to which everything is applied, ms since 1970")
        self.last_pass = gauge("last_pass_seconds", "when the watermark last moved, seconds since 1970")
        self.last_turn = gauge("last_turn_seconds", "when the loop last turned, seconds since 1970")
        self.script_seconds = Histogram(
            "staleproof_worker_script_seconds", "one apply script, round trip", registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0),
        )  # fmt: skip
