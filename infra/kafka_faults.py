"""What can befall a partition's log, on purpose: its newest records vanish, as when a broker without them is elected.

stack.processes["kafka"].kill()
cut_log(stack.directory / "kafka" / "data", "app.public.contacts", 0, end=100)
stack.processes["kafka"].start()    # a new leader epoch; the next record takes offset 100 again
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.processes import StackError

_BATCH_START: Final = struct.Struct(">qi")  # base offset; bytes that follow
_LAST_OFFSET_DELTA: Final = struct.Struct(">i")
_LAST_OFFSET_DELTA_AT: Final = 23

# What a broker would otherwise believe without looking: that it stopped in order, and how far the log was safe.
_MARKS: Final = (
    ".kafka_cleanshutdown",
    "recovery-point-offset-checkpoint",
    "replication-offset-checkpoint",
    "log-start-offset-checkpoint",
)


def cut_log(data: Path, topic: str, partition: int, end: int) -> None:
    """Remove every record batch of the partition that holds offset `end` or a later one. The broker must not run.

    Only the newest segment is looked at. Raises StackError when nothing is there to be removed.
    """
    directory = data / f"{topic}-{partition}"
    segment = max(directory.glob("*.log"))
    log = segment.read_bytes()
    keep = next((place for place, last in _batches(log) if last >= end), None)
    if keep is None:
        raise StackError(f"{segment} holds no record at {end} or later: cut at an earlier offset")
    segment.write_bytes(log[:keep])
    for path in directory.iterdir():  # they speak of what is gone; the broker makes them again
        if path.suffix in (".index", ".timeindex", ".txnindex", ".snapshot"):
            path.unlink()
    for name in _MARKS:
        (data / name).unlink(missing_ok=True)


def _batches(log: bytes) -> Iterator[tuple[int, int]]:
    """Where each record batch begins in the file, and its last offset."""
    place = 0
    while place + _BATCH_START.size <= len(log):
        base, size = _BATCH_START.unpack_from(log, place)
        if size == 0:  # a file may be longer than what was written
            return
        (delta,) = _LAST_OFFSET_DELTA.unpack_from(log, place + _LAST_OFFSET_DELTA_AT)
        yield place, base + delta
        place += _BATCH_START.size + size
