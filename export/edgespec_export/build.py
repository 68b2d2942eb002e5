"""Put a bundle together: read both sides, see that they fit, convert each, write the manifest."""

from __future__ import annotations

import contextlib
import gc
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgespec import bundle
from edgespec.manifest import Adaptive, adaptive_drafters
from edgespec.text.placeholder_ids import require_placeholders
from edgespec.text.vocabulary import Vocabulary, check_pair
from edgespec_export import convert, forms, parity, staging, texts
from edgespec_export.settings import Request, Weights
from edgespec_export.sources import Source
from edgespec_export.texts import Texts

Say = Callable[[str], None]
_PACKAGES = ("edgespec", "openvino", "optimum-intel", "nncf", "torch", "transformers", "tokenizers")
_SHARE = {"f32": 1.0, "f16": 0.5, "int8": 0.6, "int4": 0.6}
"""Size of the result over that of the checkpoint in memory, rounded up."""


@dataclass(frozen=True)
class _Part:
    """One side of the pair, read but not converted."""

    role: str
    source: Source
    texts: Texts
    config: Any
    weights: Weights
    trusted: bool

    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.texts.tokenizer, self.source.name, self.config.vocab_size)


def export_bundle(request: Request, found: list[Source], say: Say) -> Path:
    """Export ``found`` (target, then the draft if there is one) and return the bundle's folder.

    Raises ConversionError, IncompatiblePair, SettingError, BundleError.
    """
    say(f"reading {' and '.join(source.name for source in found)}")
    target, *drafts = [_read(request, source, role) for source, role in zip(found, ("target", "draft"), strict=False)]
    adaptive = _adaptive(request, target)
    notes: list[str] = []
    for draft in drafts:
        # A conversion takes minutes, so the vocabularies come first.
        notes += _pair_notes(target, draft)
    for note in notes:
        say(f"pair: {note}")
    with staging.staged(request.out, force=request.force) as folder:
        files, reports = {}, {}
        for part in (target, *drafts):
            entry, reports[part.role], more = _convert(part, folder, say)
            gc.collect()
            length = target.texts.generation.context_length
            files[part.role] = forms.add_form(folder, entry, part.role, request.format, length, say)
            notes += more
        provenance = bundle.Provenance(
            licence=target.source.licence,
            source=target.source.reference,
            revision=target.source.revision,
            command=request.command([source.reference for source in found]),
            versions=_versions(),
            notes="; ".join([*(_origin(draft.source) for draft in drafts), *notes]) or None,
        )
        tokenizer, template = _write_texts(folder, target.texts)
        manifest = bundle.Manifest(
            format=bundle.FORMAT,
            name=bundle.line(request.out.name),
            target=files["target"],
            drafters=(*(_drafter(target, draft, files["draft"]) for draft in drafts), *adaptive),
            tokenizer=tokenizer,
            chat_template=template,
            generation=target.texts.generation,
            provenance=provenance,
            measured={"parity": reports},
        )
        bundle.write(folder, manifest)
    return request.out


def _read(request: Request, source: Source, role: str) -> _Part:
    trusted = request.trust_remote_code
    config = convert.read_config(source, trust_remote_code=trusted)
    weights = request.weights if role == "target" else request.draft_weights or request.weights
    text = texts.read(source, trust_remote_code=trusted)
    return _Part(role, source, text, config, weights, trusted)


def _pair_notes(target: _Part, draft: _Part) -> list[str]:
    notes = list(check_pair(target.vocabulary(), draft.vocabulary()).notes)
    long, short = target.texts.generation.context_length, draft.texts.generation.context_length
    if short < long:
        notes.append(f"the draft's context is {short} tokens, the target's {long}")
    return notes


def _drafter(target: _Part, draft: _Part, model: bundle.ModelFile) -> bundle.Drafter:
    pairing = check_pair(target.vocabulary(), draft.vocabulary())
    length = draft.texts.generation.context_length
    return bundle.Drafter(
        name=bundle.line(draft.source.name),
        kind="small_model",
        model=model,
        context_length=length if length < target.texts.generation.context_length else None,
        blocked=tuple(sorted(index for index in pairing.blocked if index < target.config.vocab_size)),
    )


def _adaptive(request: Request, target: _Part) -> tuple[bundle.Drafter, ...]:
    """The drafters of a target that guesses at placeholders. Raises SettingError for ids that are none."""
    if request.adaptive_count is None:
        return ()
    ends = target.texts.generation.eos_token_ids
    require_placeholders(request.adaptive_tokens, request.adaptive_count, target.vocabulary(), ends=ends)
    return adaptive_drafters("adaptive", Adaptive(tokens=request.adaptive_tokens, count=request.adaptive_count))


def _convert(part: _Part, folder: Path, say: Say) -> tuple[bundle.ModelFile, dict[str, Any], list[str]]:
    """Convert one side into ``folder/role`` and hold it against torch: (manifest entry, figures, notes)."""
    role, weights, text = part.role, part.weights, part.texts
    say(f"{role}: loading {part.source.name}")
    model = convert.load(part.source, weights, part.config, trust_remote_code=part.trusted)
    staging.check_disk(folder, convert.parameter_bytes(model), _SHARE[weights.kind])
    expected = parity.reference(model, text.tokenizer, text.generation)
    xml = folder / role / bundle.IR_FILE
    say(f"{role}: converting to OpenVINO, weights {weights.kind}")
    with staging.scratch(folder) as temporary:
        raw = convert.export_ir(model, temporary, weights)
        del model
        gc.collect()
        used, note = convert.compress(raw, xml, weights)
        # The model maps the uncompressed file, which Windows will not delete while it is mapped.
        gc.collect()
        for name in ("config.json", "generation_config.json"):
            if (temporary / name).is_file():
                shutil.copyfile(temporary / name, xml.parent / name)
    logits = convert.check_ir(xml)
    measured = parity.compare(expected, xml)
    if note:
        say(f"{role}: {note}")
    say(f"{role}: {measured}")
    parity.judge(measured, weights)
    entry = bundle.model_file(folder, f"{role}/{bundle.IR_FILE}", precision=weights.kind, vocab_size=logits)
    return entry, measured.as_dict() | {"weights": asdict(used)}, [f"{role}: {note}"] if note else []


def _write_texts(folder: Path, text: Texts) -> tuple[bundle.HashedFile, bundle.HashedFile | None]:
    def put(name: str, content: str) -> bundle.HashedFile:
        # Bytes, so that Windows leaves line ends, and with them the hash, alone.
        (folder / name).write_bytes(content.encode("utf-8"))
        return bundle.HashedFile(file=name, sha256=bundle.sha256_of(folder / name))

    template = put("chat_template.jinja", text.chat_template) if text.chat_template is not None else None
    return put("tokenizer.json", text.tokenizer_json), template


def _origin(source: Source) -> str:
    said = [source.reference, *filter(None, [source.revision, source.licence and f"licence {source.licence}"])]
    return f"draft made from {', '.join(said)}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
