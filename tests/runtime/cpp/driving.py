"""Jobs for the C++ runtime: written to a folder, done by `driver.py` in a process of its own, and read back."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Job:
    """One thing to do, with its arrays."""

    do: str
    said: dict[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of it: `said`, arrays, and the status and sentence of the call that failed, if one did."""

    said: dict[str, Any]
    arrays: dict[str, Array]

    @property
    def refused(self) -> tuple[int, str] | None:
        """Status and sentence, or None."""
        status = self.said.get("status", 0)
        return (status, self.said["message"]) if status else None


def drive(library: Path, onnxruntime: Path, jobs: Sequence[Job], folder: Path) -> list[Outcome]:
    """Do jobs; an error of one ends only that one."""
    folder.mkdir(parents=True)
    for number, job in enumerate(jobs):
        np.savez(folder / f"{number}.in.npz", allow_pickle=False, **job.arrays)
    said = {
        "library": str(library),
        "onnxruntime": str(onnxruntime),
        "jobs": [{"do": job.do, **job.said} for job in jobs],
    }
    (folder / "jobs.json").write_text(json.dumps(said, default=str))
    driver = [sys.executable, "-m", "tests.runtime.cpp.driver", str(folder)]
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(driver, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    outcomes = []
    for number in range(len(jobs)):
        with np.load(folder / f"{number}.out.npz", allow_pickle=False) as arrays:
            outcomes.append(
                Outcome(json.loads((folder / f"{number}.out.json").read_text()), {key: arrays[key] for key in arrays})
            )
    return outcomes
