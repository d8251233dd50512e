"""The number of CPUs that a process may use: by its affinity, and by the quotas of its control groups."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: the least of its affinity and the quotas of its groups.

    root : the folder that has /proc and the control groups.
    """
    if sys.version_info >= (3, 13):  # by affinity, or the value of PYTHON_CPU_COUNT
        cpus = os.process_cpu_count()
    else:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([cpus or 1, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """Yield the quotas of this process's groups and of their parent groups, rounded up to whole CPUs."""
    for version, mount, path in _groups(root):
        for group in (path, *path.parents):
            folder = root.joinpath(*mount.parts[1:], *group.parts)
            names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            try:
                quota, period = " ".join((folder / name).read_text("utf-8") for name in names).split()
                if int(quota) > 0:  # no quota is -1, or "max" in version 2
                    yield -(-int(quota) // int(period))
            except (OSError, ValueError, ZeroDivisionError):  # the group is not visible or has no quota
                continue


def _groups(root: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """Yield the hierarchies that limit CPUs: version, mount point, and the path of this process's group.

    In a container the group may have its name outside of the container, while the mount begins at the group
    itself. Then no folder below the mount has that name, and the files of the mount describe the group.
    """
    entries = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup") if line.count(":") >= 2]
    groups = {name: PurePosixPath(path) for _, names, path in entries for name in names.split(",")}
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, filesystem = (fields.split() for fields in line.partition(" - "))
        if len(mount) < 5 or not filesystem or filesystem[0] not in ("cgroup", "cgroup2"):
            continue
        version, controller = (2, "") if filesystem[0] == "cgroup2" else (1, "cpu")
        if controller in groups and (version == 2 or controller in filesystem[-1].split(",")):
            top, group = PurePosixPath(mount[3]), groups[controller]
            path = group.relative_to(top if group.is_relative_to(top) else "/")
            yield version, PurePosixPath(mount[4]), PurePosixPath() if ".." in path.parts else path


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return []
