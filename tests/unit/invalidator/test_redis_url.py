"""One URL for several servers."""

from __future__ import annotations

import pytest

from invalidator.redis_url import address, at, single_urls


@pytest.mark.parametrize(
    ("url", "singles"),
    [
        ("redis://a", ["redis://a"]),
        ("redis://a:1,b:2", ["redis://a:1", "redis://b:2"]),
        ("rediss://u:p%40%2C@a:1,b/0?x=1", ["rediss://u:p%40%2C@a:1/0?x=1", "rediss://u:p%40%2C@b/0?x=1"]),
        ("redis://[::1]:1,[::2]:2/0", ["redis://[::1]:1/0", "redis://[::2]:2/0"]),
        ("unix:///tmp/a,b", ["unix:///tmp/a,b"]),
    ],
)
def test_a_url_names_its_servers(url: str, singles: list[str]) -> None:
    assert single_urls(url) == singles


def test_an_address_has_the_usual_port_unless_told() -> None:
    assert address("redis://:p@a") == ("a", 6379)
    assert address("redis://[::1]:7") == ("::1", 7)


def test_another_address_keeps_everything_else() -> None:
    assert at("rediss://u:p%40@a:1/0?x=1", ("b", 2)) == "rediss://u:p%40@b:2/0?x=1"
    assert at("redis://a", ("::1", 2)) == "redis://[::1]:2"
