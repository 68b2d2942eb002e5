"""Who drafts, how far and how wide: decided every round from measured costs and outcomes."""
