"""The send gate: when an unsubscription is acknowledged, and what counts as a mail too many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cdc.errors import TransientError
from infra.demo.child import Tally
from infra.demo.gate import Endpoint, Ledger, Unsubscription
from invalidator import Token

TOKEN = Token("7:1", ("0" * 15 + "9",))


@pytest.mark.parametrize(
    ("now", "passed", "acknowledged"),
    [
        (12.1, (True, True), True),
        (12.0, (True, True), False),
        (12.1, (True, False), False),
        (99.0, (False, True), False),
    ],
)
def test_an_unsubscription_is_acknowledged_once_every_region_has_it_and_the_bound_has_passed(now, passed, acknowledged):
    readers: Any = [SimpleNamespace(passed=lambda token, it=it: it and token == TOKEN) for it in passed]
    endpoint = Endpoint(readers, 2.0, lambda: now)
    assert endpoint.is_acknowledged(Unsubscription(1, TOKEN, committed=10.0)) is acknowledged


@pytest.mark.parametrize(
    ("answer", "began", "violations"),
    [(True, 5.1, 1), (True, 4.9, 0), (False, 5.1, 0), (TransientError("away"), 5.1, 0)],
)
def test_a_mail_counts_as_a_violation_if_its_check_began_after_the_acknowledgement(answer, began, violations):
    def may_send(number):
        if isinstance(answer, Exception):
            raise answer
        return answer

    tally = Tally()
    ledger = Ledger(tally)
    ledger.acknowledge(1, 5.0)
    ledger.check(1, began, SimpleNamespace(may_send=may_send))
    ledger.check(2, began, SimpleNamespace(may_send=may_send))
    assert tally.now().get("gate_violations", 0) == violations
