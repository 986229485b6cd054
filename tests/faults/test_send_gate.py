"""The demonstration's send gate while one region is cut off and another is rolled back: its own count, on real servers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from infra.demo.demo import main


@pytest.mark.slow  # a minute: a whole demonstration, which `make demo ARGS=--break` shows as well
def test_no_mail_follows_an_acknowledged_unsubscription_while_regions_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--json-only", "--seconds", "5", "--break", "--directory", str(tmp_path)])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    gate = msgspec.json.decode(shown.out.splitlines()[-1])["gate"]
    assert gate["violations"] == 0
    assert gate["acknowledged"] > 100
