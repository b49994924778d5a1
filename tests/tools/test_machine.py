"""Facts of the machine that programs tell."""

import os
from pathlib import Path

import pytest

from trt_compress.tools.machine import describe_device, power_mode


def test_the_power_mode_is_what_nvpmodel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program = tmp_path / "nvpmodel"
    program.write_text("#!/bin/sh\necho 'NVPM VERB: Config file'\necho 'NV Power Mode: MODE_30W_ALL'\necho 2\n")
    program.chmod(0o755)
    assert power_mode() == describe_device()["power_mode"] == "MODE_30W_ALL"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert power_mode() is None
