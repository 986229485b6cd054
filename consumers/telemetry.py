"""Every metric of every process, declared in one place; units last.

Labels are few and bounded: table names come from the publication, regions from the settings.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge

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
