"""This machine: its devices, the choice of the engine, and the costs of forwards, measured once and stored."""
