"""The arbiter (arbiter.py) chooses drafter, draft length and width each round, from measured costs and outcomes."""
