"""Models on this machine: loaded, measured, and the engine chosen by measuring."""
