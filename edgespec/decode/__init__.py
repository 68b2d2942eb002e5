"""The loop (speculative.py), plain decoding as its oracle (autoregressive.py), verification, constraints, policies."""
