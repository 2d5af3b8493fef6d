"""Control groups (cgroups) of this process: the folders with the limits that Linux sets for a container or service."""

from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def group_folders(controller: str, membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> Iterator[Path]:
    """Yield the folder of this process's group and those of all its parents, of version 2 and of a controller of version 1.

    Args:
        controller: name of the version 1 controller, such as "cpu" or "memory".
        membership: the kernel's list of this process's groups.
        mount: mount point of the cgroup file systems.
    """
    lines = membership.read_text().splitlines() if membership.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        own = controller in controllers.split(",")
        for root in (mount, mount / controller, mount / controllers) if own else (mount,):
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if not folder.is_relative_to(root):
                    break
                yield folder
