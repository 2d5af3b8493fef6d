"""Benchmarks: the same texts through penult and its peers, interleaved, each in a process of its own.

`measure` runs them, `worker` is what runs in each process, `report` writes what came out.
"""
