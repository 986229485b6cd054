"""Facts about both kinds of server."""

from __future__ import annotations

from consumers.findings import Level, judge_redis
from consumers.settings import RegionSettings
from invalidator.nodes import Connection
from invalidator.redis_facts import describe


def test_a_real_server_tells_its_kind_and_can_be_used(redis_url):
    (facts,) = describe(Connection(url=redis_url))
    assert facts.product in ("redis", "valkey")
    assert facts.version >= (7, 2)
    assert facts.eviction_policy == "noeviction"
    assert not facts.is_replica
    assert facts.refusal is None
    assert [finding.level for finding in judge_redis("eu", [facts], RegionSettings(url=redis_url))] == [Level.OK]


def test_each_kind_is_told_apart(redis_url, request):
    expected = request.node.callspec.params["redis_url"]
    assert [facts.product for facts in describe(Connection(url=redis_url))] == [expected]
