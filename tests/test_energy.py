"""Energy of a text: read from the CPU's counter, or modelled."""

from __future__ import annotations

from pathlib import Path

from edgespec.machine import energy
from edgespec.stats import Guessed, Stats
from edgespec.types import Round


def test_the_counter_of_the_cpu(tmp_path: Path) -> None:
    assert energy.read_joules(tmp_path / "none") is None
    (tmp_path / "energy_uj").write_text("2500000\n")
    (tmp_path / "max_energy_range_uj").write_text("10000000\n")
    assert energy.read_joules(tmp_path) == 2.5
    assert energy.joules_between(2.5, 4.0, tmp_path) == 1.5
    assert energy.joules_between(9.0, 1.0, tmp_path) == 2.0  # it began again at 10
    assert energy.joules_between(None, 4.0) is None


def test_the_model_of_energy() -> None:
    rounds = [Round("m", 2, 2, 1, 2, 1.0, 2.0, 0.0)] * 2  # 1 s to draft, 2 s to verify, twice
    stats = Stats(rounds=rounds)
    assert energy.modelled_joules(stats, "CPU", "CPU") == 6 * 25
    assert energy.modelled_joules(stats, "GPU.1", "NPU") == 4 * 20 + 2 * 6
    overlapped = Stats(rounds=rounds, guessed=Guessed())
    assert energy.modelled_joules(overlapped, "CPU", None) == 4 * 25  # they share the cores
    assert energy.modelled_joules(overlapped, "GPU", "CPU") == 4 * 20 + 4 * 25
