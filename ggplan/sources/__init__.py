"""Readers of checkpoints: one module for each file format.

`gguf` opens GGUF files and split sets, `huggingface` folders of safetensors, `inventory` lists of names
and shapes without weights. They share three rules. Every length, offset and count in a file is a Python
integer and is checked against the file's size before it is used. Weights are read by position into
buffers, row by row, and files are never mapped into memory: if a mapped file shrinks, the process is killed,
but a short read is an error with the file's name. Text from a file is shown only with control characters
escaped. `schemes` joins weights that are stored in several tensors.
"""
