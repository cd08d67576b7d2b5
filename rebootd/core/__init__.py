"""The pure core: what rebootd decides, as functions of values.

Here live the words (model), the state table, the one deciding function, limits, windows,
selectors, policy, the wire structs and the error tree. Here never live: a clock, randomness,
logging, I/O, ``await``, or an import from another room of rebootd.
"""
