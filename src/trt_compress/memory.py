"""How much memory there is for what was asked."""

import re
from pathlib import Path


def available_bytes() -> int | None:
    """Bytes that a program may still take, on this machine and in its container; None: the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    free = [] if found is None else [int(found[1]) << 10]
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
        free += [int(limit) - int(used) + _reclaimable()] if limit.strip().isdigit() else []
    except (OSError, ValueError):
        pass
    return min(free, default=None)


def format_bytes(count: int) -> str:
    """Write a number of bytes as B, KiB, MiB or GiB."""
    size = float(count)
    for unit in "B", "KiB", "MiB":
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _reclaimable() -> int:
    """Bytes that a container holds of files only, which it gives back when it needs them."""
    text = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8")
    found = re.search(r"^inactive_file (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
