"""What Redis says when it does not do what it was told, and what is done about it. Pure: a table and two questions.

| remedy | means |
|---|---|
| RETRY | wait and send it again: it passes by itself |
| RECONNECT | drop the connections first: another node may be the primary now |
| RELOAD | load the function library, then send it again |
| STOP | only a person can mend it |

Every remedy but RELOAD raises an alarm when it begins: meanwhile the region does not follow.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Remedy(StrEnum):
    """What to do about an error."""

    RETRY = "retry"
    RECONNECT = "reconnect"
    RELOAD = "reload"
    STOP = "stop"


class Fault(NamedTuple):
    """An error by the beginning of its text, what to do, and what to tell the operator."""

    kind: str
    remedy: Remedy
    hint: str


FAULTS = (
    Fault("LOADING", Remedy.RETRY, "redis loads its data; readers bypass until it has"),
    Fault("BUSY", Remedy.RETRY, "another script runs for too long: find it with SCRIPT KILL or FUNCTION KILL"),
    Fault("OOM", Remedy.RETRY, "redis is full: raise maxmemory; stale entries are removed all the same"),
    Fault("MISCONF", Remedy.RETRY, "redis cannot save and refuses writes: look at its log and its disk"),
    Fault("NOREPLICAS", Remedy.RETRY, "too few replicas follow: see min-replicas-to-write"),
    Fault("TRYAGAIN", Remedy.RETRY, "a slot is being moved"),
    Fault("READONLY", Remedy.RECONNECT, "this node is a replica now"),
    Fault("MASTERDOWN", Remedy.RECONNECT, "this replica has lost its primary"),
    Fault("CLUSTERDOWN", Remedy.RECONNECT, "the cluster has no majority or not all slots"),
    Fault("MOVED", Remedy.RECONNECT, "the slot lives on another node; of a cluster, set topology: cluster"),
    Fault("ASK", Remedy.RECONNECT, "the slot is being moved to another node"),
    Fault("UNBLOCKED", Remedy.RECONNECT, "the node's role changed"),
    Fault("NOAUTH", Remedy.STOP, "set the region's username and password"),
    Fault("WRONGPASS", Remedy.STOP, "correct the region's username and password"),
    Fault("NOPERM", Remedy.STOP, "grant the user what `staleproof acl` prints"),
    Fault("NOPROTO", Remedy.STOP, "use Redis 7.0 or Valkey 7.2, or newer"),
    Fault("WRONGTYPE", Remedy.STOP, "another application wrote under our keys: choose another prefix"),
    Fault("STALEPROOF", Remedy.STOP, "the shard was written by another version: upgrade, or choose another prefix"),
)

LIBRARY_MISSING = Fault("NOFUNCTION", Remedy.RELOAD, "the function library is not loaded")
UNANSWERED = Fault(
    "UNANSWERED", Remedy.RETRY, "redis does not answer in time; what was sent may still run, and is safe"
)
UNREACHABLE = Fault("UNREACHABLE", Remedy.RECONNECT, "redis cannot be reached")
NO_CLUSTER = Fault("NOCLUSTER", Remedy.STOP, "set the region's topology: single, or name nodes of a cluster")
DENIED = next(fault for fault in FAULTS if fault.kind == "NOPERM")
_DENIED_IN_A_SCRIPT = ("ACL failure in script", "The user executing the script can't")  # the latter of Redis 7.0
UNKNOWN = Fault("UNKNOWN", Remedy.STOP, "please report this")


def judge(text: str) -> Fault:
    """The fault behind an error reply. One of a script is wrapped in the server's own words; the code inside counts."""
    if "Function not found" in text:
        return LIBRARY_MISSING
    if "cluster support disabled" in text:
        return NO_CLUSTER
    if any(words in text for words in _DENIED_IN_A_SCRIPT):
        return DENIED
    words = text.replace("'", " ").replace(":", " ").split()
    first = words[0].removeprefix("-") if words else ""
    for fault in FAULTS:
        if first == fault.kind:
            return fault
    if first == "ERR":  # e.g. "ERR OOM command not allowed ... script: sp1_fill": the code stands within
        return next((fault for fault in FAULTS if fault.kind in words), UNKNOWN)
    return UNKNOWN
