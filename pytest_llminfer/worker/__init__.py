"""The process that hosts one engine replica. Imports the standard library, NumPy, the engine, ``spec``, ``errors`` and itself."""
