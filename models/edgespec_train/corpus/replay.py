"""Complete a corpus that lacks something: the target reads its texts once more, many a forward.

For each chosen text it keeps the best log-probabilities at each answer token, and the hidden states of chosen layers at
every token. A folder of states has:
    states.json       the target, the layers, the choice of texts
    meta-NNNNN.npz    a shard (``shards``) of the chosen texts, with ``texts``, their numbers in shard NNNNN of the
                      corpus
    states-NNNNN.npy  ``(tokens, layers, d)`` in 16 bits, one row for each of its tokens; none without layers
A meta file means that its states are whole. What is there is not made again.

A corpus that is written here can keep its states at once (``Keeper``): the target has read each text as it wrote it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgespec import cache
from edgespec.backends.openvino.graph import decoder_layers
from edgespec.backends.openvino.runtime import ov
from edgespec.bundle import Bundle
from edgespec.errors import BackendError, SettingError
from edgespec_train.corpus import shards
from edgespec_train.corpus.build import identity, read_manifest, record_of, require_target, same_weights, write_json
from edgespec_train.corpus.layers import require_distinct
from edgespec_train.corpus.paged_texts import TOP, Fed, PagedTexts, blocks_for, graph_of, require_finite

if TYPE_CHECKING:
    from edgespec_train.corpus.generate import Generated

MANIFEST = "states.json"
_ROWS = 768
"""tokens a forward; a longer text is read alone"""
_COPIED = ("source", "origin", "temperature")
_TOP = ("top_ids", "top_logprobs")
_DOUBTFUL = 0.5
"""share of greedy answers' tokens that the target must choose again"""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """Which texts are replayed.

    longest: most tokens of prompt and answer. prompt_share: most of a text that may be its prompt, which costs time and
    room and is not trained on. tokens: most tokens in all; None: any number.
    """

    longest: int = 448
    prompt_share: float = 0.45
    tokens: int | None = None

    def __call__(self, shard: dict[str, NDArray[Any]]) -> NDArray[np.intp]:
        """Numbers of the texts of a shard."""
        lengths, prompts = np.diff(shard["begins"]), shard["answers"] - shard["begins"][:-1]
        chosen: NDArray[np.intp] = np.flatnonzero(self.fits(prompts, lengths))
        return chosen

    def fits(self, prompts: Any, lengths: Any) -> Any:
        """Whether texts of so many tokens are chosen, prompts included; of a number or of an array."""
        return (lengths <= self.longest) & (prompts <= self.prompt_share * lengths) & (prompts < lengths)


ALL = Choice(longest=1 << 30, prompt_share=1.0)


def replay(
    corpus: Path, target: Bundle, out: Path, say: Say, *, layers: Sequence[int] = (), choice: Choice = ALL
) -> Path:
    """Replay the chosen texts of ``corpus`` into ``out``, and return it.

    Raises SettingError for a corpus that cannot be this target's, ConversionError if the disk has too little room, and
    BackendError for a target that gives no such states.
    """
    paths = shards.require_shards(corpus)
    require_target(corpus, target)
    require_distinct(layers)
    longest = min(choice.longest, target.manifest.generation.context_length)
    plan = _Plan(paths, Choice(longest, choice.prompt_share, choice.tokens), target.manifest.target.vocab_size, out)
    wanted = {"target": identity(target), "layers": list(layers), "choice": asdict(choice)}
    _check_same(out, wanted)
    if not plan.left:
        return out
    reader = PagedTexts(graph_of(target), plan.blocks, layers)
    needed = plan.rows * (len(layers) * reader.hidden_size * 2 + TOP * 6 + 8)
    say(f"replaying {plan.rows} tokens of {len(plan.left)} shards: {needed / 1e9:.2f} GB in {out}")
    cache.require_space(int(1.02 * needed), out, "-o")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MANIFEST, wanted | {"corpus": record_of(corpus)})
    began, done, agree, greedy = time.perf_counter(), 0, 0, 0
    for place, (path, chosen) in enumerate(plan.left):
        (shard,) = shards.read_shards([path], _COPIED)
        meta = _replayed(reader, shard, chosen, out, path, layers)
        done += len(meta["tokens"])
        cold = np.repeat(meta["temperature"] == 0, meta["begins"][1:] - meta["answers"])
        agree += int((meta["top_ids"][:, 0] == shards.answer_tokens(meta))[cold].sum())
        greedy += int(cold.sum())
        rate = done / (time.perf_counter() - began)
        minutes = (plan.rows - done) / rate / 60
        say(f"replayed shard {place + 1} of {len(plan.left)}: {rate:.0f} tokens a second, {minutes:.0f} minutes left")
    if greedy and agree < _DOUBTFUL * greedy:
        say(f"the target would write {agree / greedy:.0%} of its greedy tokens again: is it another model's corpus?")
    return out


@dataclass(frozen=True)
class Keeper:
    """Keeps the states of a corpus while the target writes it: ``folder`` becomes what ``replay`` would make of it."""

    folder: Path
    layers: tuple[int, ...]
    choice: Choice

    @classmethod
    def of(
        cls, folder: Path, target: Bundle, layers: Sequence[int], choice: Choice, *, corpus: Path, tokens: int
    ) -> Keeper:
        """tokens: how many ``corpus`` will have. Raises SettingError and ConversionError as ``replay``."""
        require_distinct(layers)
        if choice.tokens is not None:
            raise SettingError("a corpus that is being written keeps all its states", got=f"{choice.tokens} tokens")
        choice = Choice(min(choice.longest, target.manifest.generation.context_length), choice.prompt_share)
        wanted = {"target": identity(target), "layers": list(layers), "choice": asdict(choice)}
        _check_same(folder, wanted)
        _, width = decoder_layers(ov.Core(), graph_of(target))
        missing = max(0, tokens - int(read_manifest(corpus).get("answer_tokens", 0)))
        cache.require_space(2 * missing * (len(layers) * width * 2 + TOP * 6 + 8), folder, "-o")  # half is prompts
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, wanted)
        return cls(folder, tuple(layers), choice)

    def take(self, text: Generated) -> None:
        """Forget the states of a text that is not chosen, which would fill the memory. Raises BackendError if those of
        a chosen one are no finite numbers in 16 bits."""
        assert text.states is not None
        if self.choice.fits(len(text.job.prompt), len(text.states)):
            require_finite(text.states, self.layers, "a text that was being written")
        else:
            text.states = None

    def spilled(self) -> Spilled:
        return Spilled(self.folder)

    def __call__(self, path: Path, keys: Sequence[int], states: Spilled) -> None:
        """Write those of a shard that is there. keys: of its texts' jobs. states: of the chosen ones at least."""
        (shard,) = shards.read_shards([path], (*_COPIED, *_TOP))
        begins = shard["begins"]
        chosen = self.choice(shard)
        if not len(chosen):
            return
        meta = meta_path(self.folder, path)
        lengths = np.diff(begins)[chosen]
        shapes = [states.shapes[keys[text]] for text in chosen]
        assert [shape[0] for shape in shapes] == lengths.tolist(), "each chosen text has its states"
        with shards.written(states_path(meta)) as file:
            _, layers, width = shapes[0]
            _write_header(file, (int(lengths.sum()), layers, width))
            for text in chosen:
                file.write(states.read(keys[text]))
        rows = np.concatenate([[0], np.cumsum(begins[1:] - shard["answers"])])
        ends = np.concatenate([[0], np.cumsum(lengths)])
        arrays: dict[str, NDArray[Any]] = {
            "tokens": np.concatenate([shard["tokens"][begins[i] : begins[i + 1]] for i in chosen]),
            "begins": ends,
            "answers": ends[:-1] + (shard["answers"] - begins[:-1])[chosen],
            "texts": chosen,
        }
        arrays |= {name: np.concatenate([shard[name][rows[i] : rows[i + 1]] for i in chosen]) for name in _TOP}
        arrays |= {name: shard[name][chosen] for name in _COPIED}
        with shards.written(meta) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


class Spilled:
    """States of texts that were just written, in a file that is gone when it is closed: a shard's may be gigabytes."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - see __exit__
        self._begins: dict[int, int] = {}
        self.shapes: dict[int, tuple[int, int, int]] = {}
        """by the key of a text's job"""

    def __enter__(self) -> Spilled:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, text: Generated) -> None:
        """Take away the states of a text, if it has any."""
        if text.states is not None:
            self._begins[text.job.key] = self._file.tell()
            tokens, layers, width = text.states.shape
            self.shapes[text.job.key] = tokens, layers, width
            self._file.write(text.states.tobytes())
            text.states = None

    def read(self, key: int) -> bytes:
        self._file.seek(self._begins[key])
        return self._file.read(2 * prod(self.shapes[key]))


def meta_path(folder: Path, shard: Path) -> Path:
    return folder / f"meta-{shard.stem.removeprefix('shard-')}.npz"


def states_path(meta: Path) -> Path:
    return meta.with_name(f"states-{meta.stem.removeprefix('meta-')}.npy")


class _Plan:
    """What is left to do: which texts of which shards, and how much that is."""

    def __init__(self, paths: Sequence[Path], choice: Choice, vocab_size: int, out: Path) -> None:
        self.left: list[tuple[Path, NDArray[np.intp]]] = []
        self.rows = 0
        self.blocks = 1
        seen = 0
        for path in paths:
            (shard,) = shards.read_shards([path], ())
            shards.check_ids(shard, vocab_size)
            lengths = np.diff(shard["begins"])
            chosen = choice(shard)
            if choice.tokens is not None:
                chosen = chosen[seen + np.cumsum(lengths[chosen]) <= choice.tokens]
            rows = int(lengths[chosen].sum())
            seen += rows
            if not rows:
                continue
            if (kept := meta_path(out, path)).is_file():
                _require_same_texts(kept, shard)
                continue
            self.left.append((path, chosen))
            self.rows += rows
            self.blocks = max(
                self.blocks, *(sum(blocks_for(lengths[i]) for i in group) for group in _groups(lengths, chosen))
            )
        if not seen:
            allowed = f"at most {choice.longest} tokens, {choice.prompt_share:.0%} of them prompt"
            raise SettingError("no text of the corpus is short enough to be replayed", allowed=allowed)


def _require_same_texts(kept: Path, shard: dict[str, NDArray[Any]]) -> None:
    """Raises SettingError where what is there was made of another shard."""
    (old,) = shards.read_shards([kept], ("texts",))
    begins, texts = shard["begins"], old["texts"]
    same = len(texts) > 0 and int(texts.max()) < len(begins) - 1
    if same:
        read = np.concatenate([shard["tokens"][begins[i] : begins[i + 1]] for i in texts])
        same = np.array_equal(old["tokens"], read)
    if not same:
        raise SettingError(f"{kept} was made of another corpus", hint="name another folder, or delete it")


def _groups(lengths: NDArray[np.int64], chosen: NDArray[np.intp]) -> list[list[int]]:
    """Texts that are read together, of about ``_ROWS`` tokens in all: the longest first, each where there is room."""
    groups: list[tuple[int, list[int]]] = []
    for text in sorted((int(i) for i in chosen), key=lambda i: -lengths[i]):
        length = int(lengths[text])
        for place, (rows, group) in enumerate(groups):
            if rows + length <= _ROWS:
                group.append(text)
                groups[place] = rows + length, group
                break
        else:
            groups.append((length, [text]))
    return [group for _, group in groups]


def _replayed(
    reader: PagedTexts,
    shard: dict[str, NDArray[Any]],
    chosen: NDArray[np.intp],
    out: Path,
    path: Path,
    layers: Sequence[int],
) -> dict[str, NDArray[Any]]:
    """Write states and meta file of one shard, in this order; returns what is in the meta file."""
    meta = meta_path(out, path)
    lengths = np.diff(shard["begins"])
    groups = _groups(lengths, chosen)
    order = [text for group in groups for text in group]
    top_ids, top_logprobs = [], []
    with shards.written(states_path(meta)) if layers else nullcontext() as file:
        if file is not None:
            shape = (int(lengths[order].sum()), len(layers), reader.hidden_size)
            _write_header(file, shape)
        for group in groups:
            ids, logprobs, hidden = _read(reader, shard, group, layers, path)
            top_ids.append(ids)
            top_logprobs.append(logprobs)
            if file is not None:
                file.write(hidden.tobytes())
    begins = np.concatenate([[0], np.cumsum(lengths[order])])
    arrays: dict[str, NDArray[Any]] = {
        "tokens": np.concatenate([shard["tokens"][shard["begins"][i] : shard["begins"][i + 1]] for i in order]),
        "begins": begins,
        "answers": begins[:-1] + (shard["answers"] - shard["begins"][:-1])[order],
        "texts": np.array(order),
        "temperature": np.zeros(len(order), np.float16),
        "top_ids": np.concatenate(top_ids).astype(shard["tokens"].dtype),
        "top_logprobs": np.concatenate(top_logprobs),
    }
    arrays |= {name: shard[name][order] for name in _COPIED if name in shard}
    with shards.written(meta) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return arrays


def _write_header(file: BinaryIO, shape: tuple[int, int, int]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})


def _read(
    reader: PagedTexts, shard: dict[str, NDArray[Any]], group: Sequence[int], layers: Sequence[int], path: Path
) -> tuple[NDArray[np.int32], NDArray[np.float16], NDArray[np.float16]]:
    """One forward: best ids and log-probabilities before each answer token, and states of all tokens."""
    fed: list[Fed] = []
    rows, block, begin = [], 0, 0
    for text in group:
        first, answer, end = (int(shard[n][t]) for n, t in (("begins", text), ("answers", text), ("begins", text + 1)))
        fed.append(Fed(shard["tokens"][first:end], 0, block))
        rows.append(np.arange(begin + answer - first - 1, begin + end - first - 1))
        block += fed[-1].blocks
        begin += end - first
    read = reader.read(fed, np.concatenate(rows))
    hidden = np.empty((begin, 0, 0), np.float16)
    if layers:
        hidden = read.states()
        require_finite(hidden, layers, f"one of the texts {', '.join(map(str, group))} of {path.name}")
    with np.errstate(over="ignore"):
        logprobs = read.logprobs[:, :TOP].astype(np.float16)
    if not np.isfinite(logprobs[:, 0]).all():
        raise BackendError("the target's log-probabilities are no numbers", got=f"texts of {path.name}")
    return read.ids[:, :TOP].copy(), logprobs, hidden


def _check_same(out: Path, wanted: dict[str, Any]) -> None:
    """Raises SettingError if the folder holds states of something else."""
    made = read_manifest(out, MANIFEST)
    if made and same_weights(str(made.get("target")), wanted["target"]):
        wanted["target"] = made["target"]
    for name in ("target", "layers", "choice"):
        if made and made.get(name) != wanted[name]:
            what = f"the states in {out} were made with another {name}"
            hint = "use the same settings, or another folder"
            raise SettingError(what, got=wanted[name], allowed=made.get(name), hint=hint)
