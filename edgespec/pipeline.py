"""Text in, text out: a tokenizer, a target, a drafter and the loop, wired together."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, TypedDict, cast

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.arguments import require_bias, require_given, require_layers, require_options
from edgespec.bundle import Bundle
from edgespec.cancelling import stopping, until_cancelled
from edgespec.decode.logprobs import Logprobs
from edgespec.decode.overlapped import MOST, overlapped
from edgespec.decode.policy import FixedLength, Heuristic
from edgespec.decode.speculative import speculative
from edgespec.drafters.none import NoDrafter
from edgespec.errors import SettingError, shown
from edgespec.filling import Filling, reading_as
from edgespec.generation import Generation, Stream
from edgespec.protocols import Constraint, Drafter, Model, Policy, Progress, StepwiseDrafter
from edgespec.sampling_params import SamplingParams, require_length, require_matching, require_whole
from edgespec.stats import Stats
from edgespec.text.chat_template import ChatTemplate, Message
from edgespec.text.hole_end import HoleEnd
from edgespec.text.infill import DEFAULT_HOLE_PROMPT as DEFAULT_HOLE_PROMPT
from edgespec.text.infill import DEFAULT_HOLE_TOKENS as DEFAULT_HOLE_TOKENS
from edgespec.text.infill import InfillPrompt
from edgespec.text.pieces import pieces, stop_strings
from edgespec.text.prompts import Prompts, no_prompt
from edgespec.text.response_format import Grammars, grammar_of
from edgespec.text.token_boundary import BeginsWith
from edgespec.text.tokenizer import StopStrings, Tokenizer
from edgespec.turn import Turn
from edgespec.types import Schedule

DEFAULT_NEW_TOKENS = 512


class _LoopOptions(TypedDict):
    """What both schedules take."""

    stop: frozenset[int]
    budget: int
    stats: Stats
    progress: Progress | None
    constraint: Constraint | None
    logprobs: Logprobs | None


class Pipeline(Filling):
    """A loaded pair. It writes one text at a time, and the next text reuses the rows that are still in the caches.

    Any thread may call it. Other threads wait for their turn (see ``turn.Turn``).

    drafter: all drafters of the pair as one, for a fixed number of tokens per round. None: plain decoding.
    arbiter: decides between the same drafters if no number is fixed. Without an arbiter, a rule of thumb decides.
    target_s: the cost of a forward of the target, if it was measured.
    beside: the draft model, if the schedule is overlapped: it drafts while the target verifies. gives_way: nobody asked
    for this schedule, so a text that it cannot write is written synchronously. longest: context that a load can
    give the target, if it has less.
    """

    def __init__(
        self,
        bundle: Bundle,
        target: Model,
        drafter: Drafter | None,
        *,
        arbiter: Arbiter | None = None,
        target_s: ForwardCost | None = None,
        num_draft_tokens: int | None = None,
        devices: dict[str, str] | None = None,
        beside: StepwiseDrafter | None = None,
        gives_way: bool = False,
        longest: int = 0,
    ) -> None:
        generation = bundle.manifest.generation
        self.bundle = bundle
        self.target = target
        self.drafter: Drafter = drafter or NoDrafter()
        self.arbiter = arbiter
        self.target_s = target_s
        self._beside = beside
        self._gives_way = gives_way
        self.num_draft_tokens = num_draft_tokens
        self.longest = longest
        self.devices = devices or {"target": target.capabilities.device}
        self._turn = Turn()
        self._grammars: Grammars | None = None
        self.stop_ids = frozenset(generation.eos_token_ids)
        source = bundle.chat_template()
        self.tokenizer = Tokenizer(
            bundle.hashed(bundle.manifest.tokenizer),
            bos_token=generation.bos_token,
            add_bos=generation.add_bos,
            template=source or "",
            end_ids=generation.eos_token_ids,
        )
        self.template = (
            ChatTemplate(source, bos_token=generation.bos_token, eos_token=generation.eos_token) if source else None
        )
        self._prompts = Prompts(bundle.name, self.tokenizer, self.template, target, longest)
        self.require_k(num_draft_tokens)

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Generation:
        """Like ``stream``, but returns the whole generation."""
        require_options("generate", options, Pipeline.stream, Pipeline.stream_tokens)
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.result

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        system: str | None = None,
        raw: bool = False,
        allow_special: bool = False,
        **options: Any,
    ) -> Stream:
        """Answer a prompt as a user's message. With ``raw``, or without a chat template, continue it as plain text.

        A sequence of token ids is used as it is. Control tokens that a raw text spells become tokens. allow_special:
        see ``stream_chat``. Other options: see ``stream_tokens``.
        """
        require_options("stream", options, Pipeline.stream_tokens)
        if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Iterable):
            raise no_prompt(prompt)
        if not isinstance(prompt, str):
            if system is not None:
                raise SettingError("a system prompt needs a prompt that is a text", got="token ids", setting="system")
            return self.stream_tokens(list(prompt), **options)
        if not prompt.strip() and not (raw and prompt):
            raise SettingError("prompt is empty", hint='give a text: edgespec "What is the capital of France?"')
        if raw or self.template is None:
            if system is not None:
                raise SettingError(
                    "a system prompt needs a chat template", hint="put it into the prompt", setting="system"
                )
            return self.stream_tokens(self.text_tokens(prompt), **options)
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages = [*messages, {"role": "user", "content": prompt}]
        return self.stream_chat(messages, allow_special=allow_special, **options)

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """Answer a conversation; each message is ``{"role": ..., "content": ...}`` (see ``text.messages``)."""
        require_options("chat", options, Pipeline.stream_chat, Pipeline.stream_tokens)
        stream = self.stream_chat(messages, **options)
        for _ in stream:
            pass
        return stream.result

    def stream_chat(self, messages: Sequence[Message], *, allow_special: bool = False, **options: Any) -> Stream:
        """Like ``chat``, but streams the answer. Raises SettingError for a model without a chat template.

        allow_special: content that spells a control token, like ``<|im_end|>``, becomes that token. Otherwise it stays
            text.
        """
        require_options("stream_chat", options, Pipeline.stream_tokens)
        return self.stream_tokens(self.chat_tokens(messages, allow_special=allow_special), **options)

    def chat_tokens(
        self, messages: Sequence[Message], *, allow_special: bool = False, begun: str = "", **variables: Any
    ) -> list[int]:
        """The prompt of a conversation. Loads nothing and computes nothing on an engine.

        begun: how the answer begins; the model goes on behind it. variables: of the template, such as ``tools``.
        """
        return self._prompts.of_chat(messages, allow_special=allow_special, begun=begun, variables=variables)

    def text_tokens(self, text: str) -> list[int]:
        """The prompt of a plain text. Control tokens that it spells become tokens."""
        return self._prompts.of_text(text)

    def stream_tokens(
        self,
        prompt: list[int],
        *,
        max_new_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: str | Sequence[str] | None = (),
        ignore_eos: bool = False,
        response_format: Mapping[str, Any] | None = None,
        num_draft_tokens: int | None = None,
        drafter: Drafter | None = None,
        policy: Policy | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        wait: bool = True,
        hole: InfillPrompt | None = None,
        logprobs: int | None = None,
    ) -> Stream:
        """Continue a prompt of token ids.

        max_new_tokens: most tokens of the text. None: 512, or with a response_format as many as the context has room
            for, since the beginning of a JSON object is of no use.
        stop: a string that ends the text, or several. One that spells a control token ends the text at that token.
        ignore_eos: go on after the model's own end.
        response_format: what the text must be (see ``text.response_format.grammar_of``). It is complete if
            finish_reason is "stop" and no stop string was found. "length": max_new_tokens or the context cut it short.
        num_draft_tokens: k of every round, or the most where schedules overlap. None: the pipeline's own, or by costs.
        drafter: used instead of the pipeline's own. policy: instead of both. With either, the schedule is synchronous.
        progress: called during the prefill.
        cancelled: asked after each chunk of the prompt and each round, on the thread that reads the stream. True ends
            the text there: finish_reason stays None, and the caches keep what was computed.
        wait: for the text of another thread. If False, SettingError is raised when the first piece is asked for.
        hole: what ``prompt`` was made of, if it is the prompt of a hole: see ``stream_infill``.
        logprobs: keep the log probability of each token, and so many alternatives (see ``decode.logprobs``).
        """
        require_given(sampling, drafter, policy, progress, cancelled)
        budget, kept = self._budget(max_new_tokens, response_format), self._logprobs(logprobs)
        prompt, k = self.require_prompt(prompt), self._k(num_draft_tokens)
        params = _drawn(sampling or SamplingParams())
        require_bias(params, self.target.vocab_size)
        proposes = self._drafts_beside(drafter, policy, k, params) or policy or self._policy(drafter, k)
        result = self._result(proposes.name, params)
        result.max_new_tokens = budget
        began, end = result.stats.clock(), self._end(stop, hole, result.stats)
        options: _LoopOptions = {
            "stop": frozenset(end.tokens) if ignore_eos else self.stop_ids | end.tokens.keys(),
            "budget": budget,
            "stats": result.stats,
            "progress": stopping(progress, cancelled),
            "constraint": self._constraint(response_format, hole, ignore_eos),
            "logprobs": kept,
        }
        lists = self._lists(prompt, params, proposes, k, options)
        if hole is not None:
            lists = reading_as(drafter or self.drafter, hole, lists)
        own_ends: frozenset[int] = frozenset() if ignore_eos else self.stop_ids
        queue = None if kept is None else kept.queue
        texts = pieces(
            lists, self.tokenizer, end, result, end_ids=own_ends, began=began, cancelled=cancelled, logprobs=queue
        )
        return Stream(self._turn.run(until_cancelled(texts), wait=wait), result)

    def _budget(self, max_new_tokens: int | None, response_format: Mapping[str, Any] | None) -> int:
        """Most tokens of a text. Raises SettingError."""
        if max_new_tokens is None:
            max_new_tokens = DEFAULT_NEW_TOKENS if response_format is None else self.target.cache.capacity
        return require_length(max_new_tokens)

    def _logprobs(self, top: int | None) -> Logprobs | None:
        """What keeps them, if they are asked for. Raises SettingError."""
        if top is None:
            return None
        return Logprobs(require_whole("logprobs", top, 0, self.target.vocab_size))

    def _k(self, num_draft_tokens: int | None) -> int | None:
        """Of a text: its own, or the pipeline's. Raises SettingError."""
        k = num_draft_tokens if num_draft_tokens is not None else self.num_draft_tokens
        self.require_k(k)
        return k

    def _end(self, stop: str | Sequence[str] | None, hole: InfillPrompt | None, stats: Stats) -> StopStrings:
        """Where a text ends, besides the model's own end. Raises SettingError."""
        if not isinstance(hole, InfillPrompt | None):
            raise SettingError("hole", got=shown(hole), allowed="what infill_prompt gives, or None", setting="hole")
        stops = (*stop_strings(stop), *(hole.stops if hole is not None else ()))
        tokens = self.tokenizer.stop_tokens(stops)
        if hole is None:
            return StopStrings(stops, tokens)
        return HoleEnd(stops, tokens, hole.rules, stats.clock, skip=hole.typed_again)

    def _lists(
        self,
        prompt: list[int],
        params: SamplingParams,
        proposes: StepwiseDrafter | Policy,
        k: int | None,
        options: _LoopOptions,
    ) -> Iterator[list[int]]:
        """The tokens of each round. proposes: a policy, or the draft model of the overlapped schedule."""
        if self._beside is not None and proposes is self._beside:
            most = MOST if k is None else k
            return overlapped(self.target, self._beside, prompt, params, most=most, widths=self.target_s, **options)
        return speculative(self.target, cast("Policy", proposes), prompt, params, **options)

    def read(self, prompt: Sequence[int], *, cancelled: Callable[[], bool] | None = None) -> Generation:
        """Read a prompt of token ids ahead, so that a text behind it starts at once. The generation has no text."""
        tokens = self.require_prompt(prompt)
        result = self._result(NoDrafter.name, SamplingParams())

        def steps() -> Generator[str, None, None]:
            stats = result.stats
            began, stats.prompt_tokens = stats.clock(), len(tokens)
            stats.reused_tokens = self.target.prefill(
                tokens[:-1], progress=stopping(None, cancelled), observe=self.drafter.observe
            )
            stats.prefill_s = stats.clock() - began
            result.finish_reason = "length"
            yield ""

        for _ in self._turn.run(until_cancelled(steps())):
            pass
        return result

    def require_prompt(self, prompt: Sequence[int]) -> list[int]:
        """The ids of a prompt as plain numbers. Raises SettingError, and ContextFull for one that is too long."""
        return self._prompts.checked(prompt)

    def require_k(self, k: int | None) -> None:
        """Raises SettingError for a number of draft tokens that the target cannot verify."""
        if k is not None:
            widest = self.target.capabilities.max_width - 1
            require_whole("num_draft_tokens", k, 0, widest, what="number of draft tokens")

    def _result(self, drafter: str, params: SamplingParams) -> Generation:
        """An empty one, to be filled."""
        return Generation(
            model=self.bundle.name,
            drafter=drafter,
            numerics=self.target.capabilities.numerics,
            compute_precision=self.target.capabilities.compute_precision,
            devices=self.devices,
            backend=self.target.capabilities.backend,
            verification=None if params.greedy else params.verification,
            seed=params.seed,
        )

    def fixed_length(self, k: int) -> FixedLength:
        """A policy that drafts k tokens every round, with all drafters of this pipeline."""
        return FixedLength(self.drafter, k, self.target_s)

    def _drafts_beside(
        self, drafter: Drafter | None, policy: Policy | None, k: int | None, params: SamplingParams
    ) -> StepwiseDrafter | None:
        """The draft model that drafts while the target verifies, if the overlapped schedule writes this text."""
        if self._beside is None or drafter is not None or policy is not None or k == 0:
            return None
        if params.rejects and self._gives_way:
            return None
        require_matching(params)
        return self._beside

    def _policy(self, drafter: Drafter | None, k: int | None) -> Policy:
        """The policy for the given drafter, or for all drafters of this pipeline."""
        require_layers(drafter or self.drafter, self.target.capabilities.hidden)
        if k is not None:
            return FixedLength(drafter, k) if drafter else self.fixed_length(k)
        if drafter is None and self.arbiter is not None:
            return self.arbiter
        return Heuristic(drafter or self.drafter)

    def forget(self) -> None:
        """All drafters lose what they keep of earlier texts. A bench that repeats a text must not find it there."""
        self.drafter.reset()
        if self.arbiter is not None:  # it has drafters that a fixed number of tokens has not
            self.arbiter.reset()

    @property
    def schedule(self) -> Schedule:
        return "synchronous" if self._beside is None else "overlapped"

    @property
    def drafter_names(self) -> str:
        """Of those that take turns where nobody names a number of draft tokens."""
        return self.arbiter.name if self.arbiter is not None and self.num_draft_tokens is None else self.drafter.name

    @property
    def draft_model(self) -> Model | None:
        """The draft model, if there is one."""
        return self.drafter.model

    def expected_plain_s(self, stats: Stats) -> float | None:
        """Expected seconds per token without drafts, in such a run. None if costs were not measured."""
        if self.target_s is None or not stats.rounds:
            return None
        half = stats.prompt_tokens + stats.committed // 2
        # What was learned follows a machine that is busy now slowly: the run itself says how slow it was. Not beside a
        # draft, which a plain step has not.
        slower = self.target_s.slower(stats) if stats.schedule == "synchronous" else 1.0
        return slower * self.target_s.seconds(1, half) + median(round_.host_s for round_ in stats.rounds)

    def _constraint(
        self, response_format: Mapping[str, Any] | None, hole: InfillPrompt | None, ignore_eos: bool
    ) -> Constraint | None:
        """A fresh constraint for one generation."""
        grammar = grammar_of(response_format, ignore_eos=ignore_eos)
        if hole is not None and hole.again:
            return BeginsWith(hole.again, self._infilling.spellings(self.target.vocab_size))
        if grammar is None:
            return None
        if self._grammars is None:
            self._grammars = Grammars(self.tokenizer, self.target.vocab_size, self.stop_ids)
        return self._grammars.constraint(grammar)


def _drawn(params: SamplingParams) -> SamplingParams:
    """With a seed, if tokens are drawn and nobody gave one."""
    return params if params.greedy else params.seeded(secrets.randbits(63))
