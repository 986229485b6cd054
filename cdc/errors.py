"""Errors, named by what to do about them.

StaleproofError
 +-- TransientError     try again: a server is away, a leader moves, a reply was lost
 +-- BadRecord          set this record aside after its scope was fenced; the stream goes on
 +-- GapError           changes may have been lost: close the scope, raise an alarm, go on from the end
 +-- FatalError         stop the process: only a person can mend it
      +-- ConfigError   a setting, a view or a precondition is wrong; names the place and the remedy
"""

from __future__ import annotations


class StaleproofError(Exception):
    """Root of every error that staleproof raises on purpose."""


class TransientError(StaleproofError):
    """The same action may succeed later without anyone's help."""


class BadRecord(StaleproofError):
    """One record cannot be understood; its scope has to be fenced before it is set aside."""


class GapError(StaleproofError):
    """Changes may have been lost between two points of the stream."""


class FatalError(StaleproofError):
    """Going on would be wrong or useless; the message carries the remedy."""


class ConfigError(FatalError):
    """A setting, a view or a precondition is wrong; the message names file, line or statement."""
