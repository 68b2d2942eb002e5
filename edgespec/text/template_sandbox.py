"""Jinja for chat templates: the environment of transformers, in a sandbox where every operation has a price.

The syntax tree is rewritten before it is compiled (``template_tree``). Loops and macros pay for each turn, and an
operation pays for what it reads. Operations that turn little into much are replaced, or left out if no known template
uses them (``template_filters``, ``template_budget``). Compiling a template computes nothing.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from edgespec.errors import BundleError
from edgespec.text.template_budget import Budget, is_method_allowed, operate, pay_call, short
from edgespec.text.template_filters import FILTERS, READ, BudgetContext
from edgespec.text.template_tree import Priced

_LONGEST_SOURCE = 1 << 18
"""characters. Templates of known models have at most 30,000."""
_MOST_WORDS = 20_000
"""words of a template. Compiling takes some 4 kB for each. Templates of known models have at most 3,000."""


class Sandbox:
    """A compiled template. Raises jinja's errors, OverBudget, and any other error of a broken template."""

    def __init__(self, source: str) -> None:
        if len(source) > _LONGEST_SOURCE:
            raise BundleError(
                "chat template is too long", got=f"{len(source)} characters", allowed=f"{_LONGEST_SOURCE} characters"
            )
        self._template: Template = _Environment().from_string(source)

    def render(self, variables: Mapping[str, Any]) -> str:
        context = cast(BudgetContext, self._template.new_context(dict(variables)))
        context.budget = Budget(variables)
        pieces = []
        for piece in self._template.root_render_func(context):
            context.budget.write(piece)
            pieces.append(piece)
        return "".join(pieces)


class _Namespace(Namespace):
    def __repr__(self) -> str:  # without its values: they may contain each other many times
        return "<Namespace>"


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(short(form))


class _Tags(Extension):
    """Supports ``{% generation %}``, which marks the text that a model is trained on. Limits the words before they are
    parsed."""

    tags = {"generation"}  # noqa: RUF012

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for count, token in enumerate(stream):
            if count > _MOST_WORDS:
                raise BundleError("chat template is too complex", allowed=f"{_MOST_WORDS} words")
            yield token

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Macro) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    context_class = BudgetContext
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=FILTERS[READ],
            extensions=[_Tags, loopcontrols],
        )
        self.filters = dict(FILTERS)
        del self.globals["lipsum"]
        self.globals |= {"namespace": _Namespace, "raise_exception": _refuse, "strftime_now": _now}

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        priced: nodes.Template = Priced().visit(source)
        priced.set_environment(self)
        return super()._generate(priced, *args, **options)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (
            callable(value) and not is_method_allowed(obj, attr)
        )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return operate(cast(BudgetContext, context).budget, operator, left, right, self.binop_table[operator])

    def call(self, context: Context, obj: Any, /, *args: Any, **options: Any) -> Any:
        budget = cast(BudgetContext, context).budget
        if isinstance(obj, Macro):  # a macro pays for its own operations
            budget.items(len(args) + len(options))
        else:
            method = getattr(obj, "__wrapped__", obj)  # set by the sandbox's own str.format
            owner = method.__self__ if isinstance(method, (types.MethodType, types.BuiltinMethodType)) else None
            given = {name: value for name, value in options.items() if not name.startswith("_")}
            args = pay_call(budget, owner, getattr(obj, "__name__", ""), args, given)
        return super().call(context, obj, *args, **options)

    def call_filter(
        self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Any = None, *rest: Any
    ) -> Any:
        """A filter by name, as ``map`` calls it."""
        pay_call(context.budget, None, name, (value, *(args or ())), kwargs or {})
        return super().call_filter(name, value, args, kwargs, context, *rest)

    def call_test(
        self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Any = None, *rest: Any
    ) -> Any:
        """A test by name, as ``select`` calls it."""
        pay_call(context.budget, None, name, (value, *(args or ())), kwargs or {})
        return super().call_test(name, value, args, kwargs, context, *rest)
