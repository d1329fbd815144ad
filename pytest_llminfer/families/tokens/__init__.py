"""Tokens: greedy decoding chooses the same tokens as before."""
