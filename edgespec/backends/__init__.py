"""Models on an engine: one folder each, and a fake for tests.

A new engine implements ``protocols.Model``, passes ``tests/test_contract.py`` and is opened in ``machine/loader.py``.
"""
