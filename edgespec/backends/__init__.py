"""Models on an engine: one folder for each engine, and a fake for tests.

A new engine implements ``protocols.Model``, passes ``tests/test_contract*.py`` and is added in ``open.py``.
"""
