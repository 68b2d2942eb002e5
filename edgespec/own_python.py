"""Modules in processes of this Python that import nothing from the current folder.

``python -m`` looks there first: in a folder of somebody else's, a file of theirs named like a module would run.
Python 3.11 has -P against it, 3.10 has not.
"""

import sys

_RUN = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module(name: str) -> tuple[str, ...]:
    """The start of a command: what ``python -m name`` does, without the current folder."""
    return (sys.executable, "-c", _RUN, name)
