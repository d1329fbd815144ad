"""How long a step takes: what an accelerator's trace says, and frozen steps to measure the host by."""
