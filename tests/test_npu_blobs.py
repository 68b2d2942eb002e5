"""What is compiled for an NPU: in a process of its own, which may hang or die, and kept as a blob."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgespec
from edgespec.backends.openvino import npu_blobs
from edgespec.backends.openvino.compile_apart import blob_name, compile_apart, limit_s
from edgespec.backends.openvino.npu import open_npu
from edgespec.backends.openvino.npu_settings import Windows
from edgespec.backends.openvino.runtime import core
from edgespec.cli import cli
from edgespec.errors import BackendError, DeviceError, SettingError
from edgespec.machine import ahead_of_time, loader
from tests.conftest import load_ir
from tests.contract import close, fresh_logits
from tests.test_static_graph import head, write

TEXT = [(7 * i + i * i) % 50 for i in range(400)]


def child(code: str) -> tuple[str, ...]:
    """A compiler's process that does something else."""
    return sys.executable, "-c", code


def test_a_compiler_that_hangs_is_stopped(tiny_ir: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"did not end; got 0.3 s\. Use --device CPU"):
        compile_apart(tiny_ir, "NPU", {}, tmp_path / "blob", limit=0.3, command=child("import time; time.sleep(60)"))


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_a_compiler_that_dies_takes_its_own_process_only(tiny_ir: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"ended its process at .*; got signal 6"):
        compile_apart(tiny_ir, "NPU", {}, tmp_path / "blob", command=child("import os; os.abort()"))


def test_a_compiler_that_ends_without_a_word_is_no_success(tiny_ir: Path, tmp_path: Path) -> None:
    for code in ("pass", "print('[]')", "print('{}')", "import sys; sys.exit('no memory')"):
        with pytest.raises(BackendError, match="cannot compile"):
            compile_apart(tiny_ir, "NPU", {}, tmp_path / "blob", command=child(code))
    with pytest.raises(DeviceError, match="cannot start a process"):
        compile_apart(tiny_ir, "NPU", {}, tmp_path / "blob", command=(str(tmp_path / "nothing"),))


def test_what_the_compiler_refuses_is_told(tiny_ir: Path, tmp_path: Path) -> None:
    """No memory on the device is told like this, too."""
    code = 'print(\'{"error": "the plugin refuses it: out of memory"}\'); raise SystemExit(1)'
    with pytest.raises(BackendError, match="refuses it: out of memory"):
        compile_apart(tiny_ir, "NPU", {}, tmp_path / "blob", command=child(code))


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf"])
def test_the_limit_is_a_time(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_COMPILE_LIMIT", given)
    with pytest.raises(SettingError, match="EDGESPEC_COMPILE_LIMIT; got"):
        limit_s()


def test_a_blob_is_of_one_graph_one_plugin_and_these_weights(tmp_path: Path) -> None:
    xml = tmp_path / "openvino_model.xml"
    xml.write_text("<net></net>", encoding="utf-8")
    weights = np.zeros(1 << 20, np.uint8)
    names = set()
    for byte in (0, 1):
        weights[-1] = byte
        xml.with_suffix(".bin").write_bytes(weights.tobytes())
        names |= {
            blob_name(xml, {"a": 1}, "driver"),
            blob_name(xml, {"a": 2}, "driver"),
            blob_name(xml, {"a": 1}, "other"),
        }
    assert len(names) == 6


@pytest.mark.slow
def test_a_pair_is_compiled_once_and_then_imported(
    npu_on_cpu: None, tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    folder = tiny_ir.parent if tiny_ir.suffix else tiny_ir
    options: dict[str, Any] = {"device": "NPU", "context_length": 400, "num_draft_tokens": 3, "progress": True}
    texts = []
    for _ in range(2):
        pipeline = edgespec.load(folder, **options)
        assert pipeline.target.capabilities.device == "NPU" and pipeline.target.capabilities.numerics == "fast"
        texts.append(pipeline.generate(TEXT[:40], max_new_tokens=20, ignore_eos=True).token_ids)
    assert texts[0] == texts[1]
    assert len(list((tmp_path / "compiled").glob("npu-*.blob"))) == 1
    assert capfd.readouterr().err.count("compiling") == 1


class Plugin:
    """Takes one blob, and compiles nothing in this process."""

    def import_model(self, data: bytes, *_: Any) -> str:
        if data != b"a blob":
            raise RuntimeError("no blob")
        return "imported"

    def get_versions(self, device: str) -> Any:
        return {device: SimpleNamespace(build_number="1")}

    def get_property(self, device: str, name: str) -> str:
        return name

    def compile_model(self, *_: Any) -> str:
        pytest.fail("it was compiled in this process")


def test_a_blob_that_is_damaged_is_made_again_in_a_process_of_its_own_and_only_once(
    tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    said, compiled = list[str](), list[Path]()

    def apart(xml: Path, device: str, properties: Any, blob: Path, **_: Any) -> bool:
        compiled.append(blob)
        return bool(blob.write_bytes(b"a blob"))

    monkeypatch.setattr(npu_blobs, "compile_apart", apart)
    monkeypatch.setattr(npu_blobs, "on_cpu", lambda: False)
    plugin: Any = Plugin()
    blob = tmp_path / "compiled" / npu_blobs.name_of(plugin, tiny_ir, {})
    blob.parent.mkdir()
    blob.write_bytes(b"damaged")
    for _ in range(2):
        assert npu_blobs.compiled(plugin, tiny_ir, plugin, {}, said.append) == "imported"
    assert compiled == [blob] and len(said) == 1 and "compiled again" in said[0]


@pytest.mark.parametrize("gone", [False, True])
def test_a_graph_that_changes_while_it_is_compiled_leaves_no_blob(
    tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """It would stand under the name of the one before."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    xml = Path(shutil.copytree(tiny_ir.parent, tmp_path / "model")) / tiny_ir.name

    def apart(xml: Path, device: str, properties: Any, blob: Path, **_: Any) -> bool:
        if gone:
            xml.unlink()
        else:
            xml.write_bytes(xml.read_bytes() + b"\n")
        blob.parent.mkdir()
        return bool(blob.write_bytes(b"a blob"))

    monkeypatch.setattr(npu_blobs, "compile_apart", apart)
    monkeypatch.setattr(npu_blobs, "on_cpu", lambda: False)
    plugin: Any = Plugin()
    with pytest.raises(BackendError, match=r"was changed while it was compiled for NPU\. Run the command again"):
        npu_blobs.compiled(plugin, xml, plugin, {}, lambda line: None)
    assert list((tmp_path / "compiled").iterdir()) == []


@pytest.mark.slow
def test_a_blob_that_is_damaged_is_made_again(
    npu_on_cpu: None, tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    xml = tiny_ir if tiny_ir.suffix == ".xml" else tiny_ir / "openvino_model.xml"
    windows, said = Windows.of(512), list[str]()
    blob = tmp_path / "compiled" / npu_blobs.name_of(core(), xml, windows.properties())
    blob.parent.mkdir()
    blob.write_bytes(b"no blob")
    options: dict[str, Any] = {"capacity": 512, "is_draft": False, "say": said.append, "layers": ()}
    made = open_npu(core(), xml, "NPU", numerics=None, **options)
    assert close(made, fresh_logits(made, TEXT[:30]), fresh_logits(load_ir(tiny_ir), TEXT[:30]))
    assert any("compiled again" in line for line in said)


def test_a_head_whose_compiler_hangs_runs_on_the_cpu(
    npu_on_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def hangs(*_: Any) -> Any:
        raise DeviceError("compiling for NPU did not end")

    xml = write(head(), tmp_path)
    machine = loader.Machine(512, progress=True)
    monkeypatch.setattr(machine, "_path", lambda *_: xml)
    monkeypatch.setattr(npu_blobs, "compiled", hangs)
    assert machine.head(None, None, "NPU").device == "CPU"  # type: ignore[arg-type]
    assert "the head runs on the CPU: compiling for NPU did not end" in capfd.readouterr().err
    monkeypatch.delenv("EDGESPEC_NPU_ON_CPU")
    with pytest.raises(DeviceError, match="no such device here; got NPU"):
        machine.head(None, None, "NPU")  # type: ignore[arg-type]


def test_the_childs_report_is_its_last_line(tiny_ir: Path, tmp_path: Path) -> None:
    """What a compiler prints before it does not matter."""
    report = json.dumps({"error": ""})
    blob = tmp_path / "blob"
    code = f"print('VPUX says hello'); open({str(blob)!r}, 'w').close(); print({report!r})"
    assert compile_apart(tiny_ir, "NPU", {}, blob, command=child(code))
    blob.unlink()
    assert not compile_apart(tiny_ir, "NPU", {}, blob, command=child(f"print({report!r})"))


@pytest.mark.slow
def test_a_blob_made_ahead_of_time_is_taken(
    npu_on_cpu: None, tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pair"
    shutil.copytree(tiny_ir.parent, folder)
    [blob] = ahead_of_time.write_blobs(folder, lambda text: None)
    assert blob.parent == folder
    pipeline = edgespec.load(folder, draft="none", device="NPU", progress=True)
    assert "compiling" not in capfd.readouterr().err and not (tmp_path / "cache" / "compiled").exists()
    assert len(pipeline.generate(TEXT[:40], max_new_tokens=5, ignore_eos=True).token_ids) == 5


def test_ahead_of_time_needs_an_npu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is exported."""
    monkeypatch.delenv("EDGESPEC_NPU_ON_CPU", raising=False)
    if "NPU" in core().available_devices:
        pytest.skip("this machine has one")
    result = CliRunner().invoke(cli, ["export", str(tmp_path), "-o", str(tmp_path / "out"), "--aot"])
    assert isinstance(result.exception, DeviceError) or "no such device here; got NPU" in result.output
    assert not (tmp_path / "out").exists()
