from types import SimpleNamespace

import pytest

from infra import backends


def containers(monkeypatch, reason):
    monkeypatch.setattr(backends, "_containers", lambda: SimpleNamespace(unavailable=lambda: reason))


@pytest.mark.parametrize(
    ("wanted", "reason", "chosen"),
    [
        ("auto", None, "containers"),
        ("auto", "no Docker", "processes"),
        ("containers", None, "containers"),
        ("processes", None, "processes"),
        ("processes", "no Docker", "processes"),
    ],
)
def test_auto_takes_containers_where_they_can_be_had(monkeypatch, wanted, reason, chosen):
    containers(monkeypatch, reason)
    assert backends._backend(wanted) == chosen


def test_containers_that_were_asked_for_and_cannot_be_had_are_named_with_the_reason(monkeypatch):
    containers(monkeypatch, "no Docker answers: start it")
    with pytest.raises(backends.Unavailable, match="backend containers is not available: no Docker answers: start it"):
        backends._backend("containers")


def test_a_client_of_docker_that_is_not_installed_is_a_reason(monkeypatch):
    def missing():
        raise ModuleNotFoundError(name="docker")

    monkeypatch.setattr(backends, "_containers", missing)
    assert "no module docker" in (backends.why_no_containers() or "")


@pytest.mark.parametrize(
    ("environment", "must"),
    [
        ({}, False),
        ({"CI": "true"}, True),
        ({"CI": "1"}, True),
        ({"CI": "false"}, False),
        ({"CI": ""}, False),
        ({"CI": "true", "ALLOW_SKIP": "containers"}, False),
        ({"CI": "true", "ALLOW_SKIP": "standby, containers"}, False),
        ({"CI": "true", "ALLOW_SKIP": "processes"}, True),
    ],
)
def test_in_ci_an_absent_backend_fails_unless_it_may_be_skipped(environment, must):
    assert backends.must_run("containers", environment) is must
