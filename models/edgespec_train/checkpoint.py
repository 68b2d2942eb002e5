"""The checkpoint of a training run: written whole or not at all, and taken up only by the same run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from edgespec.errors import SettingError

CHECKPOINT, STATE = "checkpoint", "state.json"


def save(accelerator: Accelerator, folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint. state: JSON; what is in it but the curve must be equal to go on."""
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    for leftover in folder.glob(f"{CHECKPOINT}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    current, old, new = (folder / f"{CHECKPOINT}{end}" for end in ("", ".old", f".{os.getpid()}.tmp"))
    try:
        accelerator.save_state(str(new))
        (new / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        if current.exists():
            shutil.rmtree(old, ignore_errors=True)
            current.replace(old)
        new.replace(current)
    except Exception as error:  # safetensors and torch have their own for a full disk
        shutil.rmtree(new, ignore_errors=True)
        raise SettingError(f"cannot write a checkpoint to {folder}: {error}", hint="is the disk full?") from error
    shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(folder: Path) -> bool:
    return newest(folder) is not None


def resume(
    accelerator: Accelerator, folder: Path, identity: dict[str, Any], free: Collection[str] = ()
) -> dict[str, Any]:
    """Load the checkpoint and return its state; {} without one. Raises SettingError for another run's.

    free: what may differ in each part of the identity if the state says ``diverged``.
    """
    saved = newest(folder)
    if saved is None:
        return {}
    again = "delete it to begin again"
    try:
        state: dict[str, Any] = json.loads((saved / STATE).read_text(encoding="utf-8"))
        fixed = _without(free if state.get("diverged") else ())
        state["curve"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{saved} is damaged: {error}", hint=again) from error
    for name, value in identity.items():
        if fixed(state.get(name)) != fixed(value):
            raise SettingError(
                f"cannot go on from {saved}: it was made with another {name}",
                got=value,
                allowed=state.get(name),
                hint="use the same settings, or another folder",
            )
    try:
        accelerator.load_state(str(saved))
    except Exception as error:  # safetensors and torch have their own for a cut file
        if "state_dict" in str(error):  # a whole one, of other weights
            what, hint = f"{saved} was made by another version of edgespec", f"go on with that version, or {again}"
            raise SettingError(f"{what}: this one trains other weights", hint=hint) from error
        raise SettingError(f"{saved} is damaged: {error}", hint=again) from error
    return state


def _without(names: Collection[str]) -> Callable[[Any], Any]:
    def rest(value: Any) -> Any:
        return {k: v for k, v in value.items() if k not in names} if isinstance(value, dict) else value

    return rest


def newest(folder: Path) -> Path | None:
    """The newest whole one: a run may have been killed between putting the old one aside and the new one in place."""
    return next((path for name in (CHECKPOINT, f"{CHECKPOINT}.old") if (path := folder / name).is_dir()), None)
