"""Jinja in a sandbox that cannot be made to work without end: steps, sizes and time are counted.

A chat template is a program of somebody else's. The sandbox of jinja2 keeps it from files and objects, not from
``'a' * 10**10`` or from loops in loops. Here every operator, call, filter and turn of a loop is a step, and nothing
that a step makes may be larger than a limit.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from math import inf
from time import monotonic
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

SOURCE_CHARS = 256 * 1024
"""the longest template seen has 30 thousand"""
LARGEST = 16_000_000
"""characters or items of anything it makes; bits of a number are LARGEST_BITS"""
LARGEST_BITS = 4096
STEPS = 500_000
"""a conversation of a hundred turns takes some five thousand"""
_CHARS_A_STEP = 64
"""that are copied"""
SECONDS = 10.0
"""backstop for steps that are long, each within its limits"""
_WIDTH = 100_000
"""of a number given to a call or a filter: widths, indents, counts"""


class OverBudget(SecurityError):
    """The template does more than a chat template has to."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One environment may serve many threads: each counts its own steps, from ``begin`` on."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], optimized=False)
        self.code_generator_class = _Generator
        self._spent = threading.local()
        self.concat = self.joined  # type: ignore[method-assign]
        self.globals.pop("lipsum")
        self.filters = {name: self.bounded(name, filter_) for name, filter_ in self.filters.items()}

    def begin(self) -> None:
        """A rendering."""
        self._spent.steps, self._spent.until = 0, monotonic() + SECONDS

    def step(self, cost: int = 1) -> None:
        self._spent.steps = getattr(self._spent, "steps", 0) + cost
        if self._spent.steps > STEPS:
            raise OverBudget(f"it takes more than {STEPS} steps")
        if (cost > 1 or self._spent.steps % 256 == 0) and monotonic() > getattr(self._spent, "until", inf):
            raise OverBudget(f"it takes more than {SECONDS:.0f} seconds")

    def turns(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop, each of them a step."""
        for item in items:
            self.step()
            yield item

    def joined(self, parts: Iterable[Any]) -> str:
        """The texts one behind the other."""
        size, texts = 0, []
        for part in parts:
            text = str(part)
            size += len(text)
            _require(size)
            texts.append(text)
        self.step(1 + size // _CHARS_A_STEP)
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.step()
        if operator == "**":
            _require_bits(_bits(left) * abs(right) if isinstance(right, int | float) else 0)
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                _require_bits(_bits(left) + _bits(right))
            else:
                _require(_size(left) * _size(right))
        elif operator == "+":
            _require(_size(left) + _size(right) if _is_sized(left) else 0)
        elif isinstance(left, str):
            _require_widths(left)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self.step()
        if __obj is not __self.globals.get("range") and __obj != __self.turns:
            owner = getattr(__obj, "__self__", None)
            __self._check(getattr(__obj, "__name__", ""), [*([owner] if _is_sized(owner) else []), *args], kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is not None:
            _require_widths(value.__self__)
        return made

    def bounded(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, whose work is looked at first."""
        passed = getattr(filter_, "jinja_pass_arg", None)

        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.step()
            self._check(name, list(args[1:] if passed else args), kwargs)
            return filter_(*args, **kwargs)

        if passed:
            bounded.jinja_pass_arg = passed  # type: ignore[attr-defined]
        return bounded

    def _check(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Numbers are no larger than any text needs; and what multiplies its arguments' sizes makes nothing large."""
        given = [*args, *kwargs.values()]
        if any(isinstance(value, int | float) and abs(value) > _WIDTH for value in given[1:]):
            raise OverBudget(f"{name} with a number over {_WIDTH}")
        sizes = [_size(value) for value in given if _is_sized(value)]
        if name == "replace" and len(sizes) > 2:
            _require(sizes[0] * max(1, sizes[2]))
        elif name == "join" and len(sizes) > 1:
            _require(sizes[0] * sizes[1])
        elif name in ("center", "indent", "ljust", "rjust", "expandtabs", "batch", "slice") and sizes:
            _require(sizes[0] + sizes[0] * max([1, *(int(v) for v in given[1:] if isinstance(v, int))]) // 8)
        elif name in ("format", "format_map") and isinstance(args[0], str):
            _require_widths(args[0])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Every loop is made to go through ``turns``."""
        tree = Parser(self, source, name, filename).parse()
        for loop in tree.find_all(nodes.For):
            call = nodes.Call(nodes.EnvironmentAttribute("turns"), [loop.iter], [], None, None)
            loop.iter = call.set_environment(self).set_lineno(loop.lineno)
        return tree


class Generation(Extension):
    """``{% generation %}`` marks what the model writes, for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802
        """``a ~ b`` is joined where sizes are looked at."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _is_sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple | dict)


def _size(value: Any) -> int:
    return len(value) if _is_sized(value) else abs(int(value)) if isinstance(value, int) else 1


def _bits(value: Any) -> int:
    return abs(value).bit_length() if isinstance(value, int) else 64


def _require(size: int) -> None:
    if size > LARGEST:
        raise OverBudget(f"it makes something larger than {LARGEST} characters or items")


def _require_bits(bits: float) -> None:
    if bits > LARGEST_BITS:
        raise OverBudget(f"it makes a number of more than {LARGEST_BITS} bits")


def _require_widths(form: str) -> None:
    """A format's widths and precisions have few digits, and are no arguments."""
    if re.search(r"\d{5}|%[^a-zA-Z%]*\*|\{[^}]*:[^}]*\{", form):
        raise OverBudget("a format with a width of more than four digits, or one that is an argument")
