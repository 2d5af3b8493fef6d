"""ONNX graphs: find the hidden states, and change the graph to end there and to pool.

A model is read once, and its weights stay in their files (`model_file`). `find.graph_index` is the one index of its graph.
`find/` only reads the graph, `rewrite/` changes the one loaded model in place and updates the index, `int8/` quantizes it.
Nothing here knows a tokenizer or a session.
"""
