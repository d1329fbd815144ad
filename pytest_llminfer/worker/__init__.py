"""The process that hosts one engine replica.

Imports the standard library, NumPy, the engine, ``spec``, ``errors``, ``printable``, ``checkpoints`` and itself.
"""
