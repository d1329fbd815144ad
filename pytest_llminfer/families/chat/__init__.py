"""Chat: templates and token ids of conversations."""
