"""Drafters: one file each.

A new one implements ``protocols.Drafter`` and is wired in ``loading.py``; see ``examples/own_drafter.py``.
"""
