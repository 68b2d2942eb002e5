"""Keep the libraries to themselves: stdout belongs to the bundle's path.

nncf draws progress bars and logs on stdout, transformers and optimum warn about their own tracing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from functools import partialmethod
from importlib import import_module

_LOGGERS = ("transformers", "optimum", "nncf", "accelerate", "huggingface_hub", "openvino", "root")


@contextlib.contextmanager
def libraries(*, verbose: bool) -> Iterator[None]:
    """Import and run the heavy libraries inside this. With ``verbose`` their output goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr if verbose else io.StringIO()):
        if verbose:
            yield
            return
        with warnings.catch_warnings(), _levels(), _no_bars():
            warnings.simplefilter("ignore")
            yield


@contextlib.contextmanager
def _levels() -> Iterator[None]:
    # They set their own levels when first imported, so that comes first.
    for name in ("transformers", "nncf", "optimum.exporters.openvino"):
        with contextlib.suppress(ImportError):
            import_module(name)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    # Each library has its own switch for progress bars, and the GGUF reader none.
    from tqdm.std import tqdm

    original = tqdm.__init__
    tqdm.__init__ = partialmethod(original, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = original
