"""What a context keeps of the tokens before: KV caches and recurrent state, by the kind of memory.

    attention.py     keys and values of every block; K alone with latent attention (MLA)
    window.py        blocks that slide keep a window, the others everything
    recurrent.py     blocks that keep a state of one size, alone or between blocks of attention
    indexed.py       a sparse indexer's keys beside the cache: DSA, MSA, and hybrids with an indexer
    compressed.py    DeepSeek-V4: a window, and compressed keys at two ratios
    classes.py       which architecture has which

Each kind is a function from dimensions and holding to the tensors that are allocated; where they go is the
device of their block.
"""
