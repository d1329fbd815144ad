"""What an engine answers, as plain data: the input of every check. Standard library only.

Arrays are NumPy arrays where a field says so; NumPy itself is not imported, so that a session without an engine never pays.
"""
