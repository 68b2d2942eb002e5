"""What a caller gives to a pipeline, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from inspect import signature
from numbers import Integral
from typing import Any

from edgespec.errors import SettingError, shown
from edgespec.protocols import Drafter, Policy, Progress
from edgespec.sampling_params import SamplingParams
from edgespec.types import Needs


def require_options(called: str, given: Iterable[str], *takers: Any) -> None:
    """Raises TypeError for an option that none of these functions takes. It names the one that was called."""
    known = [name for taker in takers for name in taker.__kwdefaults__]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f". Did you mean {near[0]}?" if near else ""
            if name in {field.name for field in fields(SamplingParams)}:
                hint = f". Give it in sampling=edgespec.SamplingParams({name}=...)"
            raise TypeError(f"Pipeline.{called}() got an unexpected keyword argument '{name}'{hint}")


def require_given(
    sampling: SamplingParams | None,
    drafter: Drafter | None,
    policy: Policy | None,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    """Raises SettingError for what is of another kind."""
    if not isinstance(sampling, SamplingParams | None):
        raise SettingError(
            "sampling",
            got=shown(sampling),
            allowed="SamplingParams, or None",
            hint="write sampling=edgespec.SamplingParams(temperature=0.5)",
            setting="sampling",
        )
    for setting, function in (("progress", progress), ("cancelled", cancelled)):
        if function is not None and not callable(function):
            raise SettingError(setting, got=shown(function), allowed="a function, or None", setting=setting)
    values: dict[str, tuple[type, str]]
    if drafter is not None:
        calls = ("propose", "begin", "commit", "observe", "read_as", "reset")
        hint = 'to name a drafter, load with it: edgespec.load(draft="ngram")'
        values = {"name": (str, "a text"), "needs": (Needs, "edgespec.types.Needs")}
        _require_parts("drafter", drafter, Drafter, values, calls, hint)
    if policy is not None:
        calls = ("draft", "begin", "width", "commit", "observe", "update")
        hint = "None takes the pipeline's own"
        values = {"name": (str, "a text"), "longest": (Integral, "a number of rows")}
        _require_parts("policy", policy, Policy, values, calls, hint)


def require_bias(params: SamplingParams, vocab_size: int) -> None:
    """Raises SettingError for a bias on a token that the model does not have."""
    if unknown := [token for token in params.logit_bias if token >= vocab_size]:
        allowed = f"token ids from 0 to {vocab_size - 1}"
        raise SettingError("logit_bias", got=f"token {unknown[0]}", allowed=allowed, setting="logit_bias")


def require_layers(drafter: Drafter, given: Iterable[int]) -> None:
    """Raises SettingError for a drafter that reads other hidden states than those that the target was loaded for."""
    given, needed = list(given), sorted(drafter.needs.layers)
    if missing := sorted(set(needed) - set(given)):
        layers = ", ".join(map(str, missing))
        raise SettingError(
            f"drafter {drafter.name} needs hidden states of layers {layers}, which the target was not loaded for",
            got=f"layers {needed}",
            allowed=", ".join(map(str, given)) or "none",
            hint="load the pair with needs=drafter.needs",
        )


def _require_parts(
    setting: str, given: Any, contract: Any, values: dict[str, tuple[type, str]], calls: tuple[str, ...], hint: str
) -> None:
    """calls: methods of the contract, the one without which nothing is of this kind first."""
    kind = f"an object of a class derived from {contract.__module__}.{contract.__name__}"
    if isinstance(given, type):
        hint = f"make one: {setting}={given.__name__}(...)"
        raise SettingError(setting, got=f"the class {given.__name__}", allowed=kind, hint=hint, setting=setting)
    if not hasattr(given, calls[0]):
        raise SettingError(setting, got=shown(given), allowed=kind, hint=hint, setting=setting)
    own = f"{setting} {type(given).__name__}"
    for name, (its_kind, words) in values.items():
        if not isinstance(found := getattr(given, name, None), its_kind):
            raise SettingError(f"{own}: its {name}", got=shown(found), allowed=words, setting=setting)
    for name in calls:
        parameters = _parameters(contract, name)
        allowed = f"{name}({', '.join(parameters)})"
        method = getattr(given, name, None)
        if not callable(method):
            raise SettingError(f"{own} lacks a method", allowed=allowed, setting=setting)
        try:
            takes = signature(method)
        except (TypeError, ValueError):  # written in C
            continue
        try:
            takes.bind(*parameters)
        except TypeError as error:
            got = f"{name}({', '.join(takes.parameters)})"
            raise SettingError(f"{own}: parameters of a method", got=got, allowed=allowed, setting=setting) from error


@cache
def _parameters(contract: Any, name: str) -> list[str]:
    return list(signature(getattr(contract, name)).parameters)[1:]
