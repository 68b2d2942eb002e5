"""How large a model is: bytes of its own files, as they are fetched or lie on this disk. One number for all lists.

What a model is converted to has another size, and so has a loaded one: its draft and its KV caches count there.
"""

from __future__ import annotations

from edgespec import cache
from edgespec.hub import catalog
from edgespec.hub import resolve as hub


def bytes_of(ref: str) -> int | None:
    """Of what a reference means, without the draft that it brings along. None: on the hub, and not fetched yet.

    A file that is known by its hash has the size that it has there, whether it is here or not.
    """
    if ref in catalog.shipped_names():
        [package] = catalog.packages()
        return package.wheel_bytes
    if (model := catalog.find(ref)) is not None and model.bytes is not None:
        return model.bytes
    if (wanted := hub.on_hub(ref)) is not None:
        return hub.fetched_bytes(wanted)
    path = hub.on_disk(ref)
    return None if path is None else cache.size_on_disk(path)
