"""Readers of checkpoints: one module for each kind of file, which knows that format and nothing else.

`gguf` opens GGUF files and split sets, `huggingface` folders of safetensors, `inventory` lists of names
and shapes without weights. They share three rules. Every length, offset and count of a file is a Python
integer and is checked against the file's size before it is used. Weights are read by position into
buffers, row by row, never by mapping the file into memory: a file that shrinks under a mapping kills
the process, a short read is an error with a name. And what a file says is shown only with its control
characters escaped. `schemes` puts together what is stored in several tensors.
"""
