"""Faults that a check must catch, one subject a file. Those of live models run in a worker, which is given them by path."""
