"""The local stack: PostgreSQL, Kafka and one Redis per region as native processes on loopback.

    with Stack.start(Path(".staleproof")) as stack:
        stack.postgres_dsn, stack.kafka_bootstrap, stack.redis_urls["eu"], stack.processes["redis-eu"].pause()

`python -m infra.stack up|down|status` does the same for a person. Its servers are open to everybody on this machine
(no passwords, loopback only): the stack is for development and tests, with data that nobody minds losing.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, NoReturn, Self

from infra import broker, cache, postgres, prerequisites, warden
from infra.prerequisites import MissingPrerequisite, Programs
from infra.processes import NotReady, Server, ServerProcess, StackError, Warden, choose_ports
from infra.warden import Identity

__all__ = ["DEFAULT_DIRECTORY", "DEFAULT_PORTS", "MissingPrerequisite", "Stack", "StackError", "main"]

_CHECKOUT: Final = Path(__file__).resolve().parent.parent
DEFAULT_DIRECTORY: Final = (_CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()) / ".staleproof"

# What compose.yaml publishes and `up` prefers; it takes other ports where these are in use. Not the servers' usual
# ports: those belong to what may be installed already.
DEFAULT_PORTS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "postgres": 15432,
        "kafka": 19092,
        "kafka-controller": 19093,
        "redis-eu": 16379,
        "redis-us": 16380,
        "redis-ap": 16381,
    }
)

LOCK_LIMIT_SECONDS: Final = 3 * warden.STOP_LIMIT_SECONDS  # a killed owner's warden holds the lock while it cleans up
DOWN_LIMIT_SECONDS: Final = 60.0
WAIT_POLL_SECONDS: Final = 0.05

EXIT_DOWN: Final = 1
EXIT_MISSING: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """A running stack. Whatever ends its owner ends its servers: `stop`, leaving `with`, an exit, kill -9."""

    directory: Path
    postgres_dsn: str
    """Superuser's libpq URI; the database is `app`."""
    kafka_bootstrap: str
    redis_urls: Mapping[str, str]
    """Region -> URL."""
    ports: Mapping[str, int]
    processes: Mapping[str, ServerProcess]
    """`postgres`, `kafka` and `redis-<region>`: pid, kill, pause, resume, stop, start, restart."""
    _close: Callable[[], None] = field(repr=False)

    @classmethod
    def start(
        cls,
        directory: Path = DEFAULT_DIRECTORY,
        regions: Sequence[str] = cache.REGIONS,
        *,
        durable: bool = False,
        postgres_settings: Mapping[str, str] | None = None,
        kafka_settings: Mapping[str, str] | None = None,
        redis_settings: Mapping[str, str] | None = None,
        preferred_ports: Mapping[str, int] | None = None,
        kafka_libs: Path = DEFAULT_DIRECTORY / "kafka" / "libs",
        redis_server: Path | None = None,
    ) -> Self:
        """Start every server, in parallel, on the data kept in `directory`, and wait until each answers.

        Settings overrule ours, name by name. Ports are those of the directory's last start where still free, else the
        preferred ones, else any. `durable` makes PostgreSQL survive a crash of the machine, at the price of its fsyncs.
        Raises MissingPrerequisite, and StackError when a server does not start (nothing is left running then).
        """
        programs = prerequisites.find(kafka_libs=kafka_libs, redis_server=redis_server)
        with ExitStack() as undo:
            directory = directory.resolve()
            (directory / "logs").mkdir(parents=True, exist_ok=True)
            lock = undo.enter_context(_locked(directory))
            guard = Warden(log=_log(directory, "warden"), hold=(lock,))
            undo.callback(guard.close)
            ports = _choose_ports(directory, regions, preferred_ports or {})
            launches = [
                _launch_postgres(directory, programs, ports["postgres"], postgres_settings or {}, durable=durable),
                _launch_kafka(directory, programs, ports, kafka_settings or {}),
                *(_launch_redis(directory, programs, ports, region, redis_settings or {}) for region in regions),
            ]
            processes = _start(launches, guard)
            undo.callback(_stop, processes.values())
            return cls(
                directory=directory,
                postgres_dsn=postgres.dsn(ports["postgres"]),
                kafka_bootstrap=broker.bootstrap(ports["kafka"]),
                redis_urls=MappingProxyType({name: cache.url(ports[cache.process_name(name)]) for name in regions}),
                ports=MappingProxyType(ports),
                processes=MappingProxyType(processes),
                _close=undo.pop_all().close,
            )

    def stop(self) -> None:
        """Stop every server in order and free the directory; a second call does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Launch(NamedTuple):
    """One server's way into the stack: its files, and what is done once it answers."""

    name: str
    prepare: Callable[[], Server]
    finish: Callable[[], None] = lambda: None


def _launch_postgres(
    directory: Path, programs: Programs, port: int, extra: Mapping[str, str], *, durable: bool
) -> _Launch:
    def prepare() -> Server:
        user = postgres.unprivileged_user()
        home = postgres.place_binaries(programs.postgres, user)
        place = postgres.place_data(directory, user)
        log = _log(directory, "postgres")
        values = postgres.settings(port=port, durable=durable, extra=extra)
        postgres.prepare(home=home, place=place, user=user, log=log, values=values)
        return postgres.server(home=home, place=place, user=user, log=log, port=port)

    return _Launch("postgres", prepare, partial(postgres.create_database, port))


def _launch_kafka(directory: Path, programs: Programs, ports: Mapping[str, int], extra: Mapping[str, str]) -> _Launch:
    def prepare() -> Server:
        place = directory / "kafka"
        log = _log(directory, "kafka")
        port, controller_port = ports["kafka"], ports["kafka-controller"]
        values = broker.settings(data=place / "data", port=port, controller_port=controller_port, extra=extra)
        broker.prepare(java=programs.java, libs=programs.kafka_libs, directory=place, log=log, values=values)
        return broker.server(java=programs.java, libs=programs.kafka_libs, directory=place, log=log, port=port)

    return _Launch("kafka", prepare)


def _launch_redis(
    directory: Path, programs: Programs, ports: Mapping[str, int], region: str, extra: Mapping[str, str]
) -> _Launch:
    name = cache.process_name(region)
    return _Launch(
        name,
        partial(
            cache.server,
            program=programs.redis_server,
            region=region,
            directory=directory / name,
            log=_log(directory, name),
            port=ports[name],
            extra=extra,
        ),
    )


def _start(launches: Sequence[_Launch], guard: Warden) -> dict[str, ServerProcess]:
    processes: dict[str, ServerProcess] = {}

    def run(launch: _Launch) -> None:
        process = ServerProcess(launch.prepare(), guard)
        processes[launch.name] = process
        process.start()
        launch.finish()

    try:
        with ThreadPoolExecutor(len(launches)) as pool:
            for done in [pool.submit(run, launch) for launch in launches]:
                done.result()
    except BaseException:
        _stop(processes.values())
        raise
    return {launch.name: processes[launch.name] for launch in launches}


def _stop(processes: Iterable[ServerProcess]) -> None:
    everyone = list(processes)
    if everyone:
        with ThreadPoolExecutor(len(everyone)) as pool:
            list(pool.map(ServerProcess.stop, everyone))


def _log(directory: Path, name: str) -> Path:
    return directory / "logs" / f"{name}.log"


def _choose_ports(directory: Path, regions: Sequence[str], preferred: Mapping[str, int]) -> dict[str, int]:
    record = directory / "ports.json"
    last: dict[str, int] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    names = ["postgres", "kafka", "kafka-controller", *map(cache.process_name, regions)]
    ports = choose_ports(names, {**preferred, **last})
    _write_json(record, ports)
    return ports


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Hold the directory for one stack; yields the lock's descriptor, which the warden shares."""
    deadline = time.monotonic() + LOCK_LIMIT_SECONDS
    with (directory / "stack.lock").open("a+", encoding="utf-8") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                lock.seek(0)
                owner = _owner(lock.read())
                if owner is not None or time.monotonic() > deadline:
                    who = "a stopping stack" if owner is None else f"the stack of process {owner.pid}"
                    raise StackError(
                        f"{directory} is in use by {who}: stop it (`python -m infra.stack down`"
                        " if `up` started it) or choose another --directory"
                    ) from error
                time.sleep(WAIT_POLL_SECONDS)
        lock.seek(0)
        lock.truncate()
        me = warden.identify(os.getpid())
        lock.write(json.dumps(me))
        lock.flush()
        yield lock.fileno()


def _owner(text: str) -> Identity | None:
    identity = Identity(*json.loads(text)) if text else None
    return identity if identity is not None and warden.is_alive(identity) else None


# --- the command line -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What `up` leaves in stack.json for the others (infra/attached.py), and for whoever wants the addresses."""

    postgres_dsn: str
    kafka_bootstrap: str
    redis_urls: Mapping[str, str]
    ports: Mapping[str, int]
    supervisor: Identity
    processes: Mapping[str, Identity]
    boot_id: str

    @classmethod
    def of(cls, stack: Stack) -> Self:
        identities = {name: process.identity for name, process in stack.processes.items()}
        supervisor = warden.identify(os.getpid())
        assert supervisor is not None
        return cls(
            postgres_dsn=stack.postgres_dsn,
            kafka_bootstrap=stack.kafka_bootstrap,
            redis_urls=stack.redis_urls,
            ports=stack.ports,
            supervisor=supervisor,
            processes={name: identity for name, identity in identities.items() if identity is not None},
            boot_id=_boot_id(),
        )

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        path = directory / "stack.json"
        if not path.exists():
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["supervisor"] = Identity(**raw["supervisor"])
        raw["processes"] = {name: Identity(**identity) for name, identity in raw["processes"].items()}
        return cls(**raw)

    def write(self, directory: Path) -> None:
        _write_json(
            directory / "stack.json",
            {
                "postgres_dsn": self.postgres_dsn,
                "kafka_bootstrap": self.kafka_bootstrap,
                "redis_urls": dict(self.redis_urls),
                "ports": dict(self.ports),
                "supervisor": self.supervisor._asdict(),
                "processes": {name: identity._asdict() for name, identity in self.processes.items()},
                "boot_id": self.boot_id,
            },
        )

    def living(self) -> list[Identity]:
        """Return which of its processes still run, the supervisor first."""
        if self.boot_id != _boot_id():  # start times count from the boot: those of an earlier one name nobody
            return []
        return [identity for identity in (self.supervisor, *self.processes.values()) if warden.is_alive(identity)]

    def addresses(self) -> dict[str, str]:
        redis = {cache.process_name(region): url for region, url in self.redis_urls.items()}
        return {"postgres": self.postgres_dsn, "kafka": self.kafka_bootstrap, **redis}

    def questions(self) -> dict[str, Callable[[], None]]:
        redis = {name: partial(cache.ask, self.ports[name]) for name in map(cache.process_name, self.redis_urls)}
        return {
            "postgres": partial(postgres.ask, self.ports["postgres"]),
            "kafka": partial(broker.ask, self.ports["kafka"]),
            **redis,
        }


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def up(directory: Path) -> int:
    """Start the stack in the background and print its addresses; one that runs already is left alone."""
    state = State.read(directory)
    if state is not None and state.supervisor in state.living():
        return status(directory)
    prerequisites.find(kafka_libs=DEFAULT_DIRECTORY / "kafka" / "libs")  # in the foreground: Maven may take a while
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    with _log(directory, "supervisor").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "infra.stack", "supervise", "--directory", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_CHECKOUT), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,
            text=True,
        )
    assert supervisor.stdout is not None
    answer = supervisor.stdout.read()  # until it is ready or has failed: it closes its end in both cases
    state = State.read(directory)
    if answer or state is None or supervisor.pid != state.supervisor.pid:
        print(answer.strip() or f"error: the supervisor ended: see {_log(directory, 'supervisor')}", file=sys.stderr)
        return supervisor.wait() or EXIT_DOWN
    _print_addresses(state)
    return 0


def _print_addresses(state: State) -> None:
    for name, address in state.addresses().items():
        print(f"{name:<10} {address}")


def supervise(directory: Path) -> int:
    """Be the owner of `up`'s stack until SIGTERM."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: stopping must not be interrupted
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stack.start(directory, preferred_ports=DEFAULT_PORTS) as stack:
        State.of(stack).write(directory)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # tells `up`, which reads our output to its end
        os.close(nowhere)
        while True:
            signal.pause()


def down(directory: Path) -> int:
    """Stop what `up` started, and only that: every pid is checked to be the process that was recorded."""
    state = State.read(directory)
    living = [] if state is None else state.living()
    if state is None or not living:
        print(f"no stack runs in {directory}")
    else:
        # The supervisor stops its servers in order; where it was killed, its warden is about to stop them.
        warden.send([state.supervisor], signal.SIGTERM)
        left = warden.wait_gone(living, DOWN_LIMIT_SECONDS if state.supervisor in living else LOCK_LIMIT_SECONDS)
        if left:
            warden.stop([(identity, signal.SIGKILL) for identity in left])
            print(f"stopped; {len(left)} of {len(living)} processes had to be killed")
        else:
            print("stopped")
    (directory / "stack.json").unlink(missing_ok=True)
    return 0


def status(directory: Path) -> int:
    """Ask every server and print what it said; not 0 when one is down."""
    state = State.read(directory)
    if state is None:
        print(f"no stack runs in {directory}: start it with `python -m infra.stack up`")
        return EXIT_DOWN
    answers = {name: _answer(ask) for name, ask in state.questions().items()}
    for name, address in state.addresses().items():
        print(f"{name:<10} {address:<45} {answers[name] or 'up'}")
    return EXIT_DOWN if any(answers.values()) else 0


def _answer(ask: Callable[[], None]) -> str:
    try:
        ask()
    except NotReady as error:
        return f"down: {error}"
    return ""


def prepare(directory: Path) -> int:
    """Find, or fetch, every program that the stack needs; starts nothing."""
    prerequisites.find(kafka_libs=directory / "kafka" / "libs")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code: 2 for a missing prerequisite, 1 for any other failure."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description="The local stack of staleproof.")
    parser.add_argument(
        "command", choices=["up", "down", "status", "prepare", "supervise"], metavar="up|down|status|prepare"
    )
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY, help="where its data and logs are kept")
    options = parser.parse_args(arguments)
    directory = options.directory.resolve()
    commands = {"up": up, "down": down, "status": status, "prepare": prepare, "supervise": supervise}
    # `up` reads its supervisor's complaints from standard output, and passes them on.
    complaints = sys.stdout if options.command == "supervise" else sys.stderr
    try:
        return commands[options.command](directory)
    except MissingPrerequisite as error:
        print(f"error: {error}", file=complaints)
        return EXIT_MISSING
    except StackError as error:
        print(f"error: {error}", file=complaints)
        return EXIT_DOWN


if __name__ == "__main__":
    sys.exit(main())
