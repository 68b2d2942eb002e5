"""``/metrics`` for Prometheus: how fast answers were and what drafts were worth, also under llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgespec.server.residents import Residents
from edgespec.server.service import Ended
from edgespec.stats import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """Counts of one server."""

    def __init__(self, residents: Residents) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"edgespec_{name}", about, ("model", *labels), registry=registry)

        def times(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"edgespec_{name}_seconds", about, ("model",), registry=registry, buckets=buckets)

        self._requests = counter("requests", "Requests by how they ended", "kind", "outcome")
        self._ttft_s = times("ttft", "Time to the first text", _TTFT_S)
        self._tpot_s = times("tpot", "Time per output token after the first", _TPOT_S)
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._reused = counter("reused_tokens", "Those of them that a cache still held")
        self._generated = counter("generated_tokens", "Tokens of answers")
        self._proposed = counter("proposed_tokens", "Tokens that drafters proposed", "drafter")
        self._accepted = counter("accepted_tokens", "Those of them that the target agreed with", "drafter")
        self._at_position = counter("accepted_at_position", "Accepted tokens by place in their draft", "position")
        about = "Expected time per token without drafts, over the real one"
        self._speedup = Gauge("edgespec_speedup", about, ("model",), registry=registry)
        self._llama = _LlamaCpp(self.registry)
        self.registry.register(_Now(residents))

    def ended(self, ended: Ended) -> None:
        """Count a request."""
        outcome = (
            ended.result.finish_reason or "cancelled" if ended.result else (ended.why and ended.why.code) or "error"
        )
        self._requests.labels(ended.model, ended.request.kind, outcome).inc()
        if ended.result is None:
            return
        stats, model, tokens = ended.result.stats, ended.model, len(ended.result.token_ids)
        if ended.first_s is not None:
            self._ttft_s.labels(model).observe(ended.first_s)
        self._prompt.labels(model).inc(stats.prompt_tokens)
        self._reused.labels(model).inc(min(stats.reused_tokens, stats.prompt_tokens))
        self._generated.labels(model).inc(tokens)
        if (tpot_s := stats.tpot_s) is not None:
            self._tpot_s.labels(model).observe(tpot_s)
        if stats.decoded and stats.decode_s and (plain_s := ended.plain_s):
            self._speedup.labels(model).set(plain_s * stats.decoded / stats.decode_s)
        for name, rounds in stats.by_drafter.items():
            self._proposed.labels(model, name).inc(sum(r.proposed for r in rounds))
            self._accepted.labels(model, name).inc(sum(r.accepted for r in rounds))
        for position, count in enumerate(accepted_by_position(stats)):
            self._at_position.labels(model, position).inc(count)
        self._llama.count(stats, tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _LlamaCpp:
    """The names of llama.cpp's server, so that its dashboards show this one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"llamacpp:{name}", about, labels, registry=registry)

        self._prompt = counter("prompt_tokens", "Tokens of prompts that were read")
        self._prompt_s = counter("prompt_seconds", "Time to read them")
        self._predicted = counter("tokens_predicted", "Tokens of answers")
        self._predicted_s = counter("tokens_predicted_seconds", "Time to write them")
        self._decodes = counter("n_decode", "Forwards of the target")
        self._drafts = counter("spec_decode_num_drafts", "Drafts")
        self._proposed = counter("spec_decode_num_draft_tokens", "Tokens of drafts")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Those that were accepted")
        self._by_position = counter("spec_decode_num_accepted_tokens_per_pos", "By place in the draft", "position")

    def count(self, stats: Stats, tokens: int) -> None:
        self._prompt.inc(max(stats.prompt_tokens - stats.reused_tokens, 0))
        self._prompt_s.inc(stats.prefill_s)
        self._predicted.inc(tokens)
        self._predicted_s.inc(stats.decode_s)
        self._decodes.inc(len(stats.rounds))
        self._drafts.inc(sum(r.proposed > 0 for r in stats.rounds))
        self._proposed.inc(stats.proposed)
        self._accepted.inc(stats.accepted)
        for position, count in enumerate(accepted_by_position(stats)):
            self._by_position.labels(position).inc(count)


class _Now(Collector):
    """What is so at the moment it is asked for."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("edgespec_running_requests", "Requests that are answered", labels=["model"])
        waiting = GaugeMetricFamily("edgespec_waiting_requests", "Requests in the queue", labels=["model"])
        kv_bytes = GaugeMetricFamily("edgespec_kv_cache_bytes", "Memory of KV caches", labels=["model"])
        loaded = list(self._residents.loaded.values())
        for each in loaded:
            running.add_metric([each.offer.name], float(each.worker.running is not None))
            waiting.add_metric([each.offer.name], each.worker.waiting)
            if pipeline := each.pipeline:
                kv_bytes.add_metric([each.offer.name], pipeline.target.cache.nbytes)
        yield from (running, waiting, kv_bytes)
        yield GaugeMetricFamily(
            "edgespec_saved_sequences_bytes", "Memory of saved prefixes", value=self._residents.sequences.nbytes
        )
        yield GaugeMetricFamily(
            "llamacpp:requests_processing", "Requests that are answered",
            value=sum(each.worker.running is not None for each in loaded),
        )  # fmt: skip
        yield GaugeMetricFamily(
            "llamacpp:requests_deferred", "Requests in the queue", value=sum(each.worker.waiting for each in loaded)
        )


def accepted_by_position(stats: Stats) -> list[int]:
    """How many drafts had their first token accepted, their second, ..."""
    longest = max((r.accepted for r in stats.rounds), default=0)
    return [sum(r.accepted > position for r in stats.rounds) for position in range(longest)]
