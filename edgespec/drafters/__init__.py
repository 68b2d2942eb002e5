"""Drafters propose tokens. One file each.

A new drafter implements ``protocols.Drafter`` and is added in ``loading.py``. See ``examples/own_drafter.py``.
"""
