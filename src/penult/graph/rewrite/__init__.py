"""Change a graph: cut, append the reducer, free axes, fuse attention, clean up."""
