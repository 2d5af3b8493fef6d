"""ONNX graphs: find the hidden states, cut the graph there and append pooling.

A model is read once, and its weights stay in their files (`model_file`). All searches share one index (`find.graph_index`).
`find/` only reads the graph, `rewrite/` changes the loaded model in place and updates the index, `int8/` quantizes it.
This package is independent of tokenizers and sessions.
"""
