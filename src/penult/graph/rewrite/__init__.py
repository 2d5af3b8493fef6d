"""Graph rewriting: cut, append the reducer, make axes dynamic, fuse attention, prune."""
