"""The filters of chat templates, within a budget: Jinja's filters without those that no known template uses.

Filters whose result may be much larger than their input are replaced by safe ones. Three more filters pay for the
operations in the rewritten syntax tree (``template_tree``).
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, cast

from jinja2 import pass_context
from jinja2.filters import FILTERS as JINJAS
from jinja2.runtime import Context

from edgespec.text.template_budget import Budget, Lazy, OverBudget, pay_join, pay_percent, pay_replace, short, to_json

SPEND, READ, COPY, READ_MEMBERS = "spend steps", "read all", "copy it", "read members"
"""filters of the rewritten tree. A template cannot spell these names."""
_PLAIN = (
    "abs attr capitalize count d default dictsort e escape first float int last length lower safe string truncate upper"
)
"""filters that are Jinja's own"""
_STEPS_PER_GENERATOR = 200
"""cost of making a generator and keeping track of it"""


class BudgetContext(Context):
    """The context of a rendering, with its budget."""

    budget: Budget

    def derived(self, *args: Any, **options: Any) -> Context:
        context = cast(BudgetContext, super().derived(*args, **options))
        context.budget = self.budget
        return context


@pass_context
def _spend(context: BudgetContext, steps: int) -> bool:
    context.budget.spend(steps)
    return True


@pass_context
def _read(context: BudgetContext, value: Any) -> Any:
    return context.budget.read(value)


@pass_context
def _copy(context: BudgetContext, value: Any) -> Any:
    context.budget.copy(value)
    return value


@pass_context
def _read_members(context: BudgetContext, value: Any) -> Any:
    return value if isinstance(value, dict) else context.budget.read(value)


@pass_context
def _list(context: BudgetContext, value: Any) -> list[Any]:
    if hasattr(value, "__len__"):
        context.budget.items(len(value))
    found = list(value)
    context.budget.items(len(found))
    return found


@pass_context
def _reverse(context: BudgetContext, value: Any) -> Any:
    context.budget.copy(value)
    return JINJAS["reverse"](value)


@pass_context
def _join(context: BudgetContext, value: Any, d: str = "", attribute: str | int | None = None) -> Any:
    if attribute is not None:
        value = JINJAS["map"](context, value, attribute=short(attribute))
    return JINJAS["join"](context.eval_ctx, pay_join(context.budget, str(d), value), d)


@pass_context
def _replace(context: BudgetContext, s: Any, old: Any, new: Any, count: int | None = None) -> Any:
    pay_replace(context.budget, str(s), str(old), str(new))
    return JINJAS["replace"](context.eval_ctx, s, old, new, count)


@pass_context
def _indent(context: BudgetContext, s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
    size = abs(width) if isinstance(width, int) else len(width)
    context.budget.characters((len(str(s).splitlines()) + 1) * (size + 1))
    return JINJAS["indent"](s, width, first, blank)


@pass_context
def _format(context: BudgetContext, value: Any, *args: Any, **options: Any) -> Any:
    pay_percent(context.budget, str(value), [*args, *options.values()])
    return JINJAS["format"](value, *args, **options)


@pass_context
def _title(context: BudgetContext, s: Any) -> str:
    context.budget.characters(10 * len(str(s)))  # a Python function runs for every word
    return cast(str, JINJAS["title"](s))


@pass_context
def _trim(context: BudgetContext, value: Any, chars: str | None = None) -> Any:
    context.budget.characters(len(str(value)) * len(chars or " "))
    return JINJAS["trim"](value, chars)


@pass_context
def _items(context: BudgetContext, value: Any) -> Any:
    context.budget.copy(value)
    return JINJAS["items"](value)


@pass_context
def _sum(context: BudgetContext, value: Any, attribute: str | int | None = None, start: float = 0) -> Any:
    if not isinstance(start, (int, float)):
        raise OverBudget("adds up what are no numbers")
    return _for_each("sum", needs_context=False)(context, value, attribute, start)


@pass_context
def _round(context: BudgetContext, value: float, precision: int = 0, method: Any = "common") -> Any:
    if abs(precision) > 100:
        raise OverBudget("rounds to more than 100 digits")
    return JINJAS["round"](value, precision, method)


@pass_context
def _tojson(context: BudgetContext, value: Any, *args: Any, **options: Any) -> str:
    return to_json(context.budget, value, *args, **options)


def _for_each(name: str, *, needs_context: bool) -> Callable[..., Any]:
    """A filter that pays for each item when it works on it. Filters without a context compare the items."""
    function = JINJAS[name]

    @pass_context
    def filter_(context: BudgetContext, value: Any, *args: Any, **options: Any) -> Any:
        context.budget.spend(_STEPS_PER_GENERATOR)
        steps = 20 + sum(len(short(option)) for option in (*args, *options.values()) if isinstance(option, str))
        items = Lazy(context.budget, value, steps, reads=not needs_context) if value else value
        found = function(context if needs_context else context.environment, items, *args, **options)
        return Lazy(context.budget, found, steps) if isinstance(found, types.GeneratorType) else found

    return filter_


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: JINJAS[name] for name in _PLAIN.split()},
    **{name: _for_each(name, needs_context=True) for name in ("map", "reject", "rejectattr", "select", "selectattr")},
    **{name: _for_each(name, needs_context=False) for name in ("max", "min", "sort", "unique")},
    "format": _format,
    "indent": _indent,
    "items": _items,
    "join": _join,
    "list": _list,
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "sum": _sum,
    "title": _title,
    "tojson": _tojson,
    "trim": _trim,
    SPEND: _spend,
    READ: _read,
    COPY: _copy,
    READ_MEMBERS: _read_members,
}
