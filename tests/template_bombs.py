"""Templates that would take all time or memory, and what comes of each.

``python -m tests.template_bombs MOST`` renders each template in one process, with a quarter of the usual steps, and
prints a JSON line of each: time of the CPU over that of a plain loop of as many steps, growth of the peak of memory in
MB (on Linux), and the error. The loop runs right before and right behind, so both have the same share of the machine.
Other programs can only add to a time. So one over MOST is taken again: the least is the template's own.
"""

from __future__ import annotations

import json
import sys
import time
from math import inf

TOO_MUCH = (
    # large results of one operation
    "{{ 'a' * (3*10**9) }}",
    "{{ 9**(9**9) }}",
    "{{ 10**100000 }}",
    "{{ ([1] * 10**5) * 10**5 }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.999999999f' | format(1.5) }}",
    "{{ '%(a)s' * 10**5 % {'a': 'x' * 10**5} }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 999999999) }}",
    "{{ ('{0}' * 10**5).format('x' * 10**5) }}",
    "{{ ('{a}' * 10**5).format_map({'a': 'x' * 10**5}) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ ''.join(['x' * 10**6] * 10**6) }}",
    "{{ range(99999) | join('x' * 10**6) }}",
    "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
    "{{ ('x' * 10**6).replace('', 'y' * 10**6) }}",
    "{{ 'a' | indent(10**9, true) }}",
    "{{ ('\n' * 10**6) | indent('x' * 10**6, true, true) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ ([[[[[1] * 10**5]]]]) | tojson(indent=10**5) }}",
    "{{ ([1] * 10**6) | tojson(separators=('x' * 200, ':')) }}",
    "{{ ('a b ' * 10**6).split() | length }}",
    "{{ ('aé' * 10**7) | list | length }}",
    "{{ ('<' * 10**7) | e | e | e | e | e }}",
    "{{ 1.5 | round(10**9) }}",
    "{{ [[1] * 9999] * 9999 | sum(start=[]) }}",
    "{% autoescape 'a' * 10**9 %}{% endautoescape %}",
    "{% for a in range(99) %}{% set x = '{0[a}b]:{1}}'.format({'a}b': 'x'}, 900000000) %}{% endfor %}",
    "{% set n = 2**32000 * 2**32000 %}{% set x = ('{:b}' * 1900).format(*[n] * 1900) %}",
    "{% set n = 2**32000 * 2**32000 %}{% set f = '{0:b}' * 1900 %}{% for a in range(999) %}{% set x = f.format(n) %}"
    "{% endfor %}",
    "{% set n = 2**32000 * 2**32000 %}{% set x = '%x' * 1900 % ((n,) * 1900) %}",
    # many turns
    "{% set x = 2**32000 * 2**32000 %}{% set y = 2**32000 + 7 %}{% for a in range(99999) %}{% set z = x // y %}"
    "{% endfor %}",
    "{% set x = 2**32000 %}{% for a in range(99999) %}{% set z = x * x %}{% endfor %}",
    "{% macro m() %}{{ '' if varargs else '' }}{% endmacro %}{% set r = range(99999) | list %}"
    "{% for a in range(9999) %}{{ m(*r) }}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if b > 5 and b < 3 %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | select | list | length }}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | selectattr('real') | first }}{% endfor %}" * 30,
    "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "{% for a in range(99999) %}{{ 'a' in range(99999) }}{% endfor %}",
    "{% for a in range(99999) %}{% set x = loop.changed([1] * 99999) %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "{{ range(99999) | map(attribute='a" + ".0" * 99 + "', default='x') | list }}",
    # a large value, many times
    "{% set x = 'a' * 10**6 %}{% for a in range(99999) %}{% if x ~ 'b' in x %}{% endif %}{% endfor %}",
    "{% set x = 'a' * 10**6 %}{% set y = 'a' * 10**6 %}{% for a in range(99999) %}{{ x is eq y }}{% endfor %}",
    "{% set x = [1] * 10**6 %}{% for a in range(99999) %}{% set y = x[::-1] %}{% endfor %}",
    "{% set x = 'A' * 10**6 %}{% set y = ([x ~ 'x', x ~ 'y'] * 600) | select | sort %}",
    "{% set x = 'A' * 10**6 %}{% set y = ([x ~ 'x', x ~ 'y'] * 600) | select | unique | list %}",
    "{% set x = 'A' * 10**6 %}{% set y = ([x ~ 'x', x ~ 'y'] * 600) | select | max %}",
    "{% set x = 'A' * 10**6 %}{{ x ~ 'y' in ([x ~ 'x'] * 10**5) | select }}",
    "{% set x = 'A' * 10**6 %}{{ (x ~ 'y',) | select('in', ([x ~ 'x'] * 10**5) | select) | list }}",
    "{% set x = 'a b ' * 10**5 %}{% for a in range(99999) %}{% set y = x | title %}{% endfor %}",
    "{% set x = {'a': 1} %}{% set y = ('a' * 10**6,) %}{% for a in range(99999) %}{% set z = x[y] %}{% endfor %}",
    "{{ ('a' * 10**6).strip('b' * 10**6 ~ 'a') }}",
    "{{ ('a' * 10**6) | trim('b' * 10**6 ~ 'a') }}",
    "{{ ('a' * 10**6).rfind('b' ~ 'a' * 10**5) }}",
    "{% set x %}{% for a in range(99999) %}" + "a" * 10**5 + "{% endfor %}{% endset %}",
    "{% macro m() %}" + "a" * 10**5 + "{% endmacro %}{% for a in range(99999) %}{% set x = m() %}{% endfor %}",
    "{% for a in range(99999) %}" + "{% set a = 1 %}" * 2000 + "{% endfor %}",
    "{% set x = joiner('a' * 10**6) %}{% for a in range(99999) %}{{ x() }}{% endfor %}",
    "{% macro m() %}{{ caller(1) }}{% endmacro %}{% for a in range(99999) %}{% call(b) m() %}"
    + "a" * 10**4
    + "{% endcall %}{% endfor %}",
    # values that double
    "{% set ns = namespace(x='aa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aa') %}{% for a in range(60) %}"
    "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}"
    "{% set ns.x = {'a': ns.x, 'b': ns.x}.items() %}{% endfor %}",
    "{% set ns = namespace(x=7) %}{% for a in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set ns = namespace(g=[1]) %}{% for a in range(9) %}{% for b in range(99999) %}"
    "{% set ns.g = ns.g | map('string') %}{% endfor %}{% endfor %}",
    "{% set a = [1] * 10**6 %}{% set b = [1] * 10**6 %}{% set c = [1] * 10**6 %}",
    "{% set ns = namespace(x=1) %}{% for a in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}{{ {ns.x: 1} }}",
)
REFUSED = (
    "{{ '\t'.expandtabs(10**10) }}",
    "{{ 'aaa'.translate({97: 'x' * 10**7}) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ 'a'.encode('utf-32') }}",
    "{{ lipsum(99999) }}",
    "{{ range(10**9) | list }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% for x in [[[]]] recursive %}{{ loop([[1], [1]]) }}{% endfor %}",
    "{% set ns = namespace(g=[1]) %}{% for a in range(99999) %}{% set ns.g = ns.g | map('string') %}{% endfor %}"
    "{{ ns.g | list }}",
    "{% include 'x' %}",
    "{{ 1 / 0 }}",
    "{{ none + 1 }}",
)
NOT_COMPILED = (
    "{{ 'x' | center(10**10) }}",
    "{{ 'x' | wordwrap(0) }}",
    "{{ [1] | batch(10**10) | list }}",
    "{{ 'ab' | slice(10**9) | list }}",
    "{% break %}",
    "{% for %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "9" * 100_000 + " }}",
    "{{ 1" + "+1" * 9000 + " }}",
    "{{ x" + ".a" * 9000 + " }}",
    "{{ " + "not " * 9000 + "1 }}",
    "{% if a %}" * 500 + "{% endif %}" * 500,
    "{% for a in b %}" * 50 + "{% endfor %}" * 50,
    "{{ a }}" * 50_000,
    "{% if a %}" + "{% elif a %}" * 50_000 + "{% endif %}",
    "{#" * 500_000,
    "a" * 2_000_000,
)


_TIMES = 5
"""that a template is rendered, at most"""
_SHARE = 16
"""of the plain loop, to run between templates"""


def main(most: float) -> None:
    from edgespec.text import template_budget
    from edgespec.text.chat_template import ChatTemplate

    ChatTemplate("{{ 'a' }}").render([])
    template_budget.STEPS //= 4
    for source in TOO_MUCH + REFUSED + NOT_COMPILED:
        before, ratio = _peak_mb(), inf
        for _ in range(_TIMES):
            least, error = _rendered(source)
            ratio = min(ratio, least)
            if ratio < most:
                break
        print(json.dumps([ratio, _peak_mb() - before, error]), flush=True)


def _rendered(source: str) -> tuple[float, str]:
    """Its time over a plain loop's, and the error."""
    from edgespec.errors import EdgespecError
    from edgespec.text.chat_template import ChatTemplate

    plain_s, began, error = _plain_s(), time.process_time(), ""
    try:
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])
    except EdgespecError as caught:
        error = f"{type(caught).__name__}: {caught}"
    seconds = time.process_time() - began
    return seconds / ((plain_s + _plain_s()) / 2), error


def _plain_s() -> float:
    """Of as many steps as a template has."""
    from edgespec.text import template_budget

    began, total = time.process_time(), 0
    for step in range(template_budget.STEPS // _SHARE):
        total += step
    return _SHARE * (time.process_time() - began)


def _peak_mb() -> float:
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(float(sys.argv[1]))
