"""Turn a transformers folder, a hub repository or a GGUF file into a bundle.

The only part of edgespec that needs torch, transformers, optimum-intel and nncf. It writes bundles and knows nothing
of the runtime but ``edgespec.bundle``, ``edgespec.manifest``, ``edgespec.text``, ``edgespec.gguf.convert`` and the
errors.

    settings  what to export and how, checked first
    sources   reference -> Source (a local folder or GGUF file, its revision and licence)
    texts     Source -> tokenizer.json, chat template, what ends a generation
    convert   Source -> torch model -> OpenVINO IR -> compressed weights
    forms     OpenVINO IR -> ONNX form, on request; of a finished bundle, too
    attach    a trained draft (``edgespec.draft_folder``) into a copy of a bundle
    parity    the IR's logits against the torch model's on real text
    build     the above in order
    staging   a temporary folder, renamed to the bundle at the end
    quiet     keeps the libraries off stdout
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from edgespec import draft_folder, telemetry
from edgespec.errors import ConversionError
from edgespec_export import forms, quiet, sources, staging
from edgespec_export.attach import attach_draft
from edgespec_export.forms import is_bundle
from edgespec_export.settings import Request, Weights, split_weights

telemetry.hide_openvino_telemetry()  # before nncf and the converter are imported

__all__ = ["Request", "Weights", "export", "is_bundle", "split_weights"]


def export(request: Request, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make the bundle and return its folder; ``say`` gets a line now and then.

    Whatever is raised (an EdgespecError for anything the user can cure), nothing is left behind and an existing
    bundle is untouched.
    """
    if request.draft is not None and draft_folder.is_one(Path(request.draft).expanduser()):
        staging.check_destination(request.out, force=request.force)
        return attach_draft(request, say)
    if request.format != "openvino" and is_bundle(request.target):
        staging.check_destination(request.out, force=request.force)
        return forms.export_forms(request, Path(request.target).expanduser(), say)
    references = [each for each in (request.target, request.draft) if each is not None]
    for reference in references:
        sources.require(reference)
    _check_installed()
    staging.check_destination(request.out, force=request.force)
    with TemporaryDirectory(prefix="edgespec-", ignore_cleanup_errors=True) as scratch:
        found = [
            sources.resolve(reference, Path(scratch), trust_remote_code=request.trust_remote_code)
            for reference in references
        ]
        with quiet.libraries(verbose=request.verbose):
            from edgespec_export.build import export_bundle

            return export_bundle(request, found, say)


def _check_installed() -> None:
    try:
        missing = [name for name in ("torch", "transformers", "optimum.intel", "nncf") if find_spec(name) is None]
    except (ModuleNotFoundError, ValueError) as error:  # the parent package is missing
        missing = [str(getattr(error, "name", None) or error)]
    if missing:
        raise ConversionError(
            f"exporting needs packages that are not installed: {', '.join(missing)}",
            hint='install them: pip install "edgespec[export]", or in a clone: pip install ".[export]"',
        )
