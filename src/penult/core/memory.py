"""Compare the expected memory of a first load with the memory limit of this process, before the work begins.

When memory runs out, the kernel kills the process without an error message.
"""

import logging
import os
from pathlib import Path

from penult.core.control_group import MEMBERSHIP, MOUNT, group_folders

if os.name != "nt":
    import resource

_LOGGER = logging.getLogger(__name__)
_BASE = 120 * 10**6  # bytes of the interpreter and its libraries, including onnxruntime 1.32 and onnx 1.23


def check_memory(work: str, weights: int, times: float, advice: str, *, held: bool) -> None:
    """Warn before work that is expected to exceed the memory limit.

    Args:
        work: name of the work, as the subject of a sentence.
        weights: bytes of the weight files.
        times: peak memory as a multiple of `weights`; docs/cache.md has the measurements.
        advice: what to do, for the message.
        held: whether all weights are in memory that is not file-mapped.

    Raises:
        ValueError: `held`, and the weights alone exceed the memory limit.
    """
    limit = memory_limit()
    if limit is None or _BASE + times * weights <= limit:
        return
    sentence = f"{work} takes about {(_BASE + times * weights) / 1e9:.1f} GB of memory, but this process may use only "
    sentence += f"{limit / 1e9:.1f} GB. {advice}"
    if held and weights > limit:
        raise ValueError(sentence)
    _LOGGER.warning("%s", sentence)


def memory_limit(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int | None:
    """Return the memory limit of this process in bytes: of the machine, a control group or an rlimit; None if unknown."""
    limits = [limit for folder in group_folders("memory", membership, mount) if (limit := _limit_of(folder)) is not None]
    if os.name != "nt":
        limits += [soft for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA) if (soft := resource.getrlimit(kind)[0]) > 0]
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def _limit_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (folder / name).is_file():
            text = (folder / name).read_text().strip()
            return int(text) if text.isdecimal() else None
    return None
