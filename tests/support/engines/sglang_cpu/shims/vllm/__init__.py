"""Not vLLM: the one name of it that SGLang imports on a CPU and never calls."""
