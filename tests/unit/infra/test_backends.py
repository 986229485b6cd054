"""A backend that can't be used: said and skipped on a desk, a failure in CI unless it is allowed by name."""

from __future__ import annotations

import pytest

from infra import containers
from tests.backends import require_containers, start_servers


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    monkeypatch.setattr(containers, "unavailable", lambda: "no Docker Engine answers")
    for name in ("CI", "ALLOW_SKIP", "STALEPROOF_BACKEND"):
        monkeypatch.delenv(name, raising=False)


def test_on_a_desk_it_is_a_skip_that_says_why():
    with pytest.raises(pytest.skip.Exception, match="no Docker Engine answers"):
        require_containers()


@pytest.mark.parametrize("allowed", ["", "processes", "container"])
def test_in_ci_it_is_a_failure_that_says_how_to_allow_it(monkeypatch, allowed):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("ALLOW_SKIP", allowed)
    with pytest.raises(pytest.fail.Exception, match=r"no Docker Engine answers.*ALLOW_SKIP=containers"):
        require_containers()


@pytest.mark.parametrize("allowed", ["containers", "other,containers"])
def test_in_ci_it_is_a_skip_where_it_is_allowed_by_name(monkeypatch, allowed):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("ALLOW_SKIP", allowed)
    with pytest.raises(pytest.skip.Exception):
        require_containers()


def test_a_backend_that_can_be_used_is_neither(monkeypatch):
    monkeypatch.setattr(containers, "unavailable", lambda: None)
    monkeypatch.setenv("CI", "true")
    require_containers()


def test_an_unknown_backend_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("STALEPROOF_BACKEND", "cloud")
    with pytest.raises(pytest.UsageError, match="STALEPROOF_BACKEND is 'cloud'"):
        start_servers(tmp_path)
