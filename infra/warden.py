"""The warden: a small program that stops a stack's servers when the process that started them is gone.

It holds the read end of a pipe whose only lasting writer is that process, so the pipe closes however the process ends,
kill -9 included. (PR_SET_PDEATHSIG would not do: it follows the parent's *thread* and is cleared by setuid.)
Each server announces itself on the pipe before it becomes the server, so none can start unseen. The rule of this
module: a process is signalled only after it was recognised by pid *and* start time. Standard library only, because the
file is also run by its path, isolated from every environment.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

STOP_LIMIT_SECONDS = 5.0
"""How long servers may take to stop once their owner is gone; then they are killed."""

POLL_SECONDS = 0.02


class Identity(NamedTuple):
    """One process: a pid alone may already belong to somebody else."""

    pid: int
    started_ticks: int


class _Row(NamedTuple):
    parent: int
    state: str
    started_ticks: int


def _row(stat: str) -> _Row:
    # The command name, in parentheses, may itself hold spaces and parentheses: cut after the last one. Then proc(5)'s
    # fields from the third on: state, parent, ..., and the start time, in clock ticks since boot, as the 22nd.
    fields = stat[stat.rindex(")") + 2 :].split()
    return _Row(parent=int(fields[1]), state=fields[0], started_ticks=int(fields[19]))


def _read(pid: int) -> _Row | None:
    try:
        row = _row(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if row.state in "ZX" else row


def identify(pid: int) -> Identity | None:
    """Return the identity of a live process, None where there is none (a zombie counts as gone)."""
    row = _read(pid)
    return None if row is None else Identity(pid, row.started_ticks)


def is_alive(identity: Identity) -> bool:
    """Tell whether this very process still runs."""
    return identify(identity.pid) == identity


def tree(root: Identity) -> list[Identity]:
    """Return the process and its living descendants, parents first; empty when it is gone."""
    if not is_alive(root):
        return []
    children: dict[int, list[Identity]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (row := _read(int(entry.name))) is not None:
            children.setdefault(row.parent, []).append(Identity(int(entry.name), row.started_ticks))
    found = [root]
    for identity in found:  # grows while it is walked
        found.extend(children.get(identity.pid, ()))
    return found


def send(identities: Iterable[Identity], number: signal.Signals) -> None:
    """Send a signal to each process that still is the one it was."""
    for identity in identities:
        if is_alive(identity):
            try:
                os.kill(identity.pid, number)
            except ProcessLookupError:
                continue  # it ended between the two calls, which is what a signal could at best have led to


def wait_gone(identities: Iterable[Identity], limit_seconds: float) -> list[Identity]:
    """Wait until the processes are gone; return those that still run at the deadline."""
    deadline = time.monotonic() + limit_seconds
    left = list(identities)
    while (left := [identity for identity in left if is_alive(identity)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left


def stop(roots: Iterable[tuple[Identity, signal.Signals]], limit_seconds: float = STOP_LIMIT_SECONDS) -> None:
    """Stop processes and all their descendants: each by its signal, paused or not, and by SIGKILL at the deadline."""
    everyone: list[Identity] = []
    for root, number in roots:
        members = tree(root)
        everyone.extend(members)
        send(members if number == signal.SIGKILL else members[:1], number)
        send(members, signal.SIGCONT)
    left = wait_gone(everyone, limit_seconds)
    send(left, signal.SIGKILL)
    wait_gone(left, limit_seconds)


def _watch(announcements: Iterable[str]) -> list[tuple[Identity, signal.Signals]]:
    """Collect "<pid> <signal>" lines until the pipe closes."""
    roots: dict[int, tuple[Identity, signal.Signals]] = {}
    for line in announcements:
        pid, number = map(int, line.split())
        identity = identify(pid)
        if identity is not None:
            roots[pid] = (identity, signal.Signals(number))
    return list(roots.values())


def main() -> None:
    """Watch standard input; when it closes, stop what was announced on it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the pipe ends a warden
    stop(_watch(sys.stdin))


if __name__ == "__main__":
    main()
