"""This machine: its devices, which engine is chosen, and what forwards cost here, measured once and stored."""
