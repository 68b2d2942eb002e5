"""SDSAT (arXiv 2403.18647): adaptive tokens, behind which the target itself drafts.

    placeholders  their embeddings, and low-rank adapters that act on their rows only
    places        where the placeholders of a training batch stand
    task          how they learn behind a frozen target, and what they are worth
    graph         adds them to the target's own graph, whose other rows stay bit for bit the same
    rows          which row of the graph's products is which of the trained ones
    check         proof that it does
    recipe        corpus, training and bundle in one folder

The paper trains the whole target. Here its weights are frozen, so that its texts stay what they were.
"""
