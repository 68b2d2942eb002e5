"""Options of a load check themselves, before anything is fetched."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from edgespec.errors import SettingError
from edgespec.load_options import LoadOptions


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"numerics": "double"}, "numerics"),
        ({"backend": "cuda"}, "backend"),
        ({"num_draft_tokens": -1}, "num_draft_tokens"),
        ({"num_draft_tokens": "4"}, "num_draft_tokens"),
        ({"context_length": 2.5}, "context_length"),
        ({"device": None}, "device"),
        ({"device": " "}, "device"),
        ({"draft_device": 1}, "draft_device"),
        ({"draft": 5}, "draft"),
        ({"draft_from": 5}, "draft_from"),
        ({"num_draft_tokens": 2, "draft": "none"}, "num_draft_tokens"),
        ({"draft_from": ".", "draft": "none"}, "draft_from"),
        ({"remember": True}, "remember"),
        ({"remember": True, "draft": "ngram"}, "remember"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_setting(options: dict[str, Any], setting: str) -> None:
    with pytest.raises(SettingError) as caught:
        LoadOptions(**options)
    assert caught.value.setting == setting


def test_of_two_spellings_one_is_left() -> None:
    assert LoadOptions(draft="auto", device="gpu.0", draft_device="npu") == LoadOptions(
        device="GPU.0", draft_device="NPU"
    )


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        LoadOptions().device = "GPU"  # type: ignore[misc]


@pytest.mark.parametrize(("length", "fits"), [(None, True), (1, True), (8, True), (0, False), (9, False)])
def test_a_context_is_no_longer_than_the_models(length: int | None, fits: bool) -> None:
    options = LoadOptions(context_length=length)
    if fits:
        options.require_context(8, "a model")
    else:
        with pytest.raises(SettingError, match="a model was made for"):
            options.require_context(8, "a model")
