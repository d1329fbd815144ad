"""llama.cpp through llama-cpp-python, on GGUF files."""
