"""``bench peers`` compares edgespec with other runtimes: same weights, prompts, token counts and threads.

Each runtime is a process of its own. ``entries`` lists the runtimes and ``weights`` converts the weights into their
formats. ``worker`` and ``process`` are the two ends of a runtime's process. ``measure`` decides the order of runs,
``summary`` computes medians, ``report`` writes the page. Only an adapter imports its peer, inside functions.
"""
