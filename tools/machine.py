"""What this machine is: the facts that doctor explains and that every measurement carries."""

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trt_compress.children import TimeoutExpired, run
from trt_compress.version import __version__

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "base": ("numpy", "rich", "typer"),
    "export": (
        "onnx",
        "onnxscript",
        "safetensors",
        "timm",
        "tokenizers",
        "tomli-w",
        "torch",
        "transformers",
    ),
    "gguf": ("gguf",),
    "text": ("jinja2", "sentencepiece", "tokenizers"),
    "tune": ("optuna",),
    "serve": ("anyio", "starlette", "uvicorn"),
    "cpu": ("onnxruntime",),
    "gpu": ("onnxruntime-gpu", "tensorrt"),
    "cuda": ("cuda-bindings",),
    "rtx": ("tensorrt-rtx",),
    "zoo": ("pillow", "scikit-learn", "scipy"),
    "video": ("av", "pillow"),
    "audio": ("av", "soundfile", "soxr"),
    "mic": ("sounddevice", "soxr"),
    "polygraphy": ("polygraphy",),
}
"""The libraries that each extra of pyproject.toml brings."""


def package_version(name: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """The version of this package, and those of the libraries of its extras that are installed, by name."""
    names = [name for packages in PACKAGES.values() for name in packages]
    found = {name: found for name in names if (found := package_version(name)) is not None}
    return {"trt-compress": __version__, **found}


def cpu_model() -> str:
    """Name of the processor as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> tuple[int, int] | None:
    """Total and available memory, or None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    total, available = (re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE) for name in ("MemTotal", "MemAvailable"))
    return (int(total.group(1)) * 1024, int(available.group(1)) * 1024) if total and available else None


def gpus() -> list[dict[str, str]]:
    """The NVIDIA GPUs that the driver reports: name, driver, memory, compute capability."""
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    output = command_output("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    rows = [line.split(", ") for line in (output or "").splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def jetpack_release() -> str | None:
    """First line of the Jetson release file, or None on other machines."""
    try:
        return Path("/etc/nv_tegra_release").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    except (OSError, IndexError):
        return None


def power_mode() -> str | None:
    """Power mode of a Jetson, as `nvpmodel -q` names it, or None on other machines."""
    found = re.search(r"^NV Power Mode:\s*(\S.*)$", command_output("nvpmodel", "-q") or "", re.MULTILINE)
    return found.group(1).strip() if found else None


def command_output(*command: str) -> str | None:
    """What a command prints, or None if it is missing or fails."""
    try:
        finished = run(command, timeout=20)
    except (OSError, TimeoutExpired):
        return None
    return None if finished.returncode else finished.stdout.decode(errors="replace").strip()


def commit_of_sources(given: str | None = None) -> str | None:
    """The commit these sources are of, with "-dirty" if anything but the records was changed since.

    Args:
        given: What to say where they are no git checkout.
    """
    git = ("git", "-C", str(Path(__file__).resolve().parent))
    commit = command_output(*git, "rev-parse", "--short", "HEAD")
    changed = command_output(*git, "status", "--porcelain", "--", ":(top)", ":(top,exclude)tools/bench/results")
    return given if not commit else f"{commit}-dirty" if changed else commit


def describe_device() -> dict[str, object]:
    """The device as a measurement records it."""
    return {
        "cpu": cpu_model(),
        "cores": cpu_cores(),
        "gpus": gpus(),
        "jetpack": jetpack_release(),
        "power_mode": power_mode(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
