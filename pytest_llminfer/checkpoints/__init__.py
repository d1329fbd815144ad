"""What lies on disk: safetensors, GGUF, quantization configurations. Standard library only, for workers too."""
