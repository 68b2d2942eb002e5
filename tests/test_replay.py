"""Recordings, and what policies are worth against them: on made-up texts whose figures can be worked out by hand."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from statistics import geometric_mean

import pytest
from click.testing import CliRunner

import edgespec_bench
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.bench.plot import require_plot
from edgespec.cli import cli
from edgespec.decode.policy import FixedLength, Plain
from edgespec.drafters.ngram import NGram
from edgespec.errors import EdgespecError, SettingError
from edgespec.own_files import require_place
from edgespec_bench.peers import run as peers
from edgespec_bench.recording import LONGEST_DRAFT, Chain, Recorded, Recording, read, save
from edgespec_bench.replay import AUTO, PLAIN, Player, Trouble, compare, gain

TARGET = ForwardTimes((1, 2, 4, 8, 17), 64, 512, (1.0, 1.1, 1.3, 1.7, 2.6), (1.0, 1.1, 1.3, 1.7, 2.6))
DRAFT = ForwardTimes((1, 4), 64, 512, (0.1, 0.2), (0.1, 0.2))
TOKENS = 120


def text(number: int, *, right: bool, category: str = "code") -> Recorded:
    """No token comes twice, so lookups find nothing. right: the draft model knows how it goes on."""
    begin = 10 + 1000 * number
    written = tuple(range(begin, begin + TOKENS))
    drafts = tuple(
        Chain(
            tuple(token + i if right else 1 + i % 3 for i in range(LONGEST_DRAFT)),
            (0.9 if right else 0.4,) * LONGEST_DRAFT,
        )
        for token in written
    )
    return Recorded(category, (4, 5, 6, 7 + number), written, drafts)


def recording(*, right: bool = True, texts: int = 3, draft: ForwardTimes = DRAFT) -> Recording:
    return Recording("made up", {}, True, TARGET, draft, 0.0, tuple(text(n, right=right) for n in range(texts)))


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, said in (
        (tmp_path / "file" / "texts.gz", "cannot write"),
        (tmp_path, "allowed: a file"),
        (tmp_path / f"{'x' * 300}.gz", "cannot write"),
        (tmp_path / ("x" * 300) / "texts.gz", "cannot write"),
        (tmp_path / "new" / "a" / f"{'x' * 300}.gz", "cannot write"),
        (tmp_path / "new" / ("x" * 300) / "texts.gz", "cannot write"),
    ):
        ended = CliRunner().invoke(cli, ["bench", "record", "-m", str(tmp_path / "none"), "-o", str(place)])
        assert isinstance(ended.exception, SettingError) and said in str(ended.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that nobody can write in")
def test_a_folder_that_nobody_can_write_in_is_refused_before_the_work() -> None:
    for place in (Path("/proc/texts.gz"), Path("/proc/new/texts.gz"), Path("/proc/version")):
        with pytest.raises(SettingError, match=f"cannot write the recording {place}"):
            require_place(place, "the recording")


def test_a_place_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old.gz").write_text("content")
    for place in (tmp_path / "new" / "a" / "b.gz", tmp_path / "new.gz", tmp_path / "old.gz"):
        ended = CliRunner().invoke(cli, ["bench", "record", "-m", str(tmp_path / "none"), "-o", str(place)])
        assert isinstance(ended.exception, EdgespecError) and "none" in str(ended.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["old.gz"]
    assert (tmp_path / "old.gz").read_text() == "content"
    save(recording(), tmp_path / "new" / "a" / "b.gz")
    assert read(tmp_path / "new" / "a" / "b.gz") == recording()


def test_a_link_to_a_file_that_is_not_there_yet_is_left_as_it_was(tmp_path: Path) -> None:
    target, link, torn = (tmp_path / name for name in ("target.gz", "link.gz", "torn.gz"))
    try:
        link.symlink_to(target)
        torn.symlink_to(tmp_path / "none" / "target.gz")
    except OSError:
        pytest.skip("no links here")
    require_place(link, "the recording")
    with pytest.raises(SettingError, match="cannot write the recording"):
        require_place(torn, "the recording")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.gz", "torn.gz"] and link.is_symlink()
    target.write_text("content")
    require_place(link, "the recording")
    assert target.read_text() == "content" and link.is_symlink()


def test_a_path_through_a_folder_that_is_not_there_yet_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "new" / ".." / "other" / "texts.gz"
    require_place(place, "the recording")
    assert list(tmp_path.iterdir()) == []
    save(recording(), place)
    assert read(place) == recording()


def test_a_report_and_a_plot_are_refused_before_the_work_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    long = tmp_path / ("x" * 300)
    with pytest.raises(SettingError, match="cannot write the plot"):
        require_plot(long.with_suffix(".png"))
    with pytest.raises(SettingError, match="cannot write the report"):
        peers._check(long.with_suffix(".md"))
    peers._check(tmp_path / "new" / "page.md")
    assert list(tmp_path.iterdir()) == []


def test_a_recording_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save(recording(), tmp_path / "texts.gz")
    assert read(tmp_path / "texts.gz") == recording()


@pytest.mark.parametrize("damage", ["no file", "no gzip", "no json", "no drafts", "score", "no texts", "times"])
def test_a_file_that_is_no_recording_is_refused_in_a_line(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.gz"
    save(recording(texts=1), file)
    fields = json.loads(gzip.decompress(file.read_bytes()))
    match damage:
        case "no drafts":
            fields["texts"][0]["drafts"] = []
        case "score":
            fields["texts"][0]["drafts"][0]["scores"][0] = 1.5
        case "no texts":
            fields["texts"] = []
        case "times":
            fields["target"]["at_short_s"][0] = -1.0
    file.write_bytes(gzip.compress(b"[" if damage == "no json" else json.dumps(fields).encode()))
    if damage == "no gzip":
        file.write_bytes(b"texts")
    if damage == "no file":
        file.unlink()
    with pytest.raises(SettingError, match="cannot read the recording") as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_forwards_take_what_was_measured() -> None:
    player = Player(recording())
    assert player.play(Plain())["code"] == pytest.approx(1.0)
    # 3 drafted tokens stand each round: a forward of 4, steps of 0.1, and the first reads one more: 2 / 3 of the way
    # from 0.1 to 0.2 is at 3 tokens.
    assert player.draft is not None
    a_round_s = 1.3 + 2 * 0.1 + 0.1 + 0.1 / 3
    assert player.play(FixedLength(player.draft, 3))["code"] == pytest.approx(4 / a_round_s, rel=0.02)
    assert player.play(FixedLength(NGram(), 3))["code"] == pytest.approx(1.0)


def test_a_replay_is_the_same_every_time_and_trouble_is_the_seeds() -> None:
    once, again = compare(recording(texts=2)), compare(recording(texts=2))
    assert once == again
    trouble = Trouble(noise=0.2, wrong=0.2, slow=True)
    noisy = compare(recording(texts=2), trouble)
    assert noisy == compare(recording(texts=2), trouble) != once
    assert compare(recording(texts=2), trouble, seeds=2) != noisy


def test_a_slow_stretch_lies_at_the_same_places_whoever_drafts() -> None:
    """40 tokens of each 80 take twice as long, so all of a text of 120 take 4/3."""
    for name in (PLAIN, "model"):
        quiet = Player(recording()).play(Player(recording()).policies(PLAIN)[0])["code"]
        slow = Player(recording(), Trouble(slow=True)).play(Plain())["code"]
        assert slow == pytest.approx(quiet * 3 / 4, rel=0.01), name


def test_a_misread_calibration_still_rises() -> None:
    for seed in range(20):
        believed = Player(recording(), Trouble(wrong=0.3), seed)._believed
        assert believed != TARGET and list(believed.at_short_s) == sorted(believed.at_short_s)


def test_auto_is_held_against_the_best_of_the_others() -> None:
    assert gain({PLAIN: 1.0, "ngram": 2.0, AUTO: 1.5}) == 0.75
    speeds = compare(recording())
    assert set(speeds) == {"code", "first text"}
    assert set(speeds["code"]) == {PLAIN, AUTO, "ngram", "pool", "model"}
    assert speeds["code"]["model"] > 2 and gain(speeds["code"]) > 0.95


@pytest.mark.parametrize("step", [0.05, 0.35])
def test_a_useless_draft_is_soon_left_out_and_stays_out(step: float) -> None:
    texts = 6
    useless = recording(right=False, texts=texts, draft=ForwardTimes((1, 4), 64, 512, (step, step), (step, step)))
    player = Player(useless)
    arbiter = player.policies(AUTO)[0]
    lost = []
    for number, each in enumerate(useless.texts):
        stats = player._run(arbiter, each)
        lost.append(stats.decode_s / stats.decoded - 1.0)
        drafted = [at for at, round_ in enumerate(stats.rounds) if round_.draft_s]
        assert sum(at < 10 for at in drafted) <= (8 if number == 0 else 3)
        assert sum(at >= 10 for at in drafted) <= 5
    assert lost[0] < 0.02 and sum(lost[1:]) / (texts - 1) < 0.01, lost


_FOLDER = Path(edgespec_bench.__file__).parents[1] / "recordings"
RECORDINGS = sorted(file for file in _FOLDER.glob("*.gz") if file.stem != "heldout")  # it has a test of its own


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_on_what_real_models_wrote_auto_is_never_slower_than_plain_and_as_good_as_each_drafter(file: Path) -> None:
    """Which drafter and which of seven lengths is best for a category is known only afterwards: so in the mean."""
    found = compare(read(file))
    assert set(found) == {"chat", "code", "edit", "first text"}
    assert all(speeds[AUTO] > speeds[PLAIN] for speeds in found.values()), found
    gains = [gain(speeds) for category, speeds in found.items() if category != "first text"]
    assert geometric_mean(gains) > 0.97 and min(gains) > 0.88, gains


def test_a_pair_is_recorded_and_replayed_by_two_commands(tmp_path: Path) -> None:
    prompts, file = tmp_path / "prompts.jsonl", tmp_path / "texts.gz"
    prompts.write_text(json.dumps({"kind": "code", "text": "def add(a, b):\n    return a + b\n\n"}) + "\n")
    wrote = CliRunner().invoke(
        cli, ["bench", "record", "--prompts", str(prompts), "--new-tokens", "12", "-o", str(file)]
    )
    assert wrote.exit_code == 0 and wrote.stdout == f"{file}\n", wrote.output
    found = read(file)
    assert len(found.texts) == 1 and len(found.texts[0].drafts) == len(found.texts[0].written) <= 12
    assert found.draft is not None and found.exact
    result = CliRunner().invoke(cli, ["bench", "replay", str(file)])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["categories"]["code"][PLAIN] == 1.0 and figures["categories"]["code"]["auto / best"] > 0
