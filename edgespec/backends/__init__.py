"""Models on an engine: one folder each, and a fake for tests.

A new engine implements ``protocols.Model``, gets a line in ``open.py`` and passes ``tests/test_contract.py``.
"""
