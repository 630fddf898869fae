"""What the kernel counts for one control group: exact for all that ran in it, whatever has ended since.

Control groups of version 1 and 2 are read. A value that the kernel does not keep is None.

Source:
    cgroups(7); Documentation/admin-guide/cgroup-v1/{cpuacct,memory,blkio-controller}.rst and cgroup-v2.rst of Linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_V1_CONTROLLERS = ("cpuacct", "memory", "blkio", "pids")


@dataclass(frozen=True, slots=True)
class Group:
    """One group. ``folders`` has one folder for each v1 controller, or the same one under ``""`` in version 2."""

    version: int
    folders: dict[str, Path]

    def cpu_s(self) -> float | None:
        """CPU seconds since the group was made."""
        if self.version == 2:
            used = _fields(self._file("", "cpu.stat")).get("usage_usec")
            return None if used is None else used / 1e6
        used = _integer(self._file("cpuacct", "cpuacct.usage"))
        return None if used is None else used / 1e9

    def memory_bytes(self) -> int | None:
        """The working set, as kubelet sees it: what is charged, less file pages that can go at once."""
        usage, cached = ("memory.current", "inactive_file")
        if self.version == 1:
            usage, cached = ("memory.usage_in_bytes", "total_inactive_file")
        charged = _integer(self._file("memory", usage))
        if charged is None:
            return None
        return max(0, charged - _fields(self._file("memory", "memory.stat")).get(cached, 0))

    def disk_bytes(self) -> tuple[int, int] | None:
        """Read and written since the group was made."""
        if self.version == 2:
            text = _text(self._file("", "io.stat"))
            pairs = [word.partition("=") for line in (text or "").splitlines() for word in line.split()[1:]]
        else:
            text = _text(self._file("blkio", "blkio.throttle.io_service_bytes"))
            lines = [line.split() for line in (text or "").splitlines()]
            pairs = [(words[1], "=", words[2]) for words in lines if len(words) == 3]
        if text is None:
            return None
        read = sum(int(value) for name, _, value in pairs if name in {"rbytes", "Read"})
        written = sum(int(value) for name, _, value in pairs if name in {"wbytes", "Write"})
        return read, written

    def pids(self) -> list[int]:
        """The processes in it and in the groups below."""
        top = next(iter(self.folders.values()))
        lists = (_text(file) or "" for file in (top / "cgroup.procs", *top.glob("**/*/cgroup.procs")))
        return [int(word) for text in lists for word in text.split()]

    def exists(self) -> bool:
        return any(folder.is_dir() for folder in self.folders.values())

    def _file(self, controller: str, name: str) -> Path | None:
        folder = self.folders.get("" if self.version == 2 else controller)
        return None if folder is None else folder / name


def find(path: str, root: Path = ROOT) -> Group:
    """The group at ``path``: ``/system.slice/x.service`` as in /proc/PID/cgroup, or its folder under ``root``."""
    inside = path
    for mount in (*_mounts(root), root):
        if Path(path).is_relative_to(mount):
            inside = str(Path(path).relative_to(mount))
            break
    below = inside.strip("/")
    if (root / "cgroup.controllers").exists():
        return Group(2, {"": root / below})
    found = {
        name: mount / below for name in _V1_CONTROLLERS for mount in _mounts(root) if name in mount.name.split(",")
    }
    return Group(1, {name: folder for name, folder in found.items() if folder.is_dir()} or {"cpuacct": root / below})


def of_process(pid: int, root: Path = ROOT, proc: Path = Path("/proc")) -> Group | None:
    """The group that ``pid`` has for itself; None where it shares one with this process, or has none.

    A server that was started from the same shell is in the same group as the load generator: what the group
    counts is then not the server's.
    """
    own, other = _membership(proc / "self" / "cgroup"), _membership(proc / str(pid) / "cgroup")
    if (root / "cgroup.controllers").exists():
        path = other.get("", "/")
        return None if path in {"/", own.get("", "/")} else find(path, root)
    wanted = [name for name in _V1_CONTROLLERS if other.get(name, "/") not in {"/", own.get(name, "/")}]
    # Without CPU and memory it is a group for something else, a freezer for example.
    if not {"cpuacct", "memory"} <= set(wanted):
        return None
    folders = {name: find(other[name], root).folders.get(name) for name in wanted}
    return Group(1, {name: folder for name, folder in folders.items() if folder is not None})


def _membership(path: Path) -> dict[str, str]:
    """Controller -> path; version 2 is the controller ``""``."""
    found: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        _, controllers, where = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), where))
    return found


def _mounts(root: Path) -> Iterator[Path]:
    if root.is_dir() and not (root / "cgroup.controllers").exists():
        yield from (path for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink())


def _text(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="ascii")
    except OSError:
        return None


def _integer(path: Path | None) -> int | None:
    text = _text(path)
    return None if text is None else int(text)


def _fields(path: Path | None) -> dict[str, int]:
    lines = (line.split() for line in (_text(path) or "").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}
