"""What may be ordered, what a person is asked, and what the command prints; Kafka is faked here."""

from __future__ import annotations

import json

import msgspec
import pytest
from typer.testing import CliRunner

from cdc.control import Raise, decode_control, encode_control
from cdc.errors import ConfigError
from consumers import cli, fence
from consumers.fence import Aim, Ordered, line_of, order_for, question
from invalidator.views import load_views

VIEWS_TEXT = """\
version: 1
views:
  contact: {key: "contact:{id}", tables: {public.contacts: {}}}
  sending: {key: "sending:{campaign}/{region}", tables: {public.sendings: {}}}
"""
VIEWS = load_views(VIEWS_TEXT, place="views.yaml")
SETTINGS = """\
source: {name: shop, dsn: "postgresql://u@h/d"}
kafka: {bootstrap_servers: "k:9092"}
regions: {eu-west: {url: "redis://e"}, us: {url: "redis://u"}}
"""


@pytest.mark.parametrize(
    ("aim", "view", "key", "region"),
    [
        (Aim(view="contact"), "contact", None, None),
        (Aim(view="contact", key="contact:42", region="us"), "contact", "contact:42", "us"),
        (Aim(view="sending", key="sending:a%2Fb/eu"), "sending", "sending:a%2Fb/eu", None),
        (Aim(everything=True), None, None, None),
        (Aim(everything=True, region="us"), None, None, "us"),
    ],
)
def test_an_order_says_what_was_aimed_at_and_can_be_read_by_workers(aim, view, key, region):
    order = order_for(aim, "shop", VIEWS)
    assert order == Raise(source="shop", position="", region=region, view=view, key=key, reason="fence command")
    sent = msgspec.structs.replace(order, stamp=7 if key else 0)
    assert decode_control(encode_control(sent)) == sent


@pytest.mark.parametrize(
    ("aim", "complaint"),
    [
        (Aim(), "nothing to fence is named: add --view NAME, or --all for every view"),
        (Aim(region="us"), "nothing to fence is named: add --view NAME, or --all for every view"),
        (Aim(view="contact", everything=True), "--all means every view, and --view contact only one"),
        (Aim(key="contact:42"), "--key needs its view: add --view NAME"),
        (Aim(key="contact:42", everything=True), "--key needs its view: add --view NAME"),
        (Aim(view="contacts"), "there is no view 'contacts' in the views file; did you mean \"contact\"?"),
        (Aim(view=""), "there is no view '' in the views file; known here: contact, sending"),
        (Aim(view="contact", key="42"), "'42' is no key of view contact: its keys are contact:{id}, where"),
        (Aim(view="contact", key="sending:1/2"), "'sending:1/2' is no key of view contact"),
        (Aim(view="sending", key="sending:1"), "its keys are sending:{campaign}/{region}, where"),
        (Aim(view="contact", key="contact:\udcff"), r"'contact:\udcff' is no key"),
        (Aim(view="contact", reason=""), "--reason should be one line of 1 to 200 characters"),
        (Aim(view="contact", reason="x" * 201), "--reason should be one line of 1 to 200 characters"),
        (Aim(view="contact", reason="two\nlines"), "--reason should be one line of 1 to 200 characters"),
        (Aim(view="contact", reason="\udcff"), "--reason should be one line of 1 to 200 characters"),
    ],
)
def test_an_aim_that_hits_nothing_or_too_much_is_refused_with_the_remedy(aim, complaint):
    with pytest.raises(ConfigError) as caught:
        order_for(aim, "shop", VIEWS)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("aim", "start"),
    [
        (Aim(view="contact"), "Close view contact in every region (eu, us)?"),
        (Aim(everything=True, region="us"), "Close every view in region us?"),
        (Aim(view="contact", key="contact:42"), "Remove contact:42 in every region (eu, us)?"),
    ],
)
def test_the_question_names_what_becomes_unreadable_and_where(aim, start):
    assert question(order_for(aim, "shop", VIEWS), ["eu", "us"]).startswith(start)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "views.yaml").write_text(VIEWS_TEXT)
    path = tmp_path / "staleproof.yaml"
    path.write_text(SETTINGS)
    return str(path)


@pytest.fixture
def published(monkeypatch):
    """The orders that would have been written."""
    orders: list[Raise] = []

    def publish(settings, order):
        orders.append(order)
        return Ordered(
            topic=settings.source.control_topic, offset=6 + len(orders), source=order.source, region=order.region,
            view=order.view, key=order.key, reason=order.reason,
        )  # fmt: skip

    monkeypatch.setattr(fence, "publish", publish)
    monkeypatch.setattr(fence, "_transaction", lambda source: 7)
    return orders


def invoke(config: str, *arguments: str, stdin: str | None = None):
    return CliRunner().invoke(cli.app, ["fence", *arguments, "--config", config], input=stdin)


def test_one_line_says_what_was_ordered_and_at_which_offset(config, published):
    result = invoke(config, "--view", "contact", "--region", "us", "--reason", "bad import", "--yes")
    assert result.exit_code == 0
    assert result.stdout == "ordered: fence view contact in region us; offset 7 of shop.staleproof.control\n"
    (order,) = published
    assert (order.view, order.region, order.reason) == ("contact", "us", "bad import")


def test_json_says_the_same(config, published):
    result = invoke(config, "--view", "contact", "--key", "contact:42", "--yes", "--json")
    assert json.loads(result.stdout) == {
        "topic": "shop.staleproof.control",
        "offset": 7,
        "source": "shop",
        "region": None,
        "view": "contact",
        "key": "contact:42",
        "reason": "fence command",
    }


@pytest.mark.parametrize(
    ("view", "key", "region", "text"),
    [
        ("contact", "contact:42", None, "fence contact:42 in every region"),
        (None, None, "us", "fence every view in region us"),
    ],
)
def test_the_line_names_the_smallest_thing(view, key, region, text):
    ordered = Ordered(topic="t", offset=1, source="shop", region=region, view=view, key=key, reason="r")
    assert text in line_of(ordered)


def test_without_yes_and_without_a_terminal_nothing_is_ordered(config, published):
    result = invoke(config, "--view", "contact", stdin="y\n")
    assert result.exit_code == 2
    assert result.stderr == "staleproof: not confirmed, and no terminal to ask on: add --yes\n"
    assert published == []


@pytest.mark.parametrize(("answer", "code", "orders"), [("y\n", 0, 1), ("n\n", 1, 0), ("\n", 1, 0), ("", 1, 0)])
def test_on_a_terminal_only_a_yes_orders(config, published, monkeypatch, answer, code, orders):
    monkeypatch.setattr(cli, "_at_terminal", lambda: True)
    result = invoke(config, "--view", "contact", "--json", stdin=answer)
    assert result.exit_code == code
    assert len(published) == orders
    assert "Close view contact in every region (eu-west, us)?" in result.stderr
    assert ("nothing was ordered" in result.stderr) == (orders == 0)
    assert ("offset" in result.stdout) == bool(orders)


def test_an_unknown_region_names_the_nearest(config, published):
    result = invoke(config, "--view", "contact", "--region", "eu-wset", "--yes")
    assert result.exit_code == 2
    assert result.stderr == ("staleproof: there is no region 'eu-wset' in the settings; did you mean \"eu-west\"?\n")
    assert published == []
