"""Every metric of every process, declared in one place; units last.

Labels are few and bounded: table names come from the publication, regions from the settings.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CAPTURE_RECORDS = Counter("staleproof_capture_records", "Records handed to Kafka, null records included", ["topic"])
CAPTURE_TRANSACTIONS = Counter("staleproof_capture_transactions", "Committed transactions read from the log")
CAPTURE_IGNORED_MESSAGES = Counter(
    "staleproof_capture_ignored_messages", "Logical messages in the log that are no heartbeat of this process"
)
CAPTURE_HEARTBEATS = Counter("staleproof_capture_heartbeats", "Heartbeats published to the control topic")
CAPTURE_HEARTBEAT_FAILURES = Counter("staleproof_capture_heartbeat_failures", "Heartbeats that were not committed")
CAPTURE_HEARTBEAT_TIME = Gauge(
    "staleproof_capture_heartbeat_timestamp_seconds", "Database's clock in the newest published heartbeat"
)
CAPTURE_COMMIT_TIME = Gauge(
    "staleproof_capture_commit_timestamp_seconds", "Database's clock at the newest commit read from the log"
)
CAPTURE_ACK_LAG = Gauge("staleproof_capture_ack_lag_bytes", "Log read but not acknowledged to the source")
CAPTURE_INFLIGHT = Gauge("staleproof_capture_inflight_records", "Records that Kafka has not acknowledged")
CAPTURE_QUEUE_FULL = Counter("staleproof_capture_queue_full", "Times that capture had to wait for Kafka")
CAPTURE_EPOCHS = Counter("staleproof_capture_epochs", "New epochs: changes before them may have been lost")
CAPTURE_RESTARTS = Counter("staleproof_capture_restarts", "Times that the stream was opened again after a failure")

CAPTURE_DDL = Counter("staleproof_capture_ddl", "Tables whose views were closed because of DDL", ["table"])
CAPTURE_SCHEMA_FAILURES = Counter(
    "staleproof_capture_schema_failures", "Times that the tables' definitions could not be read"
)


class WorkerMetrics:
    """Metrics of `staleproof invalidate`; several workers may live in one process, each on a registry of its own."""

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
        self.plain_unlinked = counter("plain_unlinked", "keys of plain views that were there and are removed", "cause")
        self.raises = counter("raises", "views raised", "view")
        self.closings = counter("closings", "scopes closed", "cause")
        self.moves = counter("moves", "times the region stood elsewhere than believed", "cause")
        self.cold_starts = counter("cold_starts", "shards created")
        self.alarms = counter("alarms", "gaps and closings that a person should hear of", "kind")
        self.quarantined = counter("records_quarantined", "records set aside after their scope was fenced")
        self.retries = counter("retries", "turns that ended in a passing fault")
        self.closed_scopes = gauge("closed_scopes", "scopes that cannot be filled now")
        self.watermark_ms = gauge("watermark_ms", "database time up to which everything is applied, ms since 1970")
        self.script_seconds = Histogram(
            "staleproof_worker_script_seconds", "one apply script, round trip", registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0),
        )  # fmt: skip
