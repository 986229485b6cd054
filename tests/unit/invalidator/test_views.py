"""Views: what a views.yaml says, and how every mistake is named."""

from __future__ import annotations

import pytest

from cdc.errors import BadRecord, ConfigError
from invalidator.views import KeyTemplate, Mode, Rule, can_share_a_key, encode_part, load_views, parse_template

EXAMPLE = """\
version: 1
views:
  contact:
    key: "contact:{id}"
    mode: invalidate
    ttl_seconds: 86400
    tables:
      public.contacts:
        columns: [email, status]
      public.segment_members:
        parts: {id: contact_id}
  template:
    key: "template:{account}/{id}"
    mode: refresh
    tables:
      public.templates:
"""


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_views(text, place="views.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_example_is_read():
    views = load_views(EXAMPLE, place="views.yaml")
    contact, template = views.views.values()
    assert (contact.name, contact.mode, contact.ttl_ms) == ("contact", Mode.INVALIDATE, 86_400_000)
    assert contact.key == KeyTemplate("contact:{id}", ("contact:", ""), ("id",))
    assert contact.rules == (
        Rule("public.contacts", ("id",), frozenset({"email", "status"})),
        Rule("public.segment_members", ("contact_id",), None),
    )
    assert (template.mode, template.ttl_ms) == (Mode.REFRESH, None)
    assert template.rules == (Rule("public.templates", ("account", "id"), None),)


def test_rules_are_found_by_table():
    views = load_views(EXAMPLE, place="views.yaml")
    contact = views.views["contact"]
    assert views.by_table["public.segment_members"] == ((contact, contact.rules[1]),)
    assert "public.other" not in views.by_table


def test_views_cannot_be_changed():
    views = load_views(EXAMPLE, place="views.yaml")
    with pytest.raises(TypeError):
        views.views["x"] = views.views["contact"]
    with pytest.raises(AttributeError):
        views.views["contact"].ttl_ms = 1


def test_mode_defaults_to_invalidate_and_columns_may_be_none_of_all():
    text = 'version: 1\nviews: {a: {key: "a:{id}", tables: {public.a: {columns: []}}}}'
    view = load_views(text, place="v").views["a"]
    assert view.mode is Mode.INVALIDATE
    assert view.rules[0].columns == frozenset()


def digest(old: str = "", new: str = "") -> str:
    assert old in EXAMPLE
    return load_views(EXAMPLE.replace(old, new), place="v").views["contact"].digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("contact:{id}", "person:{id}"),
        ("[email, status]", "[email]"),
        ("        columns: [email, status]\n", ""),
        ("{id: contact_id}", "{id: member}"),
        ("public.contacts", "public.people"),
    ],
)
def test_what_decides_keys_and_contents_changes_the_digest(old, new):
    assert digest(old, new) != digest()


def test_the_mode_changes_the_digest():
    text = 'version: 1\nviews: {a: {key: "a:{id}", mode: MODE, tables: {public.a: }}}'
    digests = {
        load_views(text.replace("MODE", mode), place="v").views["a"].digest for mode in ("refresh", "invalidate")
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("86400", "5"),
        ("    ttl_seconds: 86400\n", ""),
        ("ttl_seconds: 86400", "load: SELECT 1 AS id, null AS value"),
        ("[email, status]", "[status, email]"),
        ("template", "tmpl"),
    ],
)
def test_what_decides_neither_leaves_the_digest(old, new):
    assert digest(old, new) == digest()


def test_digests_are_16_hexadecimal_digits_and_stable():
    """A changed digest closes every view at the next deployment: change KEY_ENCODING on purpose only."""
    views = load_views(EXAMPLE, place="v")
    assert views.views["contact"].digest == "3d918776d50ef8c6"
    assert len(views.digest) == 16
    int(views.digest, 16)


def test_the_digest_of_all_views_sees_each_of_them():
    other = EXAMPLE.replace("public.templates", "public.texts")
    assert load_views(EXAMPLE, place="v").digest != load_views(other, place="v").digest


def test_the_digest_sees_the_layout_and_not_that_there_is_one():
    def digest(line: str) -> str:
        return load_views(EXAMPLE.replace("    mode: refresh\n", line), place="v").views["template"].digest

    assert digest("    layout: guarded\n") == digest("")
    assert digest("    layout: plain\n") != digest("")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 1", "version: 2", "views.yaml:1: version: should be 1"),
        ("version: 1\n", "", 'views.yaml:1: "version" is missing'),
        ("mode: invalidate", "mode: invalidat", "views.yaml:5: views.contact.mode: unknown mode 'invalidat'; did you mean \"invalidate\"?"),
        ("mode: invalidate", "mode: [x]", "views.yaml:5: views.contact.mode: unknown mode a list; use invalidate or refresh"),
        ("ttl_seconds: 86400", "ttl: 86400", 'views.yaml:6: views.contact.ttl: unknown field; did you mean "ttl_seconds"?'),
        ("ttl_seconds: 86400", "when: 86400", "views.yaml:6: views.contact.when: unknown field; known here: key, layout, load, mode, tables, ttl_seconds"),
        ("86400", "0", "views.yaml:6: views.contact.ttl_seconds: should be a whole number from 1 to 315360000, not 0"),
        ("ttl_seconds: 86400", "load: 86400", "views.yaml:6: views.contact.load: should be a SELECT with a column for each part of the key and `value`"),
        ("ttl_seconds: 86400", "load: DELETE FROM contacts", "views.yaml:6: views.contact.load: should be a SELECT"),
        ("mode: refresh", "mode: refresh\n    load: SELECT 1", "views.yaml:15: views.template.load: has no use with mode: refresh"),
        ("mode: invalidate", "layout: plane", "views.yaml:5: views.contact.layout: unknown layout 'plane'; did you mean \"plain\"?"),
        ("mode: refresh", "layout: plain\n    ttl_seconds: 5", "views.yaml:15: views.template.ttl_seconds: has no use with layout: plain: leave it out, and store"),
        ("mode: refresh", "layout: plain\n    load: SELECT 1", "views.yaml:15: views.template.load: has no use with layout: plain: leave it out: nothing"),
        ("mode: refresh", "mode: refresh\n    layout: plain", "views.yaml:14: views.template.mode: a plain view is the application's to fill: use mode: invalidate"),
        ('"template:{account}/{id}"\n    mode: refresh', '"{account}/{id}"\n    layout: plain', "views.yaml:13: views.template.key: {account}/{id} begins with a field, so that any other"),
        ("86400", "yes", "views.yaml:6: views.contact.ttl_seconds: should be a whole number"),
        ("86400", "", "views.yaml:6: views.contact.ttl_seconds: should be a whole number"),
        ("  template:\n", "  contact:\n", "views.yaml:12: views.contact: is given twice, first on line 3: keep one of them"),
        ("  contact:\n", "  Contact:\n", "views.yaml:3: views.Contact: is not a view name"),
        ('"contact:{id}"', "[a]", 'views.yaml:4: views.contact.key: should be text in quotes, such as "contact:{id}"'),
        ('"contact:{id}"', "contact:{id", "views.yaml:4: views.contact.key: holds '{' outside of a field: write a field as {name}"),
        ('"contact:{id}"', '"contact {id}"', "views.yaml:4: views.contact.key: holds ' ' outside of a field: use letters"),
        ('"contact:{id}"', '"a%{id}"', "views.yaml:4: views.contact.key: holds '%' outside of a field"),
        ('"contact:{id}"', '"a~{id}"', "views.yaml:4: views.contact.key: holds '~' outside of a field"),
        ('"contact:{id}"', '"ä{id}"', "views.yaml:4: views.contact.key: holds '\\xe4' outside of a field"),
        ('"contact:{id}"', '""', "views.yaml:4: views.contact.key: has 0 characters"),
        ('"contact:{id}"', '"a:{}"', "views.yaml:4: views.contact.key: {} is not a field"),
        ('"contact:{id}"', '"a:{id}:{id}"', "views.yaml:4: views.contact.key: {id} stands twice"),
        ('"contact:{id}"', '"a:{id}{x}"', "views.yaml:4: views.contact.key: {id} and {x} would run together"),
        ('"contact:{id}"', '"a:{id}-x_{x}"', "views.yaml:4: views.contact.key: {id} and {x} would run together"),
        ('"contact:{id}"', f'"a:{"x" * 200}"', "views.yaml:4: views.contact.key: has 202 characters"),
        ('"contact:{id}"', '"a:{a}:{b}:{c}:{d}:{e}:{f}:{g}:{h}:{i}"', "views.yaml:4: views.contact.key: has 9 fields, more than 8"),
        ("public.contacts", "contacts", "views.yaml:8: views.contact.tables.contacts: is not a table name: write schema.table, such as public.contacts"),
        ("{id: contact_id}", "{idd: contact_id}", 'views.yaml:11: views.contact.tables.public.segment_members.parts.idd: the key contact:{id} has no such part; did you mean "id"?'),
        ("{id: contact_id}", "{id: 3}", "views.yaml:11: views.contact.tables.public.segment_members.parts: should map key parts to column names"),
        ("[email, status]", "email", "views.yaml:9: views.contact.tables.public.contacts.columns: should be a list of column names"),
        ("[email, status]", "[email, email]", 'views.yaml:9: views.contact.tables.public.contacts.columns[1]: names "email" twice'),
        ("mode: invalidate", "mode: refresh", "views.yaml:5: views.contact.mode: refresh writes one table's row, and 2 are named: use mode: invalidate"),
        ("public.templates:\n", "public.templates: {parts: {id: other}}\n", "views.yaml:16: views.template.tables.public.templates.parts: refresh needs a key named after its own columns"),
        ("public.templates:\n", "public.templates: {columns: []}\n", "views.yaml:16: views.template.tables.public.templates.columns: refresh stores these columns, and none is named"),
        ("template:{account}/{id}", "template", "views.yaml:14: views.template.mode: refresh needs a key with a field"),
        ("template:{account}/{id}", "contact:{id}", "views.yaml:13: views.template.key: contact:{id} can give the same key as contact:{id} of view contact: begin it with"),
        ("    tables:\n      public.templates:\n", "", 'views.yaml:12: views.template: "tables" is missing: add it'),
    ],
)  # fmt: skip
def test_a_mistake_names_line_path_and_remedy(old, new, expected):
    assert old in EXAMPLE
    assert complaint(EXAMPLE.replace(old, new, 1)).startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "version: 1\nviews: {}",
        "version: 1\nviews: []",
        "version: 1\nviews: {a: }",
        "\x00",
        "{",
        "version: true\nviews: {a: {}}",
    ],
)
def test_what_is_not_views_is_refused_in_one_line(text):
    assert complaint(text).startswith("views.yaml:")


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("contact:{id}", "contact:{email}", True),
        ("contact:{id}", "contact:x{id}", True),
        ("contact:{id}", "contact:new", True),
        ("contact:a{id}", "contact:b{id}", False),
        ("contact:{id}-a", "contact:{id}-b", False),
        ("contact:{id}-a", "contact:{id}-a-a", True),
        ("contact:{id}", "contact:{id}:v2", False),
        ("contact:{id}", "contact:{id}:", False),
        ("contact:{id}", "contact/{id}", False),
        ("contact:{id}", "{kind}:{id}", True),
        ("contact:{id}", "contacts:{id}", False),
        ("{id}", "{name}", True),
        ("a{id}a", "a", False),
        ("a{id}a", "aa", True),
    ],
)
def test_templates_share_a_key_only_when_every_stretch_agrees(first, second, shared):
    assert can_share_a_key(parse_template(first), parse_template(second)) is shared
    assert can_share_a_key(parse_template(second), parse_template(first)) is shared


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (42, "42"),
        (-7, "-7"),
        (10**30, "1" + "0" * 30),
        (True, "true"),
        (False, "false"),
        ("", ""),
        ("ann+x@example.org", "ann+x@example.org"),
        ("1:2", "1%3A2"),
        ("{a}", "%7Ba%7D"),
        ("50%", "50%25"),
        ("~x", "%7Ex"),
        ("a b\n\0", "a%20b%0A%00"),
        ("é", "%C3%A9"),
        ("\ud800", "%ED%A0%80"),
        ("None", "None"),
    ],
)
def test_parts_are_encoded(value, part):
    assert encode_part(value) == part
    assert parse_template("k:{a}").render((value,)) == f"k:{part}"


@pytest.mark.parametrize(
    "value", ["x" * 201, "é" * 34, "x" * 10_000_000, 10**200], ids=["ascii", "utf-8", "huge", "integer"]
)
def test_long_parts_become_a_hash(value):
    part = encode_part(value)
    assert part.startswith("~")
    assert len(part) == 65


@pytest.mark.parametrize("value", ["x" * 200, "é" * 33])
def test_parts_up_to_the_limit_stay_readable(value):
    assert not encode_part(value).startswith("~")


@pytest.mark.parametrize(
    "value", [None, 1.0, float("nan"), [1], (1,), {"a": 1}, b"a", object(), pytest.param(10**5_000, id="huge")]
)
def test_a_part_without_a_text_form_is_a_bad_record(value):
    for key, parts in (("k:{a}", (value,)), ("k:{a}:{b}", (1, value))):
        with pytest.raises(BadRecord, match="key part"):
            parse_template(key).render(parts)


@pytest.mark.parametrize("values", [(), (1,), (1, 2, 3)])
def test_a_wrong_number_of_parts_is_a_bad_record(values):
    with pytest.raises(BadRecord, match="has 2 parts"):
        parse_template("k:{a}:{b}").render(values)


def test_a_bad_part_is_not_quoted():
    with pytest.raises(BadRecord) as caught:
        parse_template("k:{a}").render((["hunter2"],))
    assert "hunter2" not in str(caught.value)


def test_a_key_without_fields_is_one_key():
    assert parse_template("dashboard").render(()) == "dashboard"
