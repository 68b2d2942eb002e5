"""A simulator: how fast a pair would run on a named laptop chip, by which plan, before anybody has tried it."""
