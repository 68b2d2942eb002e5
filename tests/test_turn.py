"""A pipeline writes one text at a time, whoever asks for it and from which thread."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

import edgespec
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.turn import Turn

LONG_S = 60
"""far beyond what any step here takes: a test that waits for it hangs"""


class Engine:
    """Notices two threads inside, and a text that goes on when it is over."""

    def __init__(self) -> None:
        self.inside = 0
        self.clashes = 0

    def text(self, name: str, pieces: int = 3) -> Generator[str, None, None]:
        for index in range(pieces):
            self.inside += 1
            self.clashes += self.inside > 1
            time.sleep(0.0005)
            self.inside -= 1
            yield f"{name}{index}"


def beside(function: Callable[[], Any]) -> Any:
    """Its result, out of another thread."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(function).result(LONG_S)


def waits(thread: threading.Thread) -> bool:
    thread.join(0.1)
    return thread.is_alive()


def reader(text: Iterator[str], into: list[str]) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.extend(text), daemon=True)
    thread.start()
    return thread


def test_texts_of_many_threads_do_not_meet() -> None:
    turn, engine = Turn(), Engine()

    def read(name: str) -> list[str]:
        return [piece for _ in range(20) for piece in turn.run(engine.text(name))]

    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(read, "abcdefgh"))
    assert texts == [[f"{name}{index}" for _ in range(20) for index in range(3)] for name in "abcdefgh"]
    assert not engine.clashes


def test_who_asked_first_comes_first() -> None:
    turn, engine = Turn(), Engine()
    first = turn.run(engine.text("a"))
    next(first)
    said: list[str] = []
    waiting = []
    for name in "bcd":
        waiting.append(reader(turn.run(engine.text(name, 1)), said))
        while len(turn._waiting) < len(waiting):  # however long a busy machine takes to start a thread
            time.sleep(0.001)
    first.close()
    for thread in waiting:
        thread.join(LONG_S)
    assert said == ["b0", "c0", "d0"]


@pytest.mark.parametrize("end", ["read", "close", "forget", "forget in a cycle", "error"])
def test_the_end_of_a_text_frees_the_turn_whichever_it_is(end: str) -> None:
    turn, engine = Turn(), Engine()

    def fails() -> Generator[str, None, None]:
        yield "a0"
        raise OSError("engine")

    first = turn.run(fails() if end == "error" else engine.text("a"))
    next(first)
    said: list[str] = []
    second = reader(turn.run(engine.text("b")), said)
    assert waits(second) and said == []
    if end in ("read", "error"):
        with suppress(OSError):
            list(first)
    elif end == "close":
        first.close()
    else:
        if end.endswith("cycle"):
            cycle: list[Any] = [first]
            cycle.append(cycle)
            del cycle
        del first
        gc.collect()
    second.join(LONG_S)
    assert said == ["b0", "b1", "b2"] and not engine.clashes


def test_another_thread_may_read_a_text_on_and_then_it_is_that_threads() -> None:
    turn, engine = Turn(), Engine()
    first = turn.run(engine.text("a", 5))
    assert [next(first), beside(lambda: next(first))] == ["a0", "a1"]
    busy = turn.run(engine.text("b"), wait=False)
    with pytest.raises(SettingError, match="busy"):  # the thread that read it last is another one
        next(busy)
    assert [next(first), *turn.run(engine.text("c", 1))] == ["a2", "c0"]
    with pytest.raises(SettingError, match="another generation has begun"):
        next(first)


def test_who_does_not_want_to_wait_does_not_come_before_those_who_do() -> None:
    turn, engine = Turn(), Engine()
    first = turn.run(engine.text("a"))
    next(first)
    said: list[str] = []
    waiting = reader(turn.run(engine.text("b")), said)
    assert waits(waiting)
    with pytest.raises(SettingError, match="busy"):
        beside(lambda: next(turn.run(engine.text("c"), wait=False)))
    first.close()
    waiting.join(LONG_S)
    assert said == ["b0", "b1", "b2"]
    assert list(turn.run(engine.text("d", 1), wait=False)) == ["d0"]


def test_a_text_cannot_begin_within_a_step_of_another() -> None:
    turn, engine = Turn(), Engine()

    def calls_back() -> Generator[str, None, None]:
        with pytest.raises(SettingError, match="inside a callback"):
            next(turn.run(engine.text("inner")))
        yield "outer"

    assert list(turn.run(calls_back())) == ["outer"]
    assert list(turn.run(engine.text("after", 1))) == ["after0"]


# ---- with the real engines


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A random pair: forwards take a millisecond, so threads meet often."""
    pytest.importorskip("optimum.intel")
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    from tests.tiny_models import build, export_ir

    folder = tmp_path_factory.mktemp("turn")
    export_ir(build("llama", folder / "torch"), folder / "ir")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESPEC_CACHE", str(folder / "cache"))
        return edgespec.load(folder / "ir", draft="ngram", num_draft_tokens=3, backend=request.param)


def _questions() -> list[str]:
    """Of many lengths, so that caches grow while others want to write."""
    return [f"Question {index}: " + "The lighthouse leaned towards the sea. " * (index % 7) for index in range(50)]


def test_four_threads_write_what_one_writes_alone(small: Pipeline) -> None:
    def write(question: str) -> list[int]:
        return small.generate(question, max_new_tokens=6, ignore_eos=True).token_ids

    questions = _questions()
    alone = {question: write(question) for question in questions}
    orders = [questions[turn:] + questions[:turn] for turn in (0, 13, 26, 39)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda order: [write(question) for question in order], orders))
    assert len(set(map(tuple, alone.values()))) > 25
    for order, texts in zip(orders, together, strict=True):
        assert texts == [alone[question] for question in order]


def test_threads_that_walk_away_or_do_not_wait_disturb_nobody(small: Pipeline) -> None:
    questions = _questions()[:8]
    alone = {q: small.generate(q, max_new_tokens=8, ignore_eos=True).text for q in questions}
    refused = 0

    def restless(seed: int) -> None:
        nonlocal refused
        for index, question in enumerate(questions):
            stream = small.stream(question, max_new_tokens=8, ignore_eos=True, wait=index % 2 == 0)
            try:
                next(stream)
            except SettingError as error:
                assert "busy" in str(error)
                refused += 1
            if index % 3 == seed:
                stream.close()

    def steady(_: int) -> list[str]:
        return [small.generate(question, max_new_tokens=8, ignore_eos=True).text for question in questions]

    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(restless, seed) for seed in (0, 1)]
        texts = list(threads.map(steady, range(2)))
        for other in others:
            other.result(LONG_S)
    assert texts == [[alone[question] for question in questions]] * 2


def test_a_callback_cannot_begin_a_text_and_the_text_around_it_is_right(small: Pipeline) -> None:
    question = _questions()[6]
    expected = small.generate(question, max_new_tokens=8).token_ids
    small.target.cache.reset()
    said: list[str] = []

    def progress(done: int, total: int) -> None:
        for call in (lambda: small.generate("hi"), lambda: next(stream), lambda: stream.close()):
            with pytest.raises(SettingError) as error:
                call()
            said.append(str(error.value))

    stream = small.stream(question, max_new_tokens=8, progress=progress)
    for _ in stream:
        pass
    assert stream.result.token_ids == expected
    assert "inside a callback" in said[0] and all("is being read already" in text for text in said[1:3])


def test_a_pipeline_is_free_when_its_stream_is_closed(small: Pipeline) -> None:
    stream = small.stream("Hello", max_new_tokens=8, ignore_eos=True)
    next(stream)
    with pytest.raises(SettingError, match="busy"):
        beside(lambda: small.generate("Hello", max_new_tokens=2, wait=False))
    stream.close()
    assert beside(lambda: small.generate("Hello", max_new_tokens=2, wait=False)).token_ids
