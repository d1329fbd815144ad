"""What a session found, rendered."""
