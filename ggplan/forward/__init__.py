"""A checkpoint run by transformers' own modules, one layer in memory at a time.

`checkpoint_model` builds the model without weights and fills one layer after the other from ggplan's row
sources; `matrices` finds which weights of a module are which of a GGUF tensor; `products` sees the inputs of
the matrices while a layer runs; `hidden` keeps what goes from layer to layer on the disk.
"""
