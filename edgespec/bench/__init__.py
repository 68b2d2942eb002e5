"""Measurements of the loop and its parts on this machine. Each module is one question."""
