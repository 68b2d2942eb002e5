"""``edgespec doctor --report``: what the makers need to know of a machine that they do not have, and no more.

It names no user, no host and no path: all texts pass ``scrubbed`` last.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.commands import plan_table
from edgespec.errors import EdgespecError

if TYPE_CHECKING:
    from edgespec.load_options import LoadOptions
    from edgespec.machine.plans import Place, Plan
    from edgespec.pipeline import Pipeline
    from edgespec.plan_rows import PlanTable

_PROMPTS = ("What is the capital of France?", "Write a Python function that reverses a list.", "1, 2, 3, 4, 5, 6,")
_TOKENS = 48
_PATH = re.compile(
    r"(?:\bfile:/*"
    r"|(?<![\w:/.~])(?:\.{0,2}/|~\w*[\\/]|\.{1,2}\\|[A-Za-z]:[\\/]|\\\\)"
    r"|(?<=:)(?:/(?!/)|[A-Za-z]:[\\/]))"
    r"[^\s,;'\")].*?(?=: |\. |[,;'\")\n]|$)"
)
"""A path of Windows or elsewhere, or the URL of a file. It may have spaces: what follows goes too, up to a mark that
ends it."""


def report(ref: str, options: LoadOptions, facts: dict[str, Any]) -> dict[str, Any]:
    """facts: of ``edgespec doctor``. Measures the plans again, then looks at each device."""
    from edgespec import loading

    table = loading.plan(ref, options, again=True)
    found = {**facts, "cpu": _cpu(), "plans": plan_table.as_dict(table, None)}
    found["devices_checked"] = [_checked(ref, options, plan) for plan in _each_device(table)]
    return scrubbed(found)  # type: ignore[no-any-return]


def scrubbed(value: Any) -> Any:
    """The same without the names of user and host, and without paths.

    >>> scrubbed({"why": ["cannot open /home/ada/m.xml", "C:\\\\Users\\\\ada\\\\m.xml; see https://a.b/c/d", 3]})
    {'why': ['cannot open PATH', 'PATH; see https://a.b/c/d', 3]}
    """
    names = [name for name in (str(Path.home()), *_names()) if len(name) > 2]
    return _scrub(value, sorted(names, key=len, reverse=True))


def _scrub(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {_scrub(key, names): _scrub(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_scrub(each, names) for each in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub("PATH", value)
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "NAME", text, flags=re.IGNORECASE)
    return text


def _names() -> list[str]:
    """Of the user and the host, with and without its domain."""
    host = platform.node()
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # no entry for this user
        user = ""
    return [user, host, host.split(".")[0]]


def _cpu() -> dict[str, Any]:
    from edgespec.backends.cores import available_cores
    from edgespec.machine.devices import machine

    return machine() | {"cores_for_a_model": available_cores()}


def _each_device(table: PlanTable) -> list[Plan]:
    """A synchronous plan that ran, for each device and engine of a target."""
    found: dict[Place, Plan] = {}
    for row in table.rows:
        if row.pace is not None and row.plan.schedule == "synchronous":
            found.setdefault(row.plan.target, row.plan)
    return list(found.values())


def _checked(ref: str, options: LoadOptions, plan: Plan) -> dict[str, Any]:
    """Forward times, and whether texts with drafts are those without, on one device."""
    from edgespec import loading

    where = asdict(plan.target)
    try:
        pipeline = loading.load_plan(ref, options, plan)
        return where | {"forward_ms": _forwards(pipeline), "parity": _parity(pipeline)}
    except EdgespecError as error:
        return where | {"error": str(error)}


def _forwards(pipeline: Pipeline) -> dict[str, Any] | None:
    """Milliseconds by width, behind a short and a long context."""
    if pipeline.arbiter is None:
        return None
    times = pipeline.arbiter.target_s.times
    at = {times.short: times.at_short_s, times.long: times.at_long_s}
    return {
        f"behind {context} tokens": {str(n): round(1e3 * s, 3) for n, s in zip(times.widths, seconds, strict=True)}
        for context, seconds in at.items()
    }


def _parity(pipeline: Pipeline) -> dict[str, Any]:
    from edgespec.decode.policy import Plain

    same = 0
    for prompt in _PROMPTS:
        options: dict[str, Any] = {"max_new_tokens": _TOKENS, "raw": True}
        plain = pipeline.generate(prompt, policy=Plain(), **options)
        same += plain.token_ids == pipeline.generate(prompt, **options).token_ids
    return {
        "numerics": pipeline.target.capabilities.numerics,
        "texts_with_drafts_equal_to_plain": f"{same} of {len(_PROMPTS)}",
    }
