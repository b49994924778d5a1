"""A kill at any step of a write leaves the old file or the new one, and the next write removes what it left."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_WRITER = """
import fcntl, json, os, signal, sys
from pathlib import Path
import numpy
from trt_compress import files

STEPS = ("open", "fsync", "replace", "fchmod", "ftruncate", "scandir", "unlink", "write", "flock")

def killed_at(number, write):
    "Run write() in a child that is killed before or behind its step of that number; whether it came to that step."
    child = os.fork()
    if child == 0:
        left = [number]
        def counted(step):
            def wrapped(*arguments, **named):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                result = step(*arguments, **named)
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return result
            return wrapped
        for name in STEPS:
            if hasattr(os, name):
                setattr(os, name, counted(getattr(os, name)))
        fcntl.flock = counted(fcntl.flock)
        files.write_all = halves(files.write_all, counted(lambda: None))
        try:
            write()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

def halves(write_all, step):
    def wrapped(file, data):
        write_all(file, bytes(data)[: len(data) // 2])
        step()
        write_all(file, bytes(data)[len(data) // 2 :])
    return wrapped

def made(kind, path):
    "What is written, as the product writes it."
    if kind == "whole":
        return lambda: files.write_whole(path, b"new" * 10000)
    if kind == "line":
        return lambda: files.append_line(path, json.dumps({"new": "x" * 20000}))
    if kind == "result":
        from trt_compress.tools.cli.options import write_json
        return lambda: write_json(path, {"new": list(range(5000))})
    if kind == "report":
        from trt_compress.tools.report.write import _write
        return lambda: _write(path, "new" * 10000)
    if kind == "sweep":
        from types import SimpleNamespace
        from trt_compress.tools.sweep.run import write_result
        return lambda: write_result(SimpleNamespace(to_json=lambda: {"new": "x" * 10000}), path.parent)
    if kind == "weights":
        import torch
        from trt_compress.models.zoo.release import write_weights
        module = torch.nn.Linear(64, 64)
        return lambda: write_weights(module, path)
    if kind == "picture":
        from PIL import Image
        from trt_compress.runtime.draw3d import write_picture
        pixels = numpy.arange(64 * 64 * 3, dtype=numpy.uint8).reshape(64, 64, 3)
        return lambda: write_picture(path, Image.fromarray(pixels))
    raise SystemExit(kind)

folder, kind, name, steps = Path(sys.argv[1]), sys.argv[2], sys.argv[3], [int(text) for text in sys.argv[4].split()]
path = folder / name
write = made(kind, path)
path.unlink(missing_ok=True)
write()
new = path.read_bytes()
seen = {"kills": 0, "old": 0, "new": 0, "torn": 0, "strays": 0, "steps": 0}
for before in (b'{"old": true}\\n' * 2000, None):
    for number in steps or range(1000):
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)
        if not killed_at(number, write):
            break
        seen["kills"] += 1
        content = path.read_bytes() if path.exists() else None
        if kind == "line":
            start = before or b""
            kept, added = (content or b"")[: len(start)], (content or b"")[len(start) :]
            is_whole = kept == start and new.startswith(added)  # a cut line stands alone, behind whole ones
            seen["torn" if not is_whole else "new" if added == new else "old"] += 1
            files.append_line(path, "next")
            assert path.read_bytes().splitlines()[-1] == b"next", "the cut line swallowed the next"
        else:
            seen["old" if content == before else "new" if content == new else "torn"] += 1
            write()
            assert path.read_bytes() == new
        strays = [entry for entry in os.listdir(folder) if entry != name]
        seen["strays"] += len(strays)
    seen["steps"] = max(seen["steps"], number)
print(json.dumps(seen))
"""

KINDS = {
    "whole": "file",
    "line": "record.jsonl",
    "result": "result.json",
    "report": "result.report.html",
    "sweep": "sweep.json",
    "weights": "model.safetensors",
    "picture": "picture.png",
}


def _seen(folder: Path, kind: str) -> dict[str, Any]:
    folder.mkdir()
    command = [sys.executable, "-c", _WRITER, str(folder), kind, KINDS[kind], ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path, attack: Any) -> None:
    kinds = list(KINDS)[: attack.count(3, len(KINDS))]
    total = {"kills": 0, "old": 0, "new": 0, "torn": 0, "strays": 0}
    for kind in kinds:
        seen = _seen(tmp_path / kind, kind)
        assert seen["kills"] >= 10 and seen["old"] and seen["new"], f"{kind}: {seen}"
        for name in total:
            total[name] += seen[name]
    attack.saw(**total)
    assert total["torn"] == 0 and total["strays"] == 0, total
