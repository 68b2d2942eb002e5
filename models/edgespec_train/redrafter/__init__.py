"""ReDrafter (arXiv 2403.09919): a recurrent head on the target's hidden states, trained on text the target wrote.

head        the head in torch
warm_start  its linear maps by least squares, before training
training    the look-ahead: batches, loss, judgement
graph       the whole draft in one graph, as a chain or with beams
recipe      all of it in order, in one folder
"""
