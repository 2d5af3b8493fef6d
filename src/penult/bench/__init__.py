"""Benchmarks: the same texts through penult and plain ONNX Runtime, interleaved, each in a process of its own.

`measure` runs them, `worker` is what runs in each process, `report` writes what came out. Other libraries are added by
tests/bench/peers.py.
"""
