"""Formats: how the blocks of each ggml type hold what a search found, one module for a type or its relatives.

A format has, in plain NumPy, over any number of blocks:

    unpack(blocks) -> fields      bytes to scales, minimums and codes
    pack(fields, blocks)          and back
    weights_of(fields)            what a reader makes of them, in the order of ggml's arithmetic

and its encoders, which name the searches (`ggplan.quants.searches`) that find fields for weights. The
layout of a block is told in the format's module and known nowhere else.
"""
