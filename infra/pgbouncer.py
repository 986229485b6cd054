"""A real PgBouncer in front of one PostgreSQL, in transaction mode: another server connection for each transaction.

    with PgBouncer.start(stack) as pooler:
        psycopg.connect(pooler.dsn("app"), prepare_threshold=None)

No wheel carries the program. It is taken from PATH, else from Debian's package, which is unpacked below a directory
together with the libraries that this machine lacks; nothing is installed.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

import psycopg

from infra import postgres
from infra.prerequisites import MissingPrerequisite
from infra.processes import NotReady, Server, ServerProcess, StackError, free_port
from infra.stack import DEFAULT_DIRECTORY, Stack

ADMIN_DATABASE: Final = "pgbouncer"
SYSTEM_PATH: Final = "/usr/sbin"  # where Debian puts it, and where only root's PATH looks
FETCH_LIMIT_SECONDS: Final = 300.0

# Two server connections at most, taken in turn: what one transaction left behind is not there in the next one.
SETTINGS: Final[Mapping[str, str]] = {
    "pool_mode": "transaction",
    "default_pool_size": "2",
    "server_round_robin": "1",
    "auth_type": "any",  # loopback only, as for the other servers: a stack for development
    "unix_socket_dir": "",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PgBouncer:
    """A running pooler; made by `start`."""

    process: ServerProcess
    port: int

    @classmethod
    @contextmanager
    def start(
        cls,
        stack: Stack,
        *,
        target_port: int | None = None,
        settings: Mapping[str, str] | None = None,
        directory: Path = DEFAULT_DIRECTORY / "pgbouncer",
    ) -> Iterator[Self]:
        """One before the stack's PostgreSQL, or before whatever listens on `target_port` of this machine.

        `settings` overrule ours. Its files are kept in `directory`. Raises MissingPrerequisite and StackError.
        """
        program, libraries = find(directory)
        primary = stack.processes["postgres"]
        port = free_port()
        place = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=stack.directory))
        values = {"listen_addr": "127.0.0.1", "listen_port": str(port), **SETTINGS, **(settings or {})}
        server = Server(
            name=place.name,
            command=_command(program, place, config_text(values, target_port or stack.ports["postgres"])),
            directory=place,
            log=primary.server.log.with_name(f"{place.name}.log"),
            ask=partial(_ask, port),
            environment={"LD_LIBRARY_PATH": ":".join(map(str, libraries))} if libraries else {},
        )
        process = primary.beside(server)
        try:
            process.start()
            yield cls(process=process, port=port)
        finally:
            process.kill()
            shutil.rmtree(place, ignore_errors=True)

    def dsn(self, database: str = postgres.DATABASE) -> str:
        """The libpq URI of one database behind it."""
        return postgres.dsn(self.port, database)


def config_text(values: Mapping[str, str], target_port: int) -> str:
    """Return a pgbouncer.ini. Every database is one of the target's, and everybody is its superuser."""
    target = f"* = host=127.0.0.1 port={target_port} user={postgres.SUPERUSER}"
    return "\n".join(
        ["[databases]", target, "[pgbouncer]", *(f"{name} = {value}" for name, value in values.items()), ""]
    )


def _command(program: Path, place: Path, config: str) -> tuple[str, ...]:
    user = postgres.unprivileged_user()
    file = place / "pgbouncer.ini"
    file.write_text(config, encoding="utf-8")
    # It refuses to be root, and becomes another user by itself once it has read its file.
    return (str(program), "-q", *(("-u", user.name) if user else ()), str(file))


def _ask(port: int) -> None:
    """Ask its console; NotReady when there is no answer."""
    try:
        dsn = postgres.dsn(port, ADMIN_DATABASE)
        with psycopg.connect(dsn, connect_timeout=postgres.ASK_LIMIT_SECONDS, autocommit=True) as console:
            console.execute("SHOW VERSION")
    except psycopg.OperationalError as error:
        raise NotReady(str(error).strip().replace("\n", " ")) from error


# --- the program ------------------------------------------------------------------------------------------------------


def find(directory: Path) -> tuple[Path, list[Path]]:
    """Return PgBouncer and the directories of its libraries: from PATH, else from Debian's package in `directory`.

    Raises MissingPrerequisite.
    """
    on_path = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), SYSTEM_PATH]))
    if on_path is not None:
        return Path(on_path), []
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "fetch.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        root = directory / "root"
        if not root.exists():
            _unpack(directory, root)
    return root / "usr" / "sbin" / "pgbouncer", sorted({path.parent for path in root.glob("**/*.so.*")})


def missing_packages(told: str) -> list[str]:
    """Read out of `apt-get install --simulate` what is not on this machine: PgBouncer itself and libraries."""
    return [name for name in re.findall(r"^Inst (\S+)", told, re.MULTILINE) if name.startswith(("pgbouncer", "lib"))]


def _unpack(directory: Path, root: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MissingPrerequisite("PgBouncer is missing: install it, so that `pgbouncer` is on PATH.")
    own_lists = directory / "lists"
    (own_lists / "partial").mkdir(parents=True, exist_ok=True)
    fresh = directory / "root.new"
    # What apt knows on this machine may be nothing, or old: then it asks once more, for us alone.
    complaint: StackError | None = None
    for options in ([], ["-o", f"Dir::State::Lists={own_lists.resolve()}"]):
        shutil.rmtree(fresh, ignore_errors=True)  # what an interrupted start left
        fresh.mkdir()
        try:
            if options:
                _run(["apt-get", "-q", *options, "update"], fresh)
            told = _run(["apt-get", *options, "install", "--simulate", "--no-install-recommends", "pgbouncer"], fresh)
            _run(["apt-get", "-q", *options, "download", *missing_packages(told)], fresh)
            for package in fresh.glob("*.deb"):
                _run(["dpkg-deb", "--extract", package.name, "."], fresh)
                package.unlink()
        except StackError as error:
            complaint = error
        else:
            fresh.rename(root)
            return
    raise MissingPrerequisite(
        f"PgBouncer is missing, and Debian's package could not be fetched ({complaint}):"
        " install it with `apt-get install pgbouncer`."
    )


def _run(command: Sequence[str], place: Path) -> str:
    """What it printed. Raises StackError with the last thing that it complained of."""
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"{command[0]} did not end within {FETCH_LIMIT_SECONDS:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise StackError(f"{command[0]} ended with status {done.returncode}: {said[-1] if said else 'without a word'}")
    return done.stdout
