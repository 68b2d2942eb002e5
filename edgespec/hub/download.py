"""One file over HTTP, which grows on the disk. What broke off goes on at its byte: at once while the server comes back,
else at the next call. huggingface_hub begins a file again with each call."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgespec.errors import IntegrityError
from edgespec.hub.progress import Bar

UNFINISHED = (".part", ".joining")
"""endings of a file that is not whole yet: as it comes from the hub, and as its parts from a mirror are joined"""
_TRIES = 3
"""in a row without a byte more than there was"""
_PAUSE_S = 1.0
_PARTIAL = 206
_NOT_BEHIND_ITS_END = 416


def fetch(
    url: str, part: Path, bar: Bar, *, what: str, size: int | None = None, headers: dict[str, str] | None = None
) -> None:
    """Add to ``part`` what it lacks of a file; the caller checks its hash. bar: moves by the file's bytes, also by
    those that were there. size: of the file, if it is known.

    A server that cannot begin in the middle sends the whole file again. Raises httpx.HTTPError, OSError, IntegrityError
    for a file that is longer than it may be, and what the bar raises.
    """
    import httpx

    most, tries = size_of(part), 0
    bar.update(most)
    while size is None or size_of(part) < size:
        try:
            _append(url, part, bar, what, size, headers or {})
            return
        except httpx.TransportError:
            tries = tries + 1 if size_of(part) <= most else 0
            if tries == _TRIES:
                raise
            most = max(most, size_of(part))
            time.sleep(_PAUSE_S)
            bar.update(0)  # which may end the download
        except IntegrityError:
            part.unlink()
            raise


def _append(url: str, part: Path, bar: Bar, what: str, size: int | None, headers: dict[str, str]) -> None:
    """One request. Raises httpx.TransportError where the connection breaks."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    had = size_of(part)
    wanted: dict[str, Any] = {"Accept-Encoding": "identity", **headers}
    if had:
        wanted["Range"] = f"bytes={had}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=wanted, timeout=timeout, follow_redirects=True) as answer:
        if answer.status_code == _NOT_BEHIND_ITS_END:  # as long as the file or longer: its hash says which
            return
        hf_raise_for_status(answer)
        if size is not None and (announced := _announced(answer)) not in (None, size):
            # Before what is there is given up for it. It may be the page of a network that asks to sign in.
            raise httpx.HTTPError(f"the server of {what} has another file, of {announced} bytes and not {size}")
        with part.open("ab") as file:
            if had and answer.status_code != _PARTIAL:
                file.truncate(0)
                bar.update(-had)
                had = 0
            for block in answer.iter_bytes():
                had += len(block)
                require_size(had, size, what)
                file.write(block)
                bar.update(len(block))
    if size is not None and had < size:
        raise httpx.RemoteProtocolError(f"{what} ended after {had} of {size} bytes")


def _announced(answer: Any) -> int | None:
    """Bytes of the whole file, as its server says before it sends any of them."""
    if "Content-Encoding" in answer.headers:
        return None
    said = answer.headers.get("Content-Length", "")
    if answer.status_code == _PARTIAL:
        said = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(said) if said.isdecimal() else None


def forget(folder: Path, sha256: str) -> None:
    """Remove what is there of a file that has come whole, maybe from its other place."""
    for end in UNFINISHED:
        with suppress(OSError):  # on Windows, while another process fetches it
            (folder / f"{sha256}{end}").unlink()


def size_of(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def require_size(found: int, size: int | None, what: str) -> None:
    """Nothing that never ends fills a disk."""
    if size is not None and found > size:
        hint = "its server has another file"
        raise IntegrityError(f"download of {what} is too long", got="more", allowed=f"{size} bytes", hint=hint)
