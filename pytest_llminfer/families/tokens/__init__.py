"""Tokens: greedy decoding chooses what it chose."""
