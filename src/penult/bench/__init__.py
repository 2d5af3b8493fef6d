"""Benchmarks of penult and plain ONNX Runtime on the same texts, interleaved, each in its own process.

`measure` runs them, `worker` runs in each process, `report` formats the results. tests/bench/peers.py adds other libraries.
"""
