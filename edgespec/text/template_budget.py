"""A limit on the cost of rendering a chat template. A template is an untrusted program: it may loop, or double a text.

A step is about as much work as one node of a template's syntax, some 0.1 microseconds. Each operation pays for the size
of its values before it runs. So time and memory grow in proportion to the steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from string import Formatter
from typing import Any

from edgespec.errors import SettingError

STEPS = 20_000_000
"""a few seconds, and 40 million characters. The largest templates of known models take about 3,000 a message."""
READS_OF_INPUT = 64
"""times that a template may read its messages beside these steps. Some look through all messages for each message."""
LONGEST_OUTPUT = 4_000_000
"""characters: a million tokens or so"""
COPIES_OF_INPUT = 8
"""times that it may write its messages beside these characters"""
_CHARACTERS_PER_STEP = 2
_STEPS_PER_ITEM = 10
"""per item of a list or dictionary: an object, and a reference to it"""
_STEPS_PER_CALL = 25
_DEEPEST = 100
"""lists in lists. Some functions of Python, such as hash, overflow the stack at 100,000."""
_LONGEST_NUMBER_BITS = 1 << 16
_LONG_NUMBER_BITS = 64
"""A longer number pays for its bits, for each bit as for a character."""
_BIT_PRODUCTS_PER_STEP = 1 << 17
"""in a product or a division of two long numbers. 2e9 of them take 1.5 ms."""
_LONGEST_OPTION = 256
"""characters of a format, an indent, or the name of an attribute"""
_LONGEST_FORMAT = 10_000
"""characters. The time to look through a format grows with their square."""
_WIDTH_IS_ARGUMENT = "has a format whose width is an argument"
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_SLOW_SEARCHES = ("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition", "rsplit")
"""methods that look at all of their argument at each character"""
_TEXT_METHODS = (
    "capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit"
    " islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix"
    " replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    **dict.fromkeys((int, float, bytes, set, frozenset), frozenset()),
}
"""methods that a template may call. Others turn little into much (translate, to_bytes), and no known template uses
them."""


class OverBudget(SettingError):
    """A template takes more than its budget."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the model's chat template {what}", hint="it is broken or malicious; a --raw prompt needs none"
        )


class Budget:
    """Steps that one rendering may still take, and characters that it may still write."""

    __slots__ = ("left", "output_left")

    def __init__(self, inputs: Any = ()) -> None:
        self.left = plenty = 1 << 62
        self.read(inputs)
        given = plenty - self.left
        self.left = STEPS + READS_OF_INPUT * given
        self.output_left = LONGEST_OUTPUT + COPIES_OF_INPUT * _CHARACTERS_PER_STEP * given

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise OverBudget("takes too many steps")

    def characters(self, count: int) -> None:
        self.spend(count // _CHARACTERS_PER_STEP + 1)

    def write(self, text: str) -> None:
        self.output_left -= len(text)
        if self.output_left < 0:
            raise OverBudget("writes too much")

    def items(self, count: int) -> None:
        self.spend(count * _STEPS_PER_ITEM + 1)

    def number(self, value: Any) -> Any:
        """Refuse a number that is too long. Returns the value, which may be of any type."""
        if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER_BITS:
            raise OverBudget("computes a number that is too long")
        return value

    def copy(self, value: Any, times: int = 1) -> None:
        """Pay for writing a text or list so many times. The items of a list are shared."""
        if isinstance(value, str):
            self.characters(len(value) * max(0, times))
        elif isinstance(value, (list, tuple, dict, range)):
            self.items(len(value) * max(0, times))
        else:
            self.read(value)

    def read(self, value: Any) -> Any:
        """Pay for reading all of a value, with everything in it. Returns the value."""
        if isinstance(value, str):
            self.characters(len(value))
            return value
        level = [value]
        for _ in range(_DEEPEST):
            below: list[Any] = []
            for item in level:
                if isinstance(item, str):
                    self.characters(len(item))
                elif isinstance(item, dict):
                    self.items(2 * len(item))
                    below.extend(item)
                    below.extend(item.values())
                elif isinstance(item, range):
                    self.items(len(item))
                elif isinstance(item, _CONTAINERS):
                    self.items(len(item))
                    below.extend(item)
                elif isinstance(item, Lazy):
                    item.reads = True
                elif isinstance(self.number(item), int) and item.bit_length() > _LONG_NUMBER_BITS:
                    self.characters(item.bit_length())
            if not below:
                self.spend(1)
                return value
            level = below
        raise OverBudget("nests lists too deep")


class Lazy(Iterator[Any]):
    """Items that are paid for when they are asked for. ``reads``: pay for everything in them too.

    Generators may nest 100,000 deep, and Python would take them all down on the stack at once. Objects of this class
    between the generators prevent that.
    """

    def __init__(self, budget: Budget, items: Iterable[Any], steps: int, *, reads: bool = False) -> None:
        self.reads = reads
        self._budget, self._items, self._steps = budget, iter(items), steps

    def __next__(self) -> Any:
        self._budget.spend(self._steps)
        item = next(self._items)
        return self._budget.read(item) if self.reads else item


def short(value: Any) -> Any:
    """Returns an option, such as the name of an attribute. Raises OverBudget if it is longer than in any sound
    template."""
    if isinstance(value, str) and len(value) > _LONGEST_OPTION:
        raise OverBudget(f"has an option of {len(value)} characters where {_LONGEST_OPTION} are enough")
    return value


def operate(budget: Budget, operator: str, left: Any, right: Any, function: Callable[[Any, Any], Any]) -> Any:
    """``left operator right``, computed by ``function``."""
    budget.spend(_STEPS_PER_CALL)
    for value in (left, right):
        budget.copy(value) if operator in "+*" else budget.read(value)
    if operator in ("*", "/", "//", "%") and isinstance(left, int) and isinstance(right, int):
        budget.spend(left.bit_length() * right.bit_length() // _BIT_PRODUCTS_PER_STEP)
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(value, (int, float)):
                budget.copy(value, times)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * abs(right) > _LONGEST_NUMBER_BITS:
            raise OverBudget("computes a number that is too long")
        budget.spend((left.bit_length() * abs(right)) ** 2 // _BIT_PRODUCTS_PER_STEP)
    elif operator == "%" and isinstance(left, str):
        pay_percent(budget, left, right)
    return budget.number(function(left, right))


def pay_percent(budget: Budget, form: str, values: Any) -> None:
    """Pay for ``"%500d" % values``."""
    _pay_format(budget, form, values, form.count("%"))
    if re.search(r"%[^a-zA-Z%]*\*", form):
        raise OverBudget(_WIDTH_IS_ARGUMENT)


def _pay_fields(budget: Budget, form: str, values: Any) -> None:
    """Pay for ``"{:500}".format(*values)``."""
    _pay_format(budget, form, values, form.count("{"))
    if any("{" in (spec or "") for _, _, spec, _ in Formatter().parse(form)):
        raise OverBudget(_WIDTH_IS_ARGUMENT)


def _pay_format(budget: Budget, form: str, values: Any, fields: int) -> None:
    """Pay for a format. Each field may hold all values, or be padded."""
    if len(form) > _LONGEST_FORMAT:
        raise OverBudget(f"has a format of {len(form)} characters where {_LONGEST_FORMAT} are enough")
    before = budget.left
    budget.read(values)
    budget.spend((before - budget.left) * fields)
    budget.characters(len(form) + sum(int(short(digits)) for digits in re.findall(r"\d+", form)))


def pay_join(budget: Budget, separator: str, values: Any) -> list[Any]:
    """Pay for a join of the values. Returns them as a list."""
    found = list(values)
    budget.read(found)
    budget.characters(len(separator) * len(found))
    return found


def pay_replace(budget: Budget, text: str, old: str, new: str) -> None:
    budget.characters(len(text) + text.count(old) * len(new))


def is_method_allowed(owner: Any, name: str) -> bool:
    """Whether a template may call this method. Decides for plain values only; other objects have rules elsewhere."""
    return next((name in names for kind, names in _METHODS.items() if isinstance(owner, kind)), True)


def pay_call(
    budget: Budget, owner: Any, name: str, args: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Pay for ``owner.name(*args, **options)`` and return the arguments to call it with. owner None: a function."""
    budget.spend(_STEPS_PER_CALL)
    for value in (*args, *options.values()):
        budget.read(value)
    if isinstance(owner, str):
        first, second = (*args, None, None)[:2]
        if name == "join" and args:
            return (pay_join(budget, owner, first),)
        budget.characters(len(owner))
        if name in ("format", "format_map"):
            _pay_fields(budget, owner, [args, options])
        elif name == "replace" and isinstance(first, str) and isinstance(second, str):
            pay_replace(budget, owner, first, second)
        elif name in ("center", "ljust", "rjust", "zfill") and isinstance(first, int):
            budget.characters(abs(first))
        elif name in ("split", "rsplit", "splitlines"):
            budget.items(owner.count(first) if isinstance(first, str) and first else len(owner) // 2)
        if name in _SLOW_SEARCHES and isinstance(first, str):
            budget.characters(len(owner) * len(first))
    elif isinstance(owner, (list, tuple)):
        budget.read(owner)
    elif isinstance(owner, dict) and name == "copy":
        budget.copy(owner)
    return args


def to_json(
    budget: Budget,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter ``tojson`` as in transformers: no HTML escapes, and non-ASCII text kept."""
    for text in (indent, *(separators or ())):
        short(text)
    if isinstance(indent, int):
        budget.characters(abs(indent) * _DEEPEST)
    budget.read(value)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces = []
    for piece in encoder.iterencode(value):  # piece by piece: indents may be larger than what they indent
        budget.characters(len(piece))
        pieces.append(piece)
    return "".join(pieces)
