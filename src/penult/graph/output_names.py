"""Names of a prepared graph's outputs, for code that must not import onnx."""

VECTORS = "sentence_embedding"
"""(B, D), one vector per text."""

TOKENS = "token_embeddings"
"""(B, T, H), one vector per token; not in a graph that pools inside."""
