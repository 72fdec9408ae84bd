"""Does it fit, how fast is it, how is it started: a model on a machine.

    header + settings   ─► reckoning    what an engine allocates on each device, to the byte (`reckoning.py`)
    header + machine    ─► placement    which settings to use: what goes where, and seconds per token
    placement           ─► command      the line that starts it that way, and what each flag does

A `Header` is what a GGUF file says before its data; a plan has one before the file exists. `Settings` are
the engine's own options, whether ggplan chose them or a command line states them. A `Machine` is memory,
bandwidth and cores, with where each number comes from. An engine's own rules (how it counts, pads, splits)
are those of one build, its profile.
"""
