"""The pages about the server are generated from it, and the lists of fields are what the server does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from edgespec.server.fields import IGNORED, REFUSED, Common
from edgespec.server.openapi import BODIES, document, operations

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
