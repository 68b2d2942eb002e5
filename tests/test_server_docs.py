"""The pages about the server are generated from it, and the lists of fields are what the server does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import msgspec

from edgespec.server.fields import IGNORED, REFUSED, Common
from edgespec.server.openapi import BODIES, document, operations
from tests.fake_server import fake_pipeline, on_a_port, service_of

ROOT = Path(__file__).resolve().parents[1]


def test_the_pages_are_fresh() -> None:
    ran = subprocess.run([sys.executable, ROOT / "scripts/server-page", "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_every_route_is_described() -> None:
    found = document("1")
    assert found["paths"].keys() == {path for _, path, _ in operations()} >= BODIES.keys()
    for name in ("messages", "tools", "max_completion_tokens", "edgespec_rounds"):
        [schema] = [each for title, each in found["components"]["schemas"].items() if name in each["properties"]][:1]
        assert schema["type"] == "object"


def test_a_field_is_known_refused_or_ignored_and_never_two_of_these() -> None:
    """On one route: another one may know what this one refuses."""
    assert not REFUSED.keys() & IGNORED
    assert not {field.encode_name for field in msgspec.structs.fields(Common)} & REFUSED.keys()
    for kind in BODIES.values():
        known = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert not known & IGNORED, kind


def test_the_requests_of_the_page_are_answered(tmp_path: Path) -> None:
    """curl's in a POSIX shell, and PowerShell's, which takes what is between ``'`` as it is. Both send it as a form.
    Windows PowerShell asks first whether it may."""
    page = (ROOT / "docs/server.md").read_text(encoding="utf-8")
    [curl] = re.findall(r"^curl (.*)$", page, re.M)
    posix, option, body = shlex.split(curl)
    [(powershell, same)] = re.findall(r"^irm (\S+) -Method Post -Body '([^']*)'$", page, re.M)
    assert option == "-d" and posix == powershell and json.loads(body) == json.loads(same)
    headers = {"content-type": "application/x-www-form-urlencoded", "expect": "100-continue"}
    with on_a_port(service_of(fake_pipeline(tmp_path))) as url:
        asked = Request(url + urlsplit(posix).path, same.encode(), headers)
        assert json.load(urlopen(asked, timeout=30))["choices"][0]["message"]["role"] == "assistant"
