"""What ``edgespec.load`` may be asked for, checked before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from edgespec.errors import SettingError
from edgespec.exact_devices import require_exact
from edgespec.sampling_params import is_whole, require_whole
from edgespec.types import Backend, GGUFWeights, KVPath, Needs, Numerics, Prefer, Schedule

_NOTHING_BESIDE = "the overlapped schedule drafts while the target verifies: number of draft tokens"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The options of ``load``, which describes them. Raises SettingError for what makes no sense, alone or together.

    ``draft`` "auto" becomes None, and devices are in capitals: of two spellings one is left.
    """

    draft: str | None = None
    draft_from: str | Path | None = None
    remember: bool = False
    device: str = "CPU"
    draft_device: str | None = None
    backend: Backend | None = None
    draft_backend: Backend | None = None
    numerics: Numerics | None = None
    num_draft_tokens: int | None = None
    context_length: int | None = None
    weights: GGUFWeights | None = None
    schedule: Schedule | None = None
    prefer: Prefer = "speed"
    kv: KVPath | None = None
    needs: Needs = field(default_factory=Needs)
    accept_licence: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        choices = {
            "numerics": Numerics,
            "backend": Backend,
            "draft_backend": Backend,
            "weights": GGUFWeights,
            "kv": KVPath,
            "schedule": Schedule,
            "prefer": Prefer,
        }
        for setting, kinds in ((setting, get_args(choice)) for setting, choice in choices.items()):
            self._require(setting, getattr(self, setting) in (None, *kinds), allowed=", ".join(kinds))
        if (k := self.num_draft_tokens) is not None:
            require_whole("num_draft_tokens", k, 0, what="number of draft tokens")
        self._require("needs", isinstance(self.needs, Needs), allowed="edgespec.types.Needs, or None")
        rows = self.context_length
        self._require("context_length", rows is None or is_whole(rows), allowed="a whole number of tokens")
        holds = self.draft_from is None or isinstance(self.draft_from, str | Path)
        self._require("draft_from", holds, allowed="a path")
        if rows is not None:
            object.__setattr__(self, "context_length", int(rows))
        for setting in ("draft", "device", "draft_device"):
            value = getattr(self, setting)
            holds = (isinstance(value, str) and value.strip() != "") or (value is None and setting != "device")
            self._require(setting, holds, allowed="a name, as text")
        self._require(
            "num_draft_tokens",
            not (self.draft == "none" and k),
            "without a drafter there is nothing to draft: number of draft tokens",
        )
        self._require("num_draft_tokens", not (self.overlaps and k == 0), _NOTHING_BESIDE, allowed="1 or more")
        self._require(
            "draft_from",
            not (self.draft == "none" and self.draft_from is not None),
            "without a drafter there is nothing to draft from a folder",
        )
        alone = "under the overlapped schedule the draft model drafts alone: a folder to draft from"
        self._require("draft_from", not (self.overlaps and self.draft_from is not None), alone)
        if self.remember and self.draft != "recycling":
            what, got = "only the draft recycling can be remembered", f"draft {self.draft or 'auto'}"
            raise SettingError(what, got=got, setting="remember")
        self._require_kv()
        if self.draft == "auto":
            object.__setattr__(self, "draft", None)
        object.__setattr__(self, "device", self.device.upper())
        object.__setattr__(self, "draft_device", self.draft_device and self.draft_device.upper())
        self._require_numerics()

    @property
    def overlaps(self) -> bool:
        """Whether the overlapped schedule is asked for."""
        return self.schedule == "overlapped"

    def _require_kv(self) -> None:
        """Only OpenVINO has two kinds of cache: to name one is to name the engine."""
        if self.kv is None:
            return
        self._require("kv", self.backend != "onnxruntime", "backend onnxruntime has a cache of its own: kv")
        npu = self.device.upper().startswith("NPU")
        self._require("kv", not npu, "the NPU has a cache of its own: kv")
        holds = self.kv == "paged" or self.numerics != "exact"
        self._require("kv", holds, "numerics exact are known to hold with the paged cache only: kv", allowed="paged")
        object.__setattr__(self, "backend", "openvino")

    def _require_numerics(self) -> None:
        """Before a draft is compiled for the device, which takes minutes on some."""
        if not self.device.startswith("AUTO"):
            require_exact(self.numerics, self.device)

    def _require(self, setting: str, holds: bool, what: str | None = None, allowed: str | None = None) -> None:
        if not holds:
            got: Any = getattr(self, setting)
            got = str(got) if isinstance(got, Path) else "None" if got is None else got
            raise SettingError(what or setting, got=got, allowed=allowed, setting=setting)

    def require_choice(self, chosen: bool) -> None:
        """chosen: edgespec chooses the device, so that ``prefer`` says something."""
        if self.prefer != "speed" and not chosen:
            what = "nothing is chosen by it on a device that you name: prefer"
            raise SettingError(what, got=self.prefer, hint="add --device auto", setting="prefer")

    def require_context(self, longest: int, name: str) -> None:
        """longest: rows that the model ``name`` was made for."""
        holds = self.context_length is None or 1 <= self.context_length <= longest
        self._require("context_length", holds, allowed=f"1 to {longest}, what {name} was made for")

    def require_own_model(self, has_own: bool, has_head: bool, drafter: str) -> None:
        """has_own, has_head: there is a draft model or a head to put on a device of its own; else ``drafter`` drafts.
        A head has one engine only."""
        for setting, holds in (("draft_device", has_own or has_head), ("draft_backend", has_own)):
            what = f"only a draft model has a {setting.replace('_', ' ')}, and {drafter} is none"
            self._require(setting, getattr(self, setting) is None or holds, what)

    def require_beside(self, has_model: bool, is_head: bool, drafter: str) -> None:
        """For the overlapped schedule. has_model: there is a draft model, which can run beside its target; else
        ``drafter`` drafts. is_head: that is a head."""
        if self.overlaps and not has_model:
            why = "a head reads what the target's last forward gave" if is_head else "a lookup takes no time"
            raise SettingError(
                "only a draft model can run while its target does: the overlapped schedule",
                got=f"draft {drafter}: {why}",
                hint="name one: --draft REF, or use --schedule synchronous",
                setting="schedule",
            )
