"""The reasoning that some models write in front of an answer, between ``<think>`` and ``</think>``."""

from __future__ import annotations

from edgespec.text.tool_calls import held_back

BEGIN, END = "<think>", "</think>"


class ReasoningScanner:
    """Splits a text that comes in pieces. Only what the text begins with can be reasoning.

    inside: the prompt ends with the first tag already.

    >>> scan = ReasoningScanner()
    >>> scan.push("<think>Hm"), scan.push(".</thi"), scan.push("nk>\\n\\nYes")
    (('Hm', ''), ('.', ''), ('', 'Yes'))
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._held = ""
        self._is_inside = inside
        self._is_over = False
        self._has_answer = False

    def push(self, text: str) -> tuple[str, str]:
        """What is reasoning and what is answer in this piece, and in what was held back."""
        self._held += text
        if not self._is_inside and not self._is_over:
            start = self._held.lstrip()
            if BEGIN.startswith(start[: len(BEGIN)]) and len(start) < len(BEGIN):
                return "", ""
            self._is_inside = start.startswith(BEGIN)
            self._is_over = not self._is_inside
            self._held = start[len(BEGIN) :] if self._is_inside else self._held
            self._has_answer = self._is_over
        reasoning = ""
        if self._is_inside:
            reasoning, tag, after = self._held.partition(END)
            if not tag:
                size = held_back(reasoning, END)
                self._held = reasoning[len(reasoning) - size :]
                return reasoning[: len(reasoning) - size], ""
            self._held, self._is_inside, self._is_over = after, False, True
        answer, self._held = self._held, ""
        if not self._has_answer:  # blank lines between the two belong to neither
            answer = answer.lstrip()
            self._has_answer = bool(answer)
        return reasoning, answer

    def flush(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return (held, "") if self._is_inside else ("", held)


def is_open(prompt: str) -> bool:
    """Whether a prompt ends within reasoning, so that the answer begins there."""
    return prompt.rstrip().endswith(BEGIN)


def is_known_to(template: str) -> bool:
    """Whether a chat template is of a model that reasons: it has the tags, or a variable that asks for it."""
    return "think>" in template or "enable_thinking" in template or "reasoning_content" in template
