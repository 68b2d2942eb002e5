"""llama.cpp's own server, in this process, on the GGUF file: alone, with an n-gram mode, or with a draft model.

The wheel ``xllamacpp`` holds it, so nothing is compiled. Its wheels for Linux and Windows use AVX2, not AVX-512. The
server's native route is asked over the loopback, since only it returns token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from edgespec_bench.peers.base import Filled, Run, WeightFormats, package_versions


class Peer:
    """Modes: "plain", "draft", and llama.cpp's names: "ngram-mod", "ngram-simple" and so on."""

    settings = "one slot, its own prefix match"

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(weight_formats.need("gguf"))
        params.n_ctx = weight_formats.rows
        params.n_parallel = 1
        params.cache_ram_mib = 0  # one slot holds one conversation; copies of old ones would count as memory
        params.port = 0  # a free one
        params.verbosity = -1
        speculative = params.speculative
        for cpu in (params.cpuparams, params.cpuparams_batch, speculative.draft.cpuparams):
            cpu.n_threads = threads
        speculative.draft.cpuparams_batch.n_threads = threads
        if mode != "plain":
            kind = "draft-simple" if mode == "draft" else mode
            name = f"COMMON_SPECULATIVE_TYPE_{kind.upper().replace('-', '_')}"
            speculative.types = [getattr(xllamacpp.common_speculative_type, name)]
            self.settings += f", its defaults for {kind}"
        if mode == "draft":
            speculative.draft.mparams.path = str(weight_formats.need("gguf_draft"))
        self._speculative = mode != "plain"
        self._server = xllamacpp.Server(params)
        self._address = urlsplit(self._server.listening_address).netloc

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        began = perf_counter()
        tokens: list[int] = []
        at_s: list[float] = []
        last: dict[str, Any] = {}
        for event in self._events(prompt, new_tokens):
            now_s = perf_counter() - began
            if "error" in event:
                raise RuntimeError(event["error"].get("message", event["error"]))
            tokens += event["tokens"]
            at_s += [now_s] * len(event["tokens"])
            last = event
        timings = last["timings"]
        counted: dict[str, Any] = {"forwards": new_tokens - 1, "reused": timings["cache_n"]}
        if self._speculative:
            accepted = timings.get("draft_n_accepted", 0)
            counted |= {
                "proposed": timings.get("draft_n", 0),
                "accepted": accepted,
                "forwards": new_tokens - 1 - accepted,
            }
        return Run(tokens, at_s, **counted)

    def infill(self, prefix: str, typed: str, suffix: str, new_tokens: int) -> Filled:
        body = {
            "input_prefix": prefix,
            "prompt": typed,
            "input_suffix": suffix,
            "n_predict": new_tokens,
            "samplers": ["top_k"],
            "top_k": 1,
            "cache_prompt": True,
        }
        [answer] = self._ask("/infill", body)
        if "error" in answer:
            raise RuntimeError(answer["error"].get("message", answer["error"]))
        timings = answer["timings"]
        seconds = timings["predicted_ms"] / 1e3
        return Filled(answer["content"], timings["predicted_n"], seconds, answer["tokens_evaluated"])

    def versions(self) -> dict[str, str]:
        return package_versions("xllamacpp")

    def _events(self, prompt: Sequence[int], new_tokens: int) -> Iterator[dict[str, Any]]:
        """The objects of a streamed answer, each as it comes."""
        body = {
            "prompt": list(prompt),
            "n_predict": new_tokens,
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": True,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": True,
        }
        return self._ask("/completion", body)

    def _ask(self, route: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        connection = HTTPConnection(self._address)
        try:
            connection.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))
                elif line.startswith(b"{"):  # a refusal is no stream
                    yield json.loads(line)
        finally:
            connection.close()
