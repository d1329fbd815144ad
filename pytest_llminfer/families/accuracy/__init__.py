"""Accuracy: questions answered as right as in recorded runs."""
