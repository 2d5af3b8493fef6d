"""Count the threads this process may use: CPU affinity, physical cores and the quota of its control group."""

import os
from collections.abc import Iterable
from pathlib import Path

from penult.core.control_group import MEMBERSHIP, MOUNT, group_folders


def default_threads() -> int:
    """Return the number of threads this process may use, at least 1.

    This is the minimum of the physical cores, the CPUs of the affinity mask and the quota of the control group; the environment
    variable PENULT_THREADS overrides it.

    Raises:
        ValueError: PENULT_THREADS is not a positive integer.
    """
    if setting := os.environ.get("PENULT_THREADS"):
        if not setting.isdecimal() or int(setting) < 1:
            raise ValueError(f"PENULT_THREADS is {setting!r}; it must be an integer of at least 1.")
        return int(setting)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return max(1, min(_physical_cores(cpus), _quota(MEMBERSHIP, MOUNT)))


def _physical_cores(cpus: Iterable[int]) -> int:
    """Return the number of physical cores of these CPUs; hyperthreads of one core count once."""
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return len(cores)


def _quota(membership: Path, mount: Path) -> int:
    """Return the CPU quota of the control group and of all its parents (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), in whole CPUs."""
    quotas = [os.cpu_count() or 1]
    for folder in group_folders("cpu", membership, mount):
        quotas.extend(_quota_of(folder))
    return max(1, min(quotas))


def _quota_of(folder: Path) -> list[int]:
    if (folder / "cpu.max").is_file():
        quota, period = (folder / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) // int(period)]
    if (folder / "cpu.cfs_quota_us").is_file():
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [] if int(quota) < 0 else [int(quota) // int(period)]
    return []
