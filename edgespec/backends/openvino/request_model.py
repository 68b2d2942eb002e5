"""A model that is one request of OpenVINO, whatever its graph: run it, now or beside other work."""

from __future__ import annotations

from contextlib import suppress

from edgespec.backends.engine_model import PaddedModel
from edgespec.backends.openvino.runtime import ov


class RequestModel(PaddedModel):
    """See ``protocols.Model``. Not thread-safe; one text at a time."""

    _request: ov.InferRequest

    def __del__(self) -> None:
        if getattr(self, "_pending", None) is not None:  # a forward runs, and reads arrays that are about to go
            with suppress(Exception):  # it failed: nobody is left to be told
                self._request.wait()

    def ready(self) -> bool:
        return bool(self._request.wait_for(0))

    def _infer(self) -> None:
        self._request.infer(share_outputs=True, decode_strings=False)  # else it copies all logits

    def _start(self) -> None:
        self._request.start_async()

    def _wait(self) -> None:
        self._request.wait()
