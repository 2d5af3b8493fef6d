"""From text to vectors: load, tokenize, run. It imports none of the interfaces built on it."""
