"""A checkpoint run by transformers' own modules, one layer in memory at a time.

`building` builds the model without weights, `checkpoint_model` fills one layer after the other from ggplan's
row sources; `matrices` finds which weights of a module are which of a GGUF tensor; `products` sees the inputs
of the matrices while a layer runs, and `structure` finds which matrices share one; `running` keeps what goes
from layer to layer on the disk.
"""
