"""What a change is, and where it comes from. The public names; imports nothing else of ours."""

from cdc.errors import BadRecord, ConfigError, FatalError, GapError, StaleproofError, TransientError
from cdc.events import ChangeEvent, Op, Position, Stamp
from cdc.snapshots import Origins, Snapshot

__all__ = [
    "BadRecord",
    "ChangeEvent",
    "ConfigError",
    "FatalError",
    "GapError",
    "Op",
    "Origins",
    "Position",
    "Snapshot",
    "StaleproofError",
    "Stamp",
    "TransientError",
]
