"""What a model takes of a device and how its tensors are stored, from its configuration alone. Pure; no framework is imported."""
