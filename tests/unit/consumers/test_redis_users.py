"""Users of Redis as text: their names, what differs by region, and that no command of the library is forgotten."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from cdc.errors import ConfigError
from consumers.acl import Request, read_passwords, run
from consumers.redis_users import WORKER_COMMANDS, Form, Role, lines, name_of, rules
from consumers.settings import RegionSettings, Settings
from invalidator.node import library


def region(**settings: object) -> RegionSettings:
    return RegionSettings.model_validate({"url": "redis://r", **settings})


@pytest.fixture(autouse=True)
def views(tmp_path, monkeypatch) -> Path:
    """The views file of the settings, which is looked for here."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "views.yaml"
    file.write_text(
        'version: 1\nviews: {contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}}'
    )
    return file


def settings(**regions: dict[str, object]) -> Settings:
    sections = {"source": {"name": "shop", "dsn": "postgresql://h/d"}, "kafka": {"bootstrap_servers": "k:1"}}
    return Settings.model_validate({**sections, "regions": regions})


def test_a_readers_line_is_what_an_acl_file_holds() -> None:
    (line,) = lines(region(prefix="shop", shards=12), [Role.READER], {Role.READER: "secret"})
    assert line == (
        f"user staleproof-reader reset on #{hashlib.sha256(b'secret').hexdigest()} resetchannels -@all +ping"
        " +fcall_ro|sp1_read +fcall|sp1_fill +fcall|sp1_lease +time"
        " ~{shop:*}:h ~{shop:*}:f ~{shop:*}:l ~{shop:*}:e:*"
        " (+hget +hmget %R~{shop:*}:h %R~{shop:*}:f) (+get +getrange +set ~{shop:*}:e:*)"
        " (+hget +hlen +hgetall +hset +hdel ~{shop:[0-9]}:l ~{shop:[0-9][0-9]}:l)"
    )


def test_no_password_is_a_text_that_no_server_takes_for_one() -> None:
    for line in lines(region(), list(Role), {}):
        hashed = line.split()[4]
        assert hashed.startswith("#SHA256-OF-THE-PASSWORD-OF-THE-")
        assert not re.fullmatch("#[0-9a-f]{64}", hashed)


def test_names_are_those_of_the_settings() -> None:
    assert [name_of(region(), role) for role in Role] == [f"staleproof-{role}" for role in Role]
    named = region(username="w", reader_username="r")
    assert [name_of(named, role) for role in Role] == ["r", "w", "staleproof-operator"]
    assert name_of(region(url="redis://in%3Durl:pw@r/0"), Role.WORKER) == "in=url"
    assert name_of(region(username="default"), Role.WORKER) == "staleproof-worker"  # whose line would open every door


def test_connections_that_say_more_may() -> None:
    assert {"+cluster|slots", "+asking"} <= {*rules(region(topology="cluster"), Role.READER)}
    assert not {"+cluster|slots", "+asking", "+select|0"} & {*rules(region(), Role.READER)}
    assert "+select|3" in rules(region(url="redis://r/3"), Role.WORKER)
    assert "+select|2" in rules(region(url="unix:///run/redis.sock?db=2"), Role.OPERATOR)


def test_every_command_of_the_library_is_a_workers() -> None:
    called = {name.lower() for name in re.findall(r"redis\.call\('([A-Z]+)'", library())}
    assert called - {"time"} <= {*WORKER_COMMANDS}
    assert "+time" in rules(region(), Role.WORKER)


def test_workers_may_remove_the_keys_of_plain_views(views: Path) -> None:
    request = Request(region="eu", roles=(Role.WORKER,))
    assert "(" not in run(settings(eu={"url": "redis://e"}), request)[0][0]
    views.write_text(
        """
version: 1
views:
  b: {key: "shop:b:{id}:v{n}", layout: plain, tables: {public.b: {}}}
  a: {key: "a:{id}", layout: plain, tables: {public.a: {}}}
"""
    )
    assert run(settings(eu={"url": "redis://e"}), request)[0][0].endswith(" (+unlink ~a:* ~shop:b:*:v*)")


def test_regions_that_need_different_users_are_asked_for_by_name() -> None:
    alike = settings(eu={"url": "redis://e"}, us={"url": "redis://u"})
    assert len(run(alike, Request(region=None, roles=tuple(Role)))[0]) == 3
    differ = settings(eu={"url": "redis://e"}, us={"url": "redis://u", "prefix": "us"})
    with pytest.raises(ConfigError, match="choose one with --region: eu, us"):
        run(differ, Request(region=None, roles=tuple(Role)))
    (line,), _ = run(differ, Request(region="us", roles=(Role.READER,), form=Form.COMMAND))
    assert line.startswith("ACL SETUSER staleproof-reader reset on #")
    assert "{us:*}" in line


def test_notes_say_which_passwords_are_missing_and_where_the_lines_go(tmp_path) -> None:
    file = tmp_path / "reader"
    file.write_text("secret\n")
    request = Request(region="eu", roles=(Role.READER, Role.WORKER), password_files=(f"reader={file}",))
    users, notes = run(settings(eu={"url": "redis://e"}), request)
    assert notes[0].startswith("no password for worker: ")
    assert "run ACL LOAD" in notes[1]
    assert "secret" not in "".join([*users, *notes])


@pytest.mark.parametrize(
    "files, complaint",
    [
        (["reader"], "ROLE=FILE"),
        (["reader="], "ROLE=FILE"),
        (["nobody={}/good"], "ROLE=FILE"),
        (["reader={}/good", "reader={}/good"], "names reader twice"),
        (["reader={}/absent"], "cannot be read (No such file or directory)"),
        (["reader={}/empty"], "is empty"),
        (["reader={}/binary"], "cannot be read (not UTF-8 text)"),
    ],
)
def test_password_files_are_judged(tmp_path, files: list[str], complaint: str) -> None:
    (tmp_path / "good").write_text("secret")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        read_passwords([file.format(tmp_path) for file in files])


def test_a_password_for_nobody_is_a_mistake(tmp_path) -> None:
    (tmp_path / "good").write_text("secret")
    request = Request(region="eu", roles=(Role.WORKER,), password_files=(f"reader={tmp_path}/good",))
    with pytest.raises(ConfigError, match="names reader, which --role leaves out"):
        run(settings(eu={"url": "redis://e"}), request)
