"""What a worker and the pytest process agree on: frames, how errors are sent, and the names of shared memory. Standard library
only.
"""
