"""The laboratory: measurements for whoever changes the code. The runtime does not import it."""
