"""How many CPUs a process may use: by its affinity, and by the quotas of the control groups that it is in."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: the least of its affinity and the quotas of its groups.

    root : below which /proc and the control groups are looked for.
    """
    if sys.version_info >= (3, 13):  # by affinity, or what PYTHON_CPU_COUNT says
        cpus = os.process_cpu_count()
    else:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([cpus or 1, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """Give, in whole CPUs, the quotas of this process's groups and of the groups that these are in."""
    for version, mount, inside in _groups(root):
        for group in (inside, *inside.parents):
            folder = root.joinpath(*mount.parts[1:], *group.parts)
            names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            try:
                quota, period = " ".join((folder / name).read_text("utf-8") for name in names).split()
                if int(quota) > 0:  # none is -1, or "max" in version 2
                    yield -(-int(quota) // int(period))
            except (OSError, ValueError, ZeroDivisionError):  # a group that is out of sight or has no quota
                continue


def _groups(root: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """Give the hierarchies that limit CPUs: version, mount point, and this process's group below it.

    In a container the group may have its name outside, while the mount begins at the group itself: then no
    folder below the mount has that name, and the mount's own files speak of the group.
    """
    own, mounts = (_lines(root / "proc/self" / name) for name in ("cgroup", "mountinfo"))
    named = [line.split(":", 2) for line in own if line.count(":") >= 2]
    groups = {name: PurePosixPath(path) for _, names, path in named for name in names.split(",")}
    for line in mounts:
        before, _, after = (part.split() for part in line.partition(" - "))
        if len(before) < 5 or not after or after[0] not in ("cgroup", "cgroup2"):
            continue
        version, controller = (2, "") if after[0] == "cgroup2" else (1, "cpu")
        if controller in groups and (version == 2 or controller in after[-1].split(",")):
            top, group = PurePosixPath(before[3]), groups[controller]
            inside = group.relative_to(top if group.is_relative_to(top) else "/")
            yield version, PurePosixPath(before[4]), PurePosixPath() if ".." in inside.parts else inside


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return []
