"""An engine that repeats its prompts."""
