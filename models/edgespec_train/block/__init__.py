"""The block drafter: a block of tokens in one inference, from the target's hidden states (DFlash, DSpark).

data        texts with the target's hidden states, as batches of anchors
head        the model: a window of states, an anchor, a block of positions, a low-rank Markov head
warm_start  what least squares can set of it before training
losses      distance to the target's distribution
training    the task of the loop, judged by what rounds would accept of held-out text
graph       the whole draft as one graph of fixed shapes
recipe      all of it
"""
