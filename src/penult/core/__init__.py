"""Core of penult, from text to vectors: load, tokenize, run. It does not import the interfaces that are built on it."""
