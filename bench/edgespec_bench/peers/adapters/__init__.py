"""One file for each runtime; imported in that runtime's own process only."""
