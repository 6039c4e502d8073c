"""Templates: columns come through unchanged, nothing unknown is passed over, nothing runs away or runs code."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.templates import (
    MAX_CHARACTERS,
    UnknownNameError,
    columns_in,
    compile_template,
    render_template,
)

ROW: dict[str, Any] = {"q": "hello ", "n": 3, "choices": ["x", "<y>"], "nothing": None, "my column": "m"}


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_text_is_put_as_it_is_and_never_read_as_a_template(one: str, two: str) -> None:
    assert render_template("<{{ a }}|{{ b }}>", {"a": one, "b": two}) == f"<{one}|{two}>"
    assert render_template("<{{ a }}>", {"a": "{{ b }}"}) == "<{{ b }}>"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ q }}{{ n }}", "hello 3"),
        ("{{ nothing }}|{{ nothing or 'none' }}", "|none"),
        ("{{ row['my column'] }}", "m"),
        ("{{ missing | default('-') }}{% if also is defined %}no{% endif %}", "-"),
        ("{% for c in choices %}\n{{ 'AB'[loop.index0] }}. {{ c }}\n{% endfor %}\n", "A. x\nB. <y>"),
        ("{{ choices | tojson }} {{ q | trim | upper }} {{ q.strip() }}", '["x", "<y>"] HELLO hello'),
        ("{{ 2 * n }} {{ n % 2 }} {{ range(n) | join(',') }}", "6 1 0,1,2"),
        ("\n  {{ n }}\n\n", "3"),
    ],
)
def test_the_language(template: str, text: str) -> None:
    assert render_template(template, ROW) == text


@pytest.mark.parametrize(
    "template", ["{{ qq }}", "{{ qq.a }}", "{% if qq %}{% endif %}", "{% for x in qq %}{% endfor %}"]
)
def test_an_unknown_name_is_an_error_that_says_which(template: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        render_template(template, ROW)
    assert caught.value.name == "qq"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'a' * 10**9 }}", "may not"),
        ("{{ q * 1000000000 }}", r"operator \* on str and int"),
        ("{{ '%1000000000d' % 1 }}", "may not"),
        ("{{ '{:>1000000000}'.format(1) }}", "may not"),
        ("{{ q.ljust(1000000000) }}", "may not"),
        ("{{ range(1000000000) | length }}", "range of more than 1000"),
        ("{% for i in range(999) %}{% for j in range(999) %}{{ q }}{% endfor %}{% endfor %}", "at most 1,048,576"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ q.__class__.__mro__ }}", "unsafe"),
        ("{{ choices.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ n / 0 }}", "ZeroDivisionError"),
        ("{{ q.nope }}", "not there: .*nope"),
        ("{{ choices | map('center') | list }}", "No filter named 'center'"),
    ],
)
def test_what_runs_away_or_reaches_out_is_stopped(template: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render_template(template, ROW)


def test_the_longest_text_is_allowed() -> None:
    assert len(render_template("{{ q }}", {"q": "x" * MAX_CHARACTERS})) == MAX_CHARACTERS
    with pytest.raises(ValueError, match="at most"):
        render_template("{{ q }}", {"q": "x" * (MAX_CHARACTERS + 1)})


@pytest.mark.parametrize("template", ["{{ a", "{% if %}", "{{ x | random }}", "{{ x | format }}", "a\n{% end %}"])
def test_what_is_no_template_is_told_with_its_line(template: str) -> None:
    with pytest.raises(ValueError, match=rf"expected a template .* at line {template.count(chr(10)) + 1}"):
        compile_template(template)


def test_columns_are_those_that_come_from_the_row() -> None:
    assert columns_in("{% for c in cs %}{{ c }}{{ range(n) }}{% endfor %}{{ row['x'] }}") == {"cs", "n", "row"}


def test_a_column_may_have_the_name_of_a_function() -> None:
    assert render_template("{{ range }}", {"range": "r"}) == "r"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")), st.lists))
def test_json_comes_out_as_json(value: Any) -> None:
    assert json.loads(render_template("{{ v | tojson }}", {"v": value})) == value
