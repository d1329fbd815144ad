"""The Hugging Face transformers engine. Nothing here imports torch or transformers before a model is loaded."""
