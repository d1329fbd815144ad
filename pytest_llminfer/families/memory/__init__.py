"""Memory: predicted and measured, by category."""
