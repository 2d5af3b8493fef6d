"""Damage to a cached file by disks or users."""

import os
import shutil
from pathlib import Path

import numpy as np


def empty(path):
    path.write_bytes(b"")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x41
    path.write_bytes(data)


def flip_last(path):
    flip(path, 1.0)


def overwrite(path):
    """Write eight floats into the middle, and restore the times."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(max(0, status.st_size // 2 - 32))
        file.write(np.linspace(-3, 3, 8, dtype=np.float32).tobytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def make_folder(path):
    path.unlink()
    path.mkdir()


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def shut(path):
    """Replace a parent folder by a file."""
    folder = path.parent
    shutil.rmtree(folder)
    folder.write_bytes(b"")


DAMAGES = [empty, halve, flip, flip_last, overwrite, Path.unlink, make_folder, link_to_itself, shut]
