"""scripts/check: which commands it runs. What they find is theirs to say."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import sys
from contextlib import nullcontext
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from tests import conftest

CHECK = Path(__file__).parents[1] / "scripts" / "check"
TESTS = Path(__file__).parent
FORMAT_AND_LINT = [("ruff", "format", "--check", "."), ("ruff", "check", ".")]


def loaded() -> ModuleType:
    loader = SourceFileLoader("check", str(CHECK))
    spec = spec_from_loader("check", loader)
    assert spec is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.dont_write_bytecode", True)
        loader.exec_module(module)
    return module


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which says what it would run."""
    module = loaded()
    vars(module)["ran"] = []
    monkeypatch.setattr(module, "set_up", lambda: None)
    monkeypatch.setattr(module, "run", lambda *arguments, on=(): module.ran.append((*on, *arguments)))
    monkeypatch.setattr(module, "background", lambda *arguments: lambda: module.ran.append(arguments))
    return module


def ran(check: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[tuple[str, ...]]:
    monkeypatch.setattr("sys.argv", [str(CHECK), *arguments])
    check.main()
    found: list[tuple[str, ...]] = check.ran
    return found


def test_without_options_it_runs_everything(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ran(check, monkeypatch) == [*FORMAT_AND_LINT, ("mypy",), ("pytest", *check.WORKERS)]


@pytest.mark.parametrize("option", [(), ("--fast",), ("--slow",)])
def test_what_was_compiled_is_kept_for_the_processes_that_follow(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    kept: list[bool] = []
    monkeypatch.setattr(check, "run", lambda *_: kept.append("PYTHONDONTWRITEBYTECODE" not in os.environ))
    ran(check, monkeypatch, *option)
    assert kept and all(kept)


def test_fast_leaves_out_tests_and_nothing_else(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = [f"--ignore=tests/{name}" for name in check.LEFT_OUT]
    second = ("pytest", "-m", check.FAST, *check.SECOND)
    first = ("pytest", "-m", check.FAST, *left_out, *(f"--ignore={path}" for path in check.SECOND))
    assert ran(check, monkeypatch, "--fast") == [*FORMAT_AND_LINT, first, second, ("mypy",)]
    check.ran.clear()
    chosen = ("pytest", "-m", check.FAST, *left_out, "-k", "loop")
    assert ran(check, monkeypatch, "--fast", "--", "-k", "loop") == [*FORMAT_AND_LINT, chosen, ("mypy",)]


def test_slow_tests_run_in_workers_and_some_behind_them(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = ("pytest", "-m", "slow and not alone", *check.WORKERS, "--durations=40")
    alone = ("pytest", "-m", "slow and alone", *(option.replace("auto", "1") for option in check.WORKERS))
    assert ran(check, monkeypatch, "--slow") == [beside, alone]
    check.ran.clear()
    assert ran(check, monkeypatch, "--slow", "--", "-k", "ray") == [("pytest", "-m", "slow", "-k", "ray")]
    check.ran.clear()

    def fails(*arguments: str) -> None:
        check.ran.append(arguments)
        if arguments == beside:
            raise SystemExit(1)

    monkeypatch.setattr(check, "run", fails)
    with pytest.raises(SystemExit, match="1"):
        ran(check, monkeypatch, "--slow")
    assert check.ran == [beside, alone], "those alone have their say"


def test_the_files_that_fast_leaves_out_exist(check: ModuleType) -> None:
    assert [
        name for name in (*check.LEFT_OUT, *(Path(path).name for path in check.SECOND)) if not (TESTS / name).is_file()
    ] == []


def test_the_files_that_workers_begin_with_exist() -> None:
    names = {*conftest.LONGEST_FIRST, *conftest.LONGEST_SLOW_FIRST}
    assert [name for name in names if not (TESTS / name).is_file()] == []


@pytest.mark.parametrize(("cores", "gb", "workers"), [(1, 64, 1), (2, 24, 2), (16, 64, 4), (16, 9, 2), (8, 2, 1)])
def test_there_are_as_many_workers_as_cores_and_memory_for(
    monkeypatch: pytest.MonkeyPatch, cores: int, gb: int, workers: int
) -> None:
    monkeypatch.setattr(conftest, "available_cores", lambda: cores)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gb << 30))
    monkeypatch.setattr(conftest, "CONTAINER_MEMORY", ())
    assert conftest.pytest_xdist_auto_num_workers() == workers


@pytest.mark.parametrize(("limits", "workers"), [(("max", None), 4), ((f"{9 << 30}\n", None), 2), ((None, "1"), 1)])
def test_a_container_may_have_less_memory_than_its_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: tuple[str | None, ...], workers: int
) -> None:
    files = [tmp_path / str(version) for version in range(len(limits))]
    for file, limit in zip(files, limits, strict=True):
        if limit is not None:
            file.write_text(limit, encoding="utf-8")
    monkeypatch.setattr(conftest, "available_cores", lambda: 16)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 << 30))
    monkeypatch.setattr(conftest, "CONTAINER_MEMORY", files)
    assert conftest.pytest_xdist_auto_num_workers() == workers


def test_garbage_is_not_looked_for_among_what_was_imported() -> None:
    assert gc.get_freeze_count() > 10_000


def test_workers_begin_with_the_longest_files_and_each_keeps_its_order() -> None:
    names = [
        "test_a.py",
        "test_overlapped_real.py",
        "test_a.py",
        "test_export.py",
        "test_overlapped_real.py",
        "test_b.py",
    ]
    items: list[Any] = [SimpleNamespace(path=Path(name), number=number) for number, name in enumerate(names)]
    worker: dict[str, Any] = {"workerinput": {}}
    for given, marks, expected in (
        (worker, "not slow", [3, 1, 4, 0, 2, 5]),
        (worker, "slow and not alone", [1, 4, 3, 0, 2, 5]),
        ({}, "slow", [*range(6)]),
    ):
        config, found = SimpleNamespace(getoption={"markexpr": marks}.__getitem__, **given), list(items)
        conftest.pytest_collection_modifyitems(cast(pytest.Config, config), found)
        assert [item.number for item in found] == expected


def test_what_runs_in_the_background_is_shown_and_may_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = loaded()
    vars(script).update(PYTHON=Path(sys.executable), ROOT=tmp_path)
    for code in (0, 1):
        # A name each: what was compiled of a file of the same size and second would run again.
        (tmp_path / f"tool{code}.py").write_text(f"print('found', {code}); raise SystemExit({code})", encoding="utf-8")
        finish = script.background(f"tool{code}", "--strict")
        with pytest.raises(SystemExit, match="1") if code else nullcontext():
            finish()
        assert capsys.readouterr().out == f"$ tool{code} --strict\nfound {code}\n"


def test_what_follows_two_dashes_is_for_pytest(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(check, monkeypatch, "--", "-k", "loop", "--cpu")[-1] == ("pytest", *check.WORKERS, "-k", "loop", "--cpu")
    with pytest.raises(SystemExit, match="2"):
        ran(check, monkeypatch, "-k", "loop")
    assert "unknown: -k loop; options of pytest follow --" in capsys.readouterr().err


def test_another_cpu_is_an_emulated_one(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    [(qemu, option, cpu, *command)] = ran(check, monkeypatch, "--cpu", "avx2", "--", "-x")
    assert (qemu, option, cpu.split(",")[0]) == ("/bin/qemu-x86_64", "-cpu", "Haswell")
    assert command == ["pytest", "-m", "cpu", "-x"]


@pytest.mark.parametrize(
    ("system", "said"), [("Linux", "which is not installed: apt-get install qemu-user"), ("Windows", "got Windows on")]
)
def test_where_none_can_be_emulated_it_says_so(
    check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    system: str,
    said: str,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        ran(check, monkeypatch, "--cpu", "avx2")
    assert said in capsys.readouterr().err and not check.ran


def test_the_gpu_on_the_cpu_is_refused_where_it_cannot_be_set_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = loaded()
    for system, found, message in (("Windows", "gcc", "Linux on x86-64 only"), ("Linux", None, "apt-get install gcc")):
        monkeypatch.setattr(platform, "system", lambda system=system: system)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(shutil, "which", lambda name, found=found: found)
        with pytest.raises(SystemExit) as ended:
            check.gpu_on_cpu()
        assert ended.value.code == 2 and message in capsys.readouterr().err
