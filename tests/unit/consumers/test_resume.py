"""The state file: what a killed command finds again."""

from __future__ import annotations

import pytest

from cdc.errors import ConfigError
from consumers.resume import Resume

PLAN = {"command": "replay kafka", "regions": ["eu"], "range": ("beginning", "end")}


def test_what_was_saved_is_loaded_by_the_same_plan(tmp_path):
    path = tmp_path / "state.json"
    assert Resume(path, PLAN).load() is None
    Resume(path, PLAN).save({"next": {"a/0": 7}})
    Resume(path, PLAN).save({"next": {"a/0": 9}})
    assert Resume(path, dict(PLAN)).load() == {"next": {"a/0": 9}}
    assert list(tmp_path.iterdir()) == [path]


def test_another_plan_is_refused_and_the_difference_named(tmp_path):
    path = tmp_path / "state.json"
    Resume(path, PLAN).save({})
    with pytest.raises(ConfigError) as caught:
        Resume(path, PLAN | {"regions": ["eu", "us"]}).load()
    assert f'{path} is of another command (regions was ["eu"], is ["eu","us"])' in str(caught.value)
    assert Resume(path, PLAN).load() == {}


def test_a_long_difference_is_shortened(tmp_path):
    path = tmp_path / "state.json"
    Resume(path, PLAN).save({})
    with pytest.raises(ConfigError) as caught:
        Resume(path, PLAN | {"keys": ["k" * 500]}).load()
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"v": 1, "plan": {}}', b'{"v": 2, "plan": {}, "progress": {}}']
)
def test_a_file_that_cannot_be_read_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path} .*remove"):
        Resume(path, PLAN).load()


def test_a_write_that_fails_leaves_the_state_of_before(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    Resume(path, PLAN).save({"n": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("consumers.resume.os.fsync", full)
    with pytest.raises(ConfigError, match="No space left on device: name another place with --state"):
        Resume(path, PLAN).save({"n": 2})
    assert Resume(path, PLAN).load() == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        Resume(tmp_path / "nowhere" / "state.json", PLAN).save({})


def test_what_is_complete_leaves_no_file(tmp_path):
    path = tmp_path / "state.json"
    Resume(path, PLAN).save({})
    Resume(path, PLAN).done()
    assert not path.exists()
    Resume(path, PLAN).done()
