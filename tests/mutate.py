"""Seeded changes of a file: of its bytes, of the tree that a JSON file is, of the program that a chat template is."""

from __future__ import annotations

import json
import random
import re
from typing import Any


def mutate(name: str, data: bytes, seed: str) -> bytes:
    """One change or a few, the same ones for the same seed. Most leave a text one that parses."""
    draw = random.Random(seed)
    if name.endswith((".json", ".jinja")) and draw.random() < 0.7:
        return (_json if name.endswith(".json") else _template)(data, draw)
    for _ in range(draw.randint(1, 3)):
        data = draw.choice(_CHANGES)(bytearray(data), draw)
    return data


def _json(data: bytes, draw: random.Random) -> bytes:
    """Another value, one more or one less, somewhere in the tree."""
    root = json.loads(data)
    for _ in range(draw.randint(1, 2)):
        node: Any = root
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.8:
                node = node[key]
                continue
            change = draw.randrange(5)
            if change == 0:
                del node[key]
            elif change == 1 and isinstance(node, list):
                node.insert(key, node[key])
            else:
                node[key] = draw.choice((*_VALUES, [node[key]], {"a": node[key]}))
            break
    return json.dumps(root).encode()


def _template(data: bytes, draw: random.Random) -> bytes:
    """A piece of program between two of its own."""
    text = data.decode()
    at = draw.choice([place.end() for place in re.finditer(r"[%}]}|^", text)])
    return (text[:at] + draw.choice(_PIECES) + text[at:]).encode()


_VALUES: tuple[Any, ...] = (
    0,
    -1,
    1e300,
    10**20,
    2**31,
    0.5,
    None,
    "",
    "x",
    "x" * 100_000,
    [],
    {},
    True,
    [[]],
    "../../x",
    "\x1b[2J",
    "\0",
)
_PIECES = (
    "{{ 'a' * 10**9 }}",
    "{{ 9**9**9 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='aa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__ }}",
    "{{ raise_exception('no') }}",
    "{{ messages | tojson }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{{ messages[99].x.y }}",
    "{{ '%0999999999d' % 1 }}",
    "{% include 'x' %}",
    "{{ range(10**9) | list | length }}",
    "{{ [1] * 10**9 }}",
    "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
    "{{ 'x' | center(10**10) }}",
    "{% break %}",
    "{% generation %}a{% endgeneration %}",
    "{{ strftime_now('%Y') }}",
    "(" * 3000,
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if " * 500,
    "{{ 1/0 }}",
    "{{ 10**100000 }}",
    "{{ lipsum(99999) }}",
    "{{ messages | map('upper') | join('x' * 9999999) }}",
    "{% set x = cycler(1) %}{{ joiner('a' * 10**9) }}",
    "{{ x.y.z }}",
    "{{ 'a' | indent(10**9) }}",
    "{{ [[1] * 99999] * 99999 | sum(start=[]) }}",
    "{{ 'ab' | wordwrap(0) }}",
    "{{ none + 1 }}",
)


def _flip(data: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 8)):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _cut(data: bytearray, draw: random.Random) -> bytes:
    return bytes(data[: draw.randrange(len(data) + 1)])


def _huge(data: bytearray, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    number = draw.choice((0, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
    data[at : at + 8] = number.to_bytes(8, "little")
    return bytes(data)


def _remove(data: bytearray, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    del data[at : at + draw.choice((1, 4, 100))]
    return bytes(data)


def _repeat(data: bytearray, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    part = bytes(data[at : at + draw.randint(1, 64)])
    data[at:at] = part * draw.choice((1, 10, 1000))
    return bytes(data)


def _nest(data: bytearray, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    data[at:at] = draw.choice((b"[", b"(", b'{"a":', b"{% if a %}")) * draw.choice((1, 100, 100_000))
    return bytes(data)


_CHANGES = (_flip, _cut, _huge, _remove, _repeat, _nest)
