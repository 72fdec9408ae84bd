"""Compute buffers, by building the engine's graph of one micro-batch and running its allocator on it.

maker, attention, sparse, experts, recurrent      pieces of a graph
families                                          how an architecture puts them together
tensors    ─► schedule    ─► allocate             order, devices and copies, places in a buffer
compute                                           all of it
"""
