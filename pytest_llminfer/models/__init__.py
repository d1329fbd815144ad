"""What is known about a model before it is loaded: its files, its shape, and the bundled ones."""
