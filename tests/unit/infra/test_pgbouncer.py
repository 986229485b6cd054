"""Where PgBouncer comes from, and the file that it reads."""

from __future__ import annotations

import pytest

from infra import pgbouncer
from infra.prerequisites import MissingPrerequisite

SIMULATED = """NOTE: This is only a simulation!
Inst libc-ares2 (1.18.1-3 Debian-Security:12/oldstable-security [amd64])
Inst postgresql-common (248+deb12u1 Debian:12.11/oldstable [all])
Inst pgbouncer (1.18.0-1+deb12u1 Debian:12.11/oldstable [amd64])
Conf libc-ares2 (1.18.1-3 Debian-Security:12/oldstable-security [amd64])
"""


def test_only_the_program_and_its_missing_libraries_are_fetched():
    assert pgbouncer.missing_packages(SIMULATED) == ["libc-ares2", "pgbouncer"]


def test_an_installed_one_is_used_as_it_is(tmp_path, monkeypatch):
    program = tmp_path / "pgbouncer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pgbouncer.find(tmp_path / "unused") == (program, [])


@pytest.mark.parametrize("apt", [None, "#!/bin/sh\necho 'E: no network' >&2\nexit 100\n"])
def test_where_it_cannot_be_had_the_remedy_is_named(tmp_path, monkeypatch, apt):
    for name in ("apt-get", "dpkg-deb") if apt else ():
        (tmp_path / name).write_text(apt)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr("infra.pgbouncer.SYSTEM_PATH", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPrerequisite, match="install") as told:
        pgbouncer.find(tmp_path / "fetched")
    assert ("no network" in str(told.value)) == bool(apt)
    assert not (tmp_path / "fetched" / "root").exists()


def test_an_interrupted_fetch_is_begun_again_and_a_finished_one_is_kept(tmp_path, monkeypatch):
    calls = []

    def unpack(directory, root):
        calls.append(root)
        if len(calls) > 1:
            (root / "usr" / "lib").mkdir(parents=True)
            (root / "usr" / "lib" / "libcares.so.2").touch()

    monkeypatch.setattr("infra.pgbouncer.SYSTEM_PATH", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("infra.pgbouncer._unpack", unpack)
    for _ in range(3):
        found = pgbouncer.find(tmp_path / "fetched")
    assert len(calls) == 2
    root = tmp_path / "fetched" / "root"
    assert found == (root / "usr" / "sbin" / "pgbouncer", [root / "usr" / "lib"])


def test_its_file_names_every_database_of_the_target_and_transaction_mode():
    text = pgbouncer.config_text({"pool_mode": "transaction", "listen_port": "6432"}, 5432)
    assert text == (
        "[databases]\n* = host=127.0.0.1 port=5432 user=postgres\n[pgbouncer]\npool_mode = transaction\nlisten_port = 6432\n"
    )
