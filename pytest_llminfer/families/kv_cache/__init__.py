"""The KV cache: its shape, bytes and contents."""
