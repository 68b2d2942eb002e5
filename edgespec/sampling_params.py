"""How to choose a token: the settings of one generation, checked on construction."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import get_args

from edgespec.errors import SettingError, shown
from edgespec.types import Verification

_MOST_BIAS, _MOST_PENALTY = 1e30, 1e3
"""Larger values could overflow the type of a logit, and infinities have no softmax."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is chosen from logits. The default is greedy.

    temperature: 0 means greedy. Above it, logits are divided by it.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the smallest set of most likely tokens with at least this probability; 1 keeps all.
    min_p: drop tokens less likely than min_p times the most likely one.
    repetition_penalty: divide (positive) or multiply (negative) the logits of tokens already in the context (Keskar et
        al. 2019, CTRL); 1 is off.
    logit_bias: token id -> number added to its logit.
    verification: how sampled drafts are verified. coupled: the tokens are a function of (seed, prompt, settings),
        whatever the drafter. rejection: the tokens have the same distribution, and more drafts are accepted. But which
        tokens come also depends on the drafter and k. Greedy has one rule.
    seed: repeats a coupled run, and a run by rejection if k is fixed. None: the pipeline picks a seed and reports it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    verification: Verification = "coupled"
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, math.inf, "0 (greedy) or any positive number")
        _check("top_k", self.top_k, 0, math.inf, "0 (off) or a positive number of tokens")
        _check("top_p", self.top_p, 0.0, 1.0, "a number above 0 and up to 1 (off)", open_low=True)
        _check("min_p", self.min_p, 0.0, 1.0, "a number from 0 (off) to 1")
        least = 1 / _MOST_PENALTY
        _check(
            "repetition_penalty",
            self.repetition_penalty,
            least,
            _MOST_PENALTY,
            f"{least:g} to {_MOST_PENALTY:g}; 1 is off",
        )
        if not isinstance(self.logit_bias, Mapping):
            got = type(self.logit_bias).__name__
            raise SettingError("logit_bias", got=got, allowed="a dict of token ids and numbers", setting="logit_bias")
        for token, bias in self.logit_bias.items():
            known = is_whole(token) and token >= 0 and is_number(bias)
            if not known or not (abs(bias) <= _MOST_BIAS or bias == -math.inf):
                allowed = f"token ids from 0 on; up to {_MOST_BIAS:g} either way, or -inf to forbid a token"
                raise SettingError("logit_bias", got={token: bias}, allowed=allowed)
        if self.verification not in get_args(Verification):
            allowed = " or ".join(get_args(Verification))
            raise SettingError("verification", got=self.verification, allowed=allowed, setting="verification")
        if not is_whole(self.top_k):
            raise SettingError("top_k", got=self.top_k, allowed="a whole number", setting="top_k")
        if self.seed is not None and not (is_whole(self.seed) and 0 <= self.seed < 2**64):
            allowed = "a whole number from 0 to 2**64 - 1"
            raise SettingError("seed", got=self.seed, allowed=allowed, setting="seed")
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
        ):  # fractions and numpy's numbers become floats
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "top_k", int(self.top_k))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def rejects(self) -> bool:
        """Whether drafts that were drawn are verified by rejection. (Greedy has one rule.)"""
        return self.verification == "rejection" and not self.greedy

    def seeded(self, seed: int) -> SamplingParams:
        """The same settings with a seed, if they had none."""
        return self if self.seed is not None else replace(self, seed=seed)


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number. True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check(name: str, value: float, low: float, high: float, allowed: str, open_low: bool = False) -> None:
    if not is_number(value) or abs(value) > sys.float_info.max:
        raise SettingError(name, got=shown(value), allowed=allowed, setting=name)
    inside = (low < value if open_low else low <= value) and value <= high and not math.isinf(value)
    if math.isnan(value) or not inside:
        raise SettingError(name, got=value, allowed=allowed, setting=name)


def require_whole(setting: str, value: object, least: int, most: int | None = None, *, what: str | None = None) -> int:
    """A whole number within bounds. Raises SettingError, which calls it ``what``."""
    number = int(value) if isinstance(value, Integral) and is_whole(value) else None
    if number is not None and least <= number and (most is None or number <= most):
        return number
    bounds = f"{least} or more" if most is None else f"{least} to {most}"
    allowed = bounds if number is not None else f"{bounds}, a whole number"
    raise SettingError(what or setting, got=shown(value), allowed=allowed, setting=setting)


def require_length(max_new_tokens: int) -> int:
    """Tokens of a text, at most. Raises SettingError."""
    return require_whole("max_new_tokens", max_new_tokens, 1)


def require_matching(params: SamplingParams) -> None:
    """Raises SettingError for verification by rejection."""
    if params.rejects:
        raise SettingError(
            "under the overlapped schedule rejection would give other texts each time: verification",
            got=params.verification,
            allowed="coupled",
            setting="verification",
        )
