"""The vLLM engine. Nothing here imports torch or vllm before a model is loaded."""
