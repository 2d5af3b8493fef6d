"""ONNX graphs: find the hidden states, and change the graph to end there and to pool.

A model is read once, and its weights stay in their files (`model_file`). `find.graph_index` is the one index of its graph. What
is in `find/` looks, what is in `rewrite/` changes the one loaded model in place and tells the index, what is in `int8/` makes
its 8-bit form. Nothing here knows a tokenizer or a session.
"""
