"""edgespec beside other runtimes: the same weights, prompts, token counts, threads and clock, each in its own process.

``entries`` says who runs, ``weights`` makes the weights in each one's format, ``worker`` and ``process`` are the two
ends of a contender's process, ``measure`` decides whose turn it is, ``summary`` counts and ``report`` writes it down.
A peer is imported inside the functions of its own adapter, in its own process, and nowhere else.
"""
