"""Changes to ONNX graphs, ModelProto in and ModelProto out: find the hidden states, cut, append the reducer.

Nothing here touches a disk, a session or a tokenizer, and no argument is ever changed.
"""
