"""A streaming standby of the stack's PostgreSQL, which can lag on purpose and be promoted.

    with Standby.start(stack) as standby:
        standby.pause_replay()      # receives the log and shows nothing of it
        ...
        standby.promote()           # a new timeline: another history

It ends with its block, or with the stack.
"""

import dataclasses
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from infra import postgres
from infra.processes import ServerProcess, StackError, User, free_port, wait_for
from infra.stack import Stack

BACKUP_LIMIT_SECONDS: Final = 120.0
REPLAY_LIMIT_SECONDS: Final = 30.0
PROMOTE_LIMIT_SECONDS: Final = 60

# Queries here are never cancelled for the sake of replay: a test may hold an old snapshot as long as it likes.
SETTINGS: Final = {"hot_standby": "on", "max_standby_streaming_delay": "-1", "wal_receiver_status_interval": "100ms"}

_serial = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Standby:
    """A running standby; made by `start`. Every call has a deadline and raises StackError or psycopg.Error."""

    process: ServerProcess
    port: int
    primary_port: int

    @classmethod
    @contextmanager
    def start(cls, stack: Stack) -> Iterator[Self]:
        """Copy the stack's PostgreSQL as it is now, and follow it."""
        primary = stack.processes["postgres"]
        name = f"postgres-standby-{next(_serial)}"
        place, user = primary.server.directory / name, primary.server.user
        home = Path(primary.server.command[0]).parent.parent
        port, primary_port = free_port(), stack.ports["postgres"]
        log = primary.server.log.with_name(f"{name}.log")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        if user is not None:
            os.chown(place, user.uid, user.gid)
        _copy(home=home, place=place, user=user, log=log, primary_port=primary_port)
        with (place / "data" / "postgresql.conf").open("a", encoding="utf-8") as config:
            config.write(postgres.config_text({**SETTINGS, "port": str(port)}))  # the last one counts
        server = postgres.server(home=home, place=place, user=user, log=log, port=port)
        process = primary.beside(dataclasses.replace(server, name=name))
        try:
            process.start()
            yield cls(process=process, port=port, primary_port=primary_port)
        finally:
            process.kill()
            shutil.rmtree(place, ignore_errors=True)

    def dsn(self, database: str = postgres.DATABASE) -> str:
        """The superuser's libpq URI of one database."""
        return postgres.dsn(self.port, database)

    def pause_replay(self) -> None:
        """Show nothing new from here on; the log is still received."""
        self._ask("SELECT pg_wal_replay_pause()")
        wait_for(
            lambda: self._ask("SELECT pg_get_wal_replay_pause_state()") == "paused",
            f"{self.process.name} still replays",
            REPLAY_LIMIT_SECONDS,
        )

    def resume_replay(self) -> None:
        """Go on; see `wait_replayed`."""
        self._ask("SELECT pg_wal_replay_resume()")

    def wait_replayed(self) -> None:
        """Wait until every commit that the primary has flushed by now is visible here."""
        with psycopg.connect(postgres.dsn(self.primary_port), autocommit=True) as primary:
            # Not the insert position: what an open transaction has logged may stay unsent for many seconds.
            (end,) = primary.execute("SELECT pg_current_wal_flush_lsn()").fetchone() or ("",)
        wait_for(
            lambda: self._ask("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", end) is True,
            f"{self.process.name} has not replayed {end}",
            REPLAY_LIMIT_SECONDS,
        )

    def promote(self) -> None:
        """Become a primary, on a new timeline. The old primary is left alone; connections to this server stay open."""
        if not self._ask("SELECT pg_promote(true, %s)", PROMOTE_LIMIT_SECONDS):
            raise StackError(f"{self.process.name} was not promoted in time: see {self.process.server.log}")

    def _ask(self, question: str, *arguments: object) -> Any:
        with psycopg.connect(self.dsn(), autocommit=True, connect_timeout=postgres.ASK_LIMIT_SECONDS) as connection:
            (answer,) = connection.execute(question.encode(), arguments).fetchone() or (None,)
            return answer


def _copy(*, home: Path, place: Path, user: User | None, log: Path, primary_port: int) -> None:
    """Take a base backup that is a standby of the primary."""
    ids = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    with log.open("ab") as sink:
        done = subprocess.run(
            [
                *(str(home / "bin" / "pg_basebackup"), "-D", str(place / "data")),
                *("-d", postgres.dsn(primary_port, postgres.SUPERUSER)),
                *("--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"),
            ],
            cwd=place,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            timeout=BACKUP_LIMIT_SECONDS,
            check=False,
            **ids,  # type: ignore[call-overload]
        )
    if done.returncode != 0:
        raise StackError(f"pg_basebackup ended with status {done.returncode}: see {log}")
