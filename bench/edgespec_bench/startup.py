"""From the shell to the first token, against the least the engine needs; and what ``import edgespec`` costs."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter

from edgespec.bench.report import paired_ratio, show
from edgespec.hub.resolve import model_path, resolve
from edgespec_bench.child import run_python

PROMPT = "What is the capital of France?"

_BARE = """
import sys
from pathlib import Path
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.settings import Settings
core = ov.Core()
model = OpenVINOPagedModel(core, Path(sys.argv[1]), "CPU", Settings.make("CPU", None), capacity=1024)
prompt = [int(t) for t in sys.argv[2].split(",")]
model.prefill(prompt[:-1])
print(model.forward(prompt[-1:]).logits[0].argmax())
"""


def bench_startup(ref: str, *, pairs: int = 5) -> None:
    """Interleaved processes: ``edgespec run`` for one token, and compile + prefill + one forward alone."""
    bundle = resolve(ref)
    xml = model_path(bundle, bundle.manifest.target)
    tokens = _prompt_tokens(ref)
    run_s, bare_s, import_s, python_s = [], [], [], []
    for round_ in range(pairs + 1):
        ran = _time(["-m", "edgespec", "run", PROMPT, "--model", ref, "--backend", "openvino", "-n", "1"])
        bare = _time(["-c", _BARE, str(Path(xml)), ",".join(map(str, tokens))])
        imported, nothing = _time(["-c", "import edgespec"]), _time(["-c", "pass"])
        if round_:
            run_s.append(ran)
            bare_s.append(bare)
            import_s.append(imported)
            python_s.append(nothing)
    import_ms = 1e3 * median(a - b for a, b in zip(import_s, python_s, strict=True))
    figures = {
        "first_token_over_bare": paired_ratio(run_s, bare_s),
        "run_s": median(run_s),
        "bare_s": median(bare_s),
        "import_ms": import_ms,
    }
    rows = [
        ("edgespec run, one token / bare compile + prefill", figures["first_token_over_bare"], "<= 1.3"),
        ("edgespec run, one token, s", figures["run_s"], ""),
        ("bare compile + prefill, s", figures["bare_s"], ""),
        ("import edgespec, ms", import_ms, "< 50"),
    ]
    show("startup", ["figure", "measured", "goal"], rows, figures | {"pairs": pairs})


def _prompt_tokens(ref: str) -> list[int]:
    from edgespec.text.chat_template import ChatTemplate
    from edgespec.text.tokenizer import Tokenizer

    bundle = resolve(ref)
    tokenizer = Tokenizer(bundle.hashed(bundle.manifest.tokenizer))
    source = bundle.chat_template()
    text = ChatTemplate(source).render([{"role": "user", "content": PROMPT}]) if source else PROMPT
    return tokenizer.encode(text)


def _time(arguments: list[str]) -> float:
    began = perf_counter()
    run_python(*arguments)
    return perf_counter() - began
