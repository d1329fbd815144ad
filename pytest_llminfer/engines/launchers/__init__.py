"""Where a worker is started: one strategy a file, all with the same pipes."""
