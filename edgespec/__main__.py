"""``python -m edgespec``."""

from edgespec.start import entry

entry()
