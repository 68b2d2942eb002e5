"""What a user sends to the makers names no user, no host and no path."""

from __future__ import annotations

import getpass
import json
import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from edgespec import loading
from edgespec.cli import cli
from edgespec.commands import report
from edgespec.errors import BackendError, SettingError
from edgespec.load_options import LoadOptions
from edgespec.machine.engine_comparison import Pace
from edgespec.machine.plans import Place, Plan
from edgespec.plan_rows import PlanTable, Row
from edgespec.plan_verify import Verified, judged

TABLE = PlanTable(
    "ada-model",
    "speed",
    (
        Row(Plan(Place("CPU", "openvino")), Pace(0.001, 0.01, 0.005), 1.0, 2.0, "no other is faster"),
        Row(Plan(Place("GPU", "openvino")), why="does not run: cannot open /home/ada/model.xml on ada-laptop"),
    ),
)


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(platform, "node", lambda: "ada-laptop.example.org")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    monkeypatch.setattr(loading, "plan", lambda ref, options, again=False: TABLE)


def private(text: str) -> bool:
    return any(word in text.lower() for word in ("ada", "laptop", "example.org", "/home"))


@pytest.mark.parametrize(
    "text, shown",
    [
        ("cannot open /home/ada/my models/x.xml: no such file", "cannot open PATH: no such file"),
        ("not C:\\Users\\ada\\x.gguf, not D:/y", "not PATH, not PATH"),
        ("\\\\server\\share\\x, ~/x/y; (/opt) is", "PATH, PATH; (PATH) is"),
        ("ada@ADA-LAPTOP has Intel(R) Core(TM) 7 258V", "NAME@NAME has Intel(R) Core(TM) 7 258V"),
        ("file:/home/bob/m.xml; Model:/srv/bob/m.bin: no", "PATH; Model:PATH: no"),
        ("(file:///C:/Users/bob/x), file:C:\\Users\\bob\\x", "(PATH), PATH"),
        ("drafts: ../bob/draft, ./x, ~bob/x, ..\\bob\\x", "drafts: PATH, PATH, PATH, PATH"),
        ("see https://docs.openvino.ai/2026/gpu.html", "see https://docs.openvino.ai/2026/gpu.html"),
        ("adaptive, and/or 4/8 cores", "adaptive, and/or 4/8 cores"),
    ],
)
def test_private_words_are_taken_out(text: str, shown: str) -> None:
    assert report.scrubbed([{"why": (text, 1, None)}]) == [{"why": [shown, 1, None]}]


def test_a_report_has_plans_forwards_and_parity_and_nobody_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_plan(ref: str, options: LoadOptions, plan: Plan) -> Any:
        times = SimpleNamespace(widths=(1, 2), short=64, long=512, at_short_s=(0.01, 0.012), at_long_s=(0.02, 0.03))
        texts = iter([[1], [1], [2], [3], [4], [4]])
        return SimpleNamespace(
            arbiter=SimpleNamespace(target_s=SimpleNamespace(times=times)),
            target=SimpleNamespace(capabilities=SimpleNamespace(numerics="exact")),
            generate=lambda prompt, **options: SimpleNamespace(token_ids=next(texts)),
        )

    monkeypatch.setattr(loading, "load_plan", load_plan)
    made = report.report("/home/ada/m", LoadOptions(device="auto"), {"model": {"name": "/home/ada/m"}, "python": "3"})
    assert not private(json.dumps(made))
    [checked] = made["devices_checked"]
    assert checked["forward_ms"]["behind 64 tokens"] == {"1": 10.0, "2": 12.0}
    assert checked["parity"] == {"numerics": "exact", "texts_with_drafts_equal_to_plain": "2 of 3"}
    assert made["plans"]["plans"][0]["tok_per_s"] == {"read": 1000.0, "write": 100.0, "copy": 200.0}


def test_a_device_that_fails_is_part_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_plan(ref: str, options: LoadOptions, plan: Plan) -> Any:
        raise BackendError("the device is gone: /dev/dri/renderD128")

    monkeypatch.setattr(loading, "load_plan", load_plan)
    made = report.report("m", LoadOptions(device="auto"), {})
    assert made["devices_checked"] == [{"device": "CPU", "backend": "openvino", "error": "the device is gone: PATH"}]


# --- The command


@pytest.mark.parametrize("option", ["--plan", "--verify", "--again"])
def test_a_report_takes_no_option_of_the_table(option: str) -> None:
    assert isinstance(doctor("--report", option).exception, SettingError)


def doctor(*args: str) -> Any:
    return CliRunner().invoke(cli, ["doctor", *args])


def test_plan_shows_every_plan_and_how_to_run_the_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = doctor("--plan").stdout
    assert "no other is faster" in shown and "does not run" in shown
    assert "--device auto, or --device CPU --backend openvino" in shown
    monkeypatch.setattr(loading, "plan", lambda ref, options, again=False: replace(TABLE, prefer="battery"))
    assert "To run it: --device auto --prefer battery, or" in " ".join(doctor("--plan").stdout.split())
    plans = json.loads(doctor("--plan", "--json").stdout)["plans"]
    assert [each["time_over_first"] for each in plans] == [1.0, None]


def test_verify_says_how_good_the_choice_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = Plan(Place("CPU", "openvino"), draft="ngram"), Plan(Place("CPU", "onnxruntime"), draft="ngram")
    left = Plan(Place("GPU", "openvino"))
    ratios = {plans[0]: (0.98, 0.95, 1.0), plans[1]: (1.5, 1.5)}
    verdict = Verified(0.98, 0.95, 1.0, plans[0], ratios, {left: "no room"})
    monkeypatch.setattr(loading, "verify", lambda ref, options, table, pairs: verdict)
    shown = " ".join(doctor("--plan", "--verify").stdout.split())
    assert "2 plans timed again, each in 2 to 3 pairs of turns" in shown
    fastest = "OpenVINO on CPU, drafts: ngram"
    assert (
        f"has 0.98 of the speed of the fastest (range of the sign test when it stopped: 0.95 to 1.00): {fastest}."
        in shown
    )
    verified = json.loads(doctor("--plan", "--verify", "--json").stdout)["verified"]
    times = {str(plans[0]): [0.98, 0.95, 1.0], str(plans[1]): [1.5, 1.5]}
    assert f"Not timed again: {left}: no room" in shown
    assert verified.pop("not_timed") == {str(left): "no room"}
    assert verified == {"share": 0.98, "low": 0.95, "high": 1.0, "fastest": fastest, "times_over_taken": times}


def test_a_choice_beside_which_nothing_was_timed_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(Place("CPU", "onnxruntime"), draft="ngram")
    nothing = replace(judged(plan, {}), not_timed={plan: "does not run: no such kernel"})
    monkeypatch.setattr(loading, "verify", lambda ref, options, table, pairs: nothing)
    shown = " ".join(doctor("--plan", "--verify").stdout.split())
    assert "The plan taken is not judged, since no other one was timed again." in shown
    assert f"Not timed again: {plan}: does not run: no such kernel" in shown and "of the fastest" not in shown
    verified = json.loads(doctor("--plan", "--verify", "--json").stdout)["verified"]
    assert verified.pop("not_timed") and verified.pop("times_over_taken") == {}
    assert verified == dict.fromkeys(("share", "low", "high", "fastest"))


def test_the_options_of_plans_restrict_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LoadOptions] = []
    monkeypatch.setattr(loading, "plan", lambda ref, options, again=False: seen.append(options) or TABLE)
    assert doctor("--plan", "--backend", "openvino", "--prefer", "battery").exit_code == 0
    assert (seen[0].device, seen[0].backend, seen[0].prefer) == ("AUTO", "openvino", "battery")


@pytest.mark.parametrize("args", [["--backend", "openvino"], ["--verify"], ["--device", "GPU"]])
def test_options_of_plans_without_a_plan_are_refused(args: list[str]) -> None:
    result = doctor(*args)
    assert isinstance(result.exception, SettingError) and f"{args[0]} is for plans" in str(result.exception)
