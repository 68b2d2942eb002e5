"""Chat templates: what transformers renders, and a budget for programs of strangers."""

# ruff: noqa: E501 - a template reads better on one line

from __future__ import annotations

import threading
from typing import Any

import pytest

from edgespec.errors import BundleError, EdgespecError, SettingError
from edgespec.text.chat_template import ChatTemplate

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Grüße <b>\n"},
    {"role": "assistant", "content": "Hi", "tool_calls": [{"name": "f", "arguments": {"b": 1, "a": [True, None]}}]},
]

ALIKE = {
    "loops": "{% for m in messages %}{{ loop.index0 }}/{{ loop.length }}{% if loop.last %}!{% endif %}{{ m.role }}\n"
    "{% endfor %}",
    "loop filter": "{% for m in messages if m.role != 'user' %}{{ loop.revindex }}{{ m.content }}{% else %}none{% endfor %}",
    "loop over items": "{% for k, v in messages[2].items() %}{{ k }}={{ v }};{% endfor %}",
    "loop over nothing": "{% for m in nowhere %}{{ m }}{% else %}nothing{% endfor %}",
    "recursive loop": "{% for x in [[1, [2]], 3] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}"
    "{% endif %}{% endfor %}",
    "controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}{{ x }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, t='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.t = ns.t ~ m.role ~ loop.index %}{% endfor %}{{ ns.n }}{{ ns.t }}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages[1].content | tojson(true) }}"
    "{{ messages | tojson(ensure_ascii=False, sort_keys=True, separators=(',', ':')) }}",
    "macro": "{% macro say(m, n=2) %}{{ m.role ~ n }}{{ caller() if caller }}{% endmacro %}{{ say(messages[0]) }}"
    "{% call say(messages[1], n=3) %}body{% endcall %}",
    "absent": "{% if tools is none %}no tools{% endif %}{% if documents == none %}no documents{% endif %}{{ missing }}",
    "text": "{{ messages[1].content | trim ~ 'a,b'.split(',')[-1] ~ ('x' * 3) ~ '%s-%03d' % ('a', 7) }}"
    "{{ '{:>4}'.format(1) }}{{ messages[1]['content'].strip() | upper }}{{ 'abc'[::-1] }}{{ 'aXa'.replace('a', 'bb') }}",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}"
    "{{ ['b', 'a'] | sort | join(', ') }}{{ {'a': 1} | dictsort }}{{ 'x' | indent(2, first=true) }}{{ none | default('d', true) }}",
    "blocks": "  {% if true %}\n  a\n  {%- endif %}\n  {% set text %}b{{ 1 + 1 }}{% endset %}{{ text }}",
    "inside": "{% filter upper %}a{% for m in messages %}{{ m.role }}{% endfor %}{% endfilter %}",
}


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("extra", [{}, {"tools": [{"type": "function", "function": {"name": "f"}}]}], ids=["", "tools"])
def test_it_renders_what_transformers_does(name: str, extra: dict[str, Any]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template([TALK], chat_template=ALIKE[name], add_generation_prompt=True, **extra)
    [expected], _ = rendered
    assert ChatTemplate(ALIKE[name]).render(TALK, **extra) == expected


ENDLESS = {
    "a long text": "{{ 'a' * (3 * 10**9) }}",
    "a number": "{{ 9**(9**9) }}",
    "a number printed": "{{ 10**100000 }}",
    "a list": "{{ ([1] * 10**9) | length }}",
    "loops in loops": "{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "doubling": "{% set ns = namespace(x='aa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling sums": "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling macros": "{% macro m0() %}xxxxxxxxxx{% endmacro %}"
    + "".join(f"{{% macro m{n + 1}() %}}{{{{ m{n}() ~ m{n}() }}}}{{% endmacro %}}" for n in range(24))
    + "{{ m24() }}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "replace": "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
    "replace, the method": "{{ ('x' * 10**6).replace('x', 'y' * 10**6) }}",
    "join": "{{ range(99999) | join('x' * 10**6) }}",
    "join, the method": "{{ ('x' * 10**6).join('y' * 10**6) }}",
    "a width": "{{ 'x' | center(10**10) }}{{ 'x'.ljust(10**10) }}",
    "a format": "{{ '%0999999999d' % 1 }}",
    "a format's argument": "{{ '%*d' % (999999999, 1) }}",
    "another format": "{{ '{:999999999}'.format(1) }}",
    "a format in a format": "{{ '{:{}}'.format(1, 999999999) }}",
    "an indent": "{{ messages | tojson(indent=10**9) }}",
    "filler": "{{ lipsum(99999) }}",
    "attributes": "{{ ''.__class__.__mro__ }}",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_work_is_refused(name: str) -> None:
    with pytest.raises(EdgespecError):
        ChatTemplate(ENDLESS[name]).render(TALK)


@pytest.mark.parametrize(
    "source", ["(" * 3000, "{{ " + "(" * 3000, "{% if " * 500, "{% break %}", "{% nope %}", "{{ 'a", "x" * 10**6]
)
def test_what_does_not_compile_is_a_damaged_bundle(source: str) -> None:
    if source == "(" * 3000:  # is text
        assert ChatTemplate(source).render(TALK) == source
        return
    with pytest.raises(BundleError, match="chat template"):
        ChatTemplate(source)


def test_a_long_conversation_is_within_the_budget() -> None:
    template = ChatTemplate("{% for m in messages %}{{ '<s>' + m.role + m['content'] | trim + '</s>' }}{% endfor %}")
    talk = [{"role": "user", "content": "word " * 2000}] * 500
    assert len(template.render(talk)) == 500 * (len("<s>user</s>") + 2000 * 5 - 1)


def test_each_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for a in range(90000) %}{% endfor %}.")
    texts: list[str] = []

    def work() -> None:
        for _ in range(3):
            texts.append(template.render(TALK))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["."] * 12


def test_a_refusal_of_the_template_is_said() -> None:
    with pytest.raises(SettingError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(TALK)
