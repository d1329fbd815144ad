"""What a model will take of a device, from its configuration alone. Pure; standard library only, no framework is imported."""
