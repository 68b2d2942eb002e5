"""The block drafter: a block of tokens in one forward, from the target's hidden states (DFlash, DSpark).

data        texts with the target's hidden states, as batches of anchors
head        the model: a window of states, an anchor token, masks, a low-rank Markov head
warm_start  what least squares can set of it before training
losses      cross-entropy and total variation against the target's distribution, by position
training    the loop: judged by what a round would accept on held-out text
pack        the whole draft as one graph of fixed shapes
stages      all of it, in one folder
"""
