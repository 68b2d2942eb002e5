"""``python -m edgespec``."""

from edgespec.cli import entry

entry()
