"""What of a model is written: without its MTP blocks, with fewer layers or experts, fused or split tensors.

    model, imatrix ─► reshape ─► model, imatrix ─► rules, plan, conversion

Everything after it sees the new model alone, so a plan, its findings, sizes and checks agree. Nothing is
read but headers: rows are chosen and joined when they are read. The steps, in this order:

    mtp             keep, drop, or write alone the blocks that predict further tokens    blocks
    keep_experts    some experts of every layer, with their rows of the router            experts
    prune_layers    blocks taken out, the others numbered anew                            pruning
    fuse, split     gate and up, or q, k and v, as one tensor or as several               fusing

Numbers of layers and experts are always those of the model that was opened. What was done stands in
`Model.reshaped`, and in the keys of the output: `recorded_reshaping` reads it back, which is how a file is
made again.
"""

from ggplan.reshaping.steps import forms_of, reshape
from ggplan.reshaping.wishes import Form, Mtp, Reshaping, load_experts, recorded_reshaping

__all__ = ["Form", "Mtp", "Reshaping", "forms_of", "load_experts", "recorded_reshaping", "reshape"]
