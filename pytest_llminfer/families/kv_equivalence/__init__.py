"""KV equivalence: every way through a KV cache gives what prefill gives."""
