"""Keys are injective: different parts give different keys, within a template and across templates."""

from __future__ import annotations

import hashlib
import re
from itertools import combinations_with_replacement, product

from hypothesis import assume, example, given
from hypothesis import strategies as st

from invalidator.views import KeyTemplate, can_render, can_share_a_key, encode_part, key_parts, parse_template

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)  # with lone surrogates, NUL and controls
NEAR_TEXT = st.text(st.sampled_from("%~:/{}a3A{\ud800é"), max_size=6)
LONG_TEXT = st.builds(
    lambda text, times: text * times, st.text(st.characters(), min_size=1, max_size=3), st.integers(50, 300)
)
TEXTS = NEAR_TEXT | ANY_TEXT | LONG_TEXT
PARTS = TEXTS | st.integers(-(10**220), 10**220)

HASH = hashlib.sha256(b"x" * 201).hexdigest()
PRINTABLE = re.compile(r"[A-Za-z0-9_.@+%~-]{0,200}")


def alike(value: object) -> str:
    """What a column's values are told apart by: a column has one type, so 42 and "42" mean one row."""
    return str(value)


@st.composite
def templates(draw: st.DrawFn) -> KeyTemplate:
    """Few letters and separators, so that two templates are often nearly the same."""
    literal = st.text(st.sampled_from("ab-:/"), max_size=3)
    text = draw(literal)
    for name in "xyz"[: draw(st.integers(0, 3))]:
        between = draw(literal.filter(lambda t: ":" in t or "/" in t)) if "{" in text else ""
        text += f"{between}{{{name}}}"
    return parse_template(text + draw(literal) or "a")


@given(PARTS, PARTS)
@example("a:b", "a%3Ab")
@example("~", "%7E")
@example("\ud83d\ude00", "😀")
@example("\ud800", "\ud801")
@example("~" + HASH, "x" * 201)
@example(HASH, "x" * 201)
def test_different_values_have_different_parts(first, second):
    assume(alike(first) != alike(second))
    assert encode_part(first) != encode_part(second)


@given(PARTS)
def test_a_part_is_short_printable_and_without_separators(value):
    assert PRINTABLE.fullmatch(encode_part(value))


@given(st.data(), templates())
def test_different_tuples_have_different_keys_in_one_template(data, template):
    size = len(template.fields)
    short = st.tuples(*[NEAR_TEXT | st.integers(0, 3)] * size) | st.tuples(*[PARTS] * size)
    first, second = data.draw(short), data.draw(short)
    assume([alike(v) for v in first] != [alike(v) for v in second])
    assert template.render(first) != template.render(second)


@given(st.data(), templates(), templates())
def test_templates_that_cannot_share_a_key_never_do(data, ours, theirs):
    assume(not can_share_a_key(ours, theirs))
    near = st.text(st.sampled_from("ab-"), max_size=4) | NEAR_TEXT
    first = data.draw(st.tuples(*[near] * len(ours.fields)))
    second = data.draw(st.tuples(*[near] * len(theirs.fields)))
    assert ours.render(first) != theirs.render(second)


def test_the_refusal_of_shared_keys_is_exact():
    """Every pair of small templates: refused exactly when trying all short parts finds a common key."""
    words = ["".join(word) for length in range(5) for word in product("ab", repeat=length)]
    affixes = ["", "a", "b", "ab"]
    fields = [parse_template(f"k:{before}{{x}}{after}") for before in affixes for after in affixes]
    plain = [parse_template(f"k:{word}") for word in words[:7]]
    keys = {t: {t.render((word,)) for word in words} if t.fields else {t.render(())} for t in fields + plain}
    for ours, theirs in combinations_with_replacement(keys, 2):
        assert can_share_a_key(ours, theirs) == (not keys[ours].isdisjoint(keys[theirs])), (ours.text, theirs.text)


@given(templates(), st.data())
def test_keys_are_printable_and_bounded(template, data):
    key = template.render(data.draw(st.tuples(*[PARTS] * len(template.fields))))
    assert key.isascii()
    assert key.isprintable()
    assert not set(key) & set("{} \\\"'")
    assert len(key) <= len(template.text) + 200 * len(template.fields)


@given(st.data(), templates())
def test_every_rendered_key_is_one_that_its_template_can_render(data, template):
    parts = data.draw(st.tuples(*[PARTS] * len(template.fields)))
    key = template.render(parts)
    assert can_render(template, key)
    assert key_parts(template, key) == tuple(None if encode_part(p).startswith("~") else str(p) for p in parts)


@given(st.data(), templates())
def test_the_parts_of_a_key_are_those_that_it_was_rendered_from_unless_hashed(data, template):
    parts = data.draw(st.tuples(*[NEAR_TEXT] * len(template.fields)))
    expected = tuple(None if encode_part(part).startswith("~") else part for part in parts)
    assert key_parts(template, template.render(parts)) == expected


@given(st.data(), templates(), templates())
def test_no_template_can_render_the_key_of_one_that_shares_none_with_it(data, ours, theirs):
    assume(not can_share_a_key(ours, theirs))
    assert not can_render(ours, theirs.render(data.draw(st.tuples(*[NEAR_TEXT] * len(theirs.fields)))))


def test_the_keys_that_can_be_rendered_are_exactly_those_that_some_text_renders():
    """Every part of up to 4 characters: so short a one stands for plain characters, or one escape and one of those."""
    template = parse_template("b{x}b:c")
    plain, escaped = "a25AF", '"%*/RUZ_~'
    texts = ["".join(t) for n in range(5) for t in product(plain, repeat=n)]
    texts += ["".join(t) for n in range(3) for t in product(plain + escaped, repeat=n)]
    rendered = {template.render((text,)) for text in texts}
    for part in ("".join(t) for n in range(5) for t in product(plain + "%~", repeat=n)):
        assert can_render(template, f"b{part}b:c") == (f"b{part}b:c" in rendered), part


@given(NEAR_TEXT)
def test_a_key_with_another_word_or_a_longer_part_cannot_be_rendered(text):
    template = parse_template("contact:{id}")
    key = template.render((text,))
    assert not can_render(template, key.replace("contact", "contacts"))
    assert not can_render(template, key + ":")
    assert not can_render(template, key + "x" * 201)
