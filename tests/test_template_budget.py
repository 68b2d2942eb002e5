"""Chat templates say what they say in transformers, and cost no more than they may."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgespec.errors import SettingError
from edgespec.text.chat_template import ChatTemplate
from tests.template_bombs import NOT_COMPILED, REFUSED, TOO_MUCH

ROOT = Path(__file__).resolve().parents[1]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> in a city, é",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "empty": [],
    "one turn": [{"role": "user", "content": "Hi there"}],
    "four turns": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Grüße & <b>"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\n日本"},
        {"role": "user", "content": "> and?\n\n"},
    ],
    "tools": [
        {"role": "user", "content": "How warm is Köln?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "weather", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "name": "weather", "content": '{"t": 3}'},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]}],
}
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') ~ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "generation": "{% for m in messages %}{%- generation -%} {{ m.content }} {% set seen = 1 %}{%- endgeneration -%}"
    "{{ seen is defined }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{{ m.role }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(true) }}{{ messages | tojson(indent=4) }}"
    "{{ tools | tojson(false, 2) }}"
    "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
    "tojson's ascii": "{{ messages | tojson(ensure_ascii=True) }}{{ messages | tojson(ensure_ascii=False) }}",
    "tojson of no JSON": "{{ nothing | tojson }}",
    "no tools": "{% if tools is not none %}tools{% endif %}{% if documents != none %}documents{% endif %}"
    "{{ tools is defined }}",
    "blocks are trimmed": "  {% if true %}\n  a\n  {% endif %}\n{{ '\n' }}\n\n",
    "refusal": "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}ok",
    "the year": "{{ strftime_now('%Y') }}",
    "macros": "{% macro show(m, sep=': ') %}{{ m.role }}{{ sep }}{{ caller() if caller else m.content }}"
    "{% endmacro %}"
    "{% for m in messages %}{{ show(m) }}{% call show(m, sep='=') %}[{{ m.role | upper }}]{% endcall %}"
    "{% endfor %}",
    "thoughts are cut": "{% for m in messages if m.content is string %}{% set c = m.content %}{% if '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ c.startswith('G'), c.strip(), c[::-1], c | length }}{% endfor %}",
    "the last question": "{% set ns = namespace(last=-1, all=[]) %}"
    "{% for m in messages[::-1] %}{% if m.role == 'user' %}"
    "{% set ns.last = (messages | length - 1) - loop.index0 %}{% endif %}"
    "{% set ns.all = ns.all + [m.role] %}{% endfor %}"
    "{{ ns.last }}{{ ns.all | join('+') }}",
    "selections": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | map(attribute='role') | unique"
    " | sort | join(',') }}{{ messages | rejectattr('content', 'string') | map('tojson') | list }}"
    "{{ messages | selectattr('x') | first }}",
    "a generator": "{% set g = messages | map(attribute='role') %}{% if g %}yes{% endif %}{{ g | list }}{{ g | list }}"
    "{{ g is iterable }}"
    "{{ g is sequence }}",
    "a generator's length": "{{ messages | map(attribute='role') | length }}",
    "dictionaries": "{% for m in messages %}{% for k, v in m.items() %}{{ k }}={{ v }}{% endfor %}{{ m | dictsort }}"
    "{{ m | items | list }}"
    "{{ m.get('name', 'none') }}{{ 'tool_calls' in m }}{{ m['role'] }}{% endfor %}",
    "filters": "{{ ' a b-c ' | title }}{{ ' a' | trim | capitalize }}{{ 'a\nb' | indent(3, first=true) }}"
    "{{ -1.26 | abs | round(1) }}"
    "{{ '7' | int + 1.5 }}{{ 'x' | float(2) }}{{ [3, 1] | sum }}{{ [3, 1] | sort | last }}"
    "{{ [1, 2] | max }}{{ 'aXbX' | replace('X', '.', 1) }}"
    "{{ [1, 2] | reverse | list }}{{ 'ab' | reverse }}{{ '%s-%03d' | format('a', 7) }}"
    "{{ nothing | default('d') }}{{ '<' | e }}"
    "{{ 'long text here' | truncate(8) }}{{ {'a': 1} | string }}{{ '<b>' | safe }}",
    "arithmetic": "{{ 7 // 2, 7 % 2, 2 ** 10, 'ab' * 2, [1] + [2], 7 / 2, -3, 'a%sb' % 1 }}",
    "conditions": "{{ 'a' if messages else 'b' }}{{ 1 < 2 < 3 }}{{ 2 in [1, 2] and not 3 in (1, 2) }}"
    "{{ messages is mapping }}",
    "recursion": "{% for x in [[1, [2]], 3] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}"
    "{% endif %}{% endfor %}",
    "loop variables": "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}"
    "{{ (loop.previtem or {}).role }}"
    "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% else %}none{% endfor %}",
    "set blocks": "{% set a %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ a }}{% set b | upper %}"
    "x{% endset %}{{ b }}"
    "{% filter upper %}{{ a }}{% endfilter %}{% with c = 1 %}{{ c }}{% endwith %}",
    "tokens": "{{ bos_token + 'a' + eos_token }}",
    "undefined": "{{ nothing }}{{ messages[99] }}{{ nothing is defined }}",
    "undefined of undefined": "{{ nothing.at.all }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_what_it_says_in_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template(TEMPLATES[name])
    ours = ChatTemplate(TEMPLATES[name], bos_token="<s>", eos_token="</s>")
    for messages in CONVERSATIONS.values():
        for tools in (None, TOOLS):
            for prompt in (True, False):
                options: dict[str, Any] = {"add_generation_prompt": prompt, "tools": tools}
                try:
                    expected = theirs.render(
                        messages=messages, documents=None, bos_token="<s>", eos_token="</s>", **options
                    )
                except Exception as error:
                    with pytest.raises(
                        SettingError, match="the model's chat template refuses these messages"
                    ) as raised:
                        ours.render(messages, **options)
                    if type(error).__name__ == "TemplateError":  # its own words
                        assert str(error) in str(raised.value)
                else:
                    assert ours.render(messages, **options) == expected


_MOST_OF_PLAIN = 10
"""a budget of steps is about as much work as so many in a plain loop on the same machine; a few do more work"""
_MOST_MB = 50
"""with a quarter of the usual steps, so 200 with all of them"""


def test_templates_cost_no_more_than_they_may() -> None:
    """Of time, of memory, and of error messages."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.template_bombs", str(_MOST_OF_PLAIN)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    sources = TOO_MUCH + REFUSED + NOT_COMPILED
    assert len(results) == len(sources)
    for source, (of_plain, grown_mb, error) in zip(sources, results, strict=True):
        about = (source[:100], of_plain, grown_mb, error)
        assert of_plain < _MOST_OF_PLAIN and grown_mb < _MOST_MB, about
        if source in TOO_MUCH:
            assert error.startswith("OverBudget: the model's chat template "), about
        elif source in REFUSED:
            # What recurses runs into Python's own limit first, or into the budget: that is Python's version to say.
            refusals = "SettingError: the model's chat template refuses these messages: ", "OverBudget: the model's"
            assert error.startswith(refusals), about
        else:
            assert error.startswith(("BundleError: chat template does not", "BundleError: chat template is too")), about


def test_long_conversations_are_within_the_budget() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 100} for i in range(2000)]
    for name in ("chatml", "the last question", "thoughts are cut", "selections"):
        ChatTemplate(TEMPLATES[name]).render(messages)
    one = [{"role": "user", "content": "word " * 10**6}]
    assert len(ChatTemplate(TEMPLATES["chatml"]).render(one)) > 5 * 10**6


def test_a_template_reaches_nothing_and_changes_nothing() -> None:
    messages = [{"role": "user", "content": ["a"]}]
    for evil in (
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].content.append('b') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (messages | attr('__class__')).mro() }}",
        "{{ namespace.__init__.__globals__ }}",
    ):
        with pytest.raises(SettingError):
            ChatTemplate(evil).render(messages)
    assert messages == [{"role": "user", "content": ["a"]}]


def test_compiling_and_rendering_are_quick() -> None:
    """Beside transformers, which has no budget: the same order of time."""
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    source = TEMPLATES["thoughts are cut"] + TEMPLATES["chatml"]
    seconds = []
    for make in (_cached_compile_jinja_template, ChatTemplate):
        began = time.process_time()
        for _ in range(20):
            template: Any = make(source)
            for _ in range(20):
                if make is ChatTemplate:
                    template.render(CONVERSATIONS["four turns"])
                else:
                    template.render(messages=CONVERSATIONS["four turns"], add_generation_prompt=True)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 4 * seconds[0]
