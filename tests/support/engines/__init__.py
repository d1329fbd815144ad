"""Engines as tests start them: in this process, in a worker, or in an environment of their own."""
