"""What tests share: engines and servers to ask, faults to inject, and data to compare."""
