"""Children: isolated, standing elsewhere, with the locks they were given, and ended with all that they started."""

import importlib
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trt_compress import children, current_folder
from trt_compress.children import TimeoutExpired, find_program, run, run_python, start, started

WITNESS = "import os\nopen({witness!r}, 'a').write(__name__ + '\\n')\n"


def module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that a child finds, as its folder is given by its absolute path."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return name


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_a_child_finds_nothing_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, own = tmp_path / "here", tmp_path / "own"
    here.mkdir()
    own.mkdir()
    for name in ("json", "runpy", "site", "ctypes", "trt_compress", "numpy", "sitecustomize", "usercustomize"):
        (here / f"{name}.py").write_text(WITNESS.format(witness=str(tmp_path / "witness")))
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(tmp_path / "absolute")]))
    done = run_python("site", folder=own)
    assert done.returncode == 0, done.stdout
    said = done.stdout.decode()
    assert str(tmp_path / "absolute") in said and str(Path(children.__file__).parents[1]) in said
    assert str(here) not in said
    assert not (tmp_path / "witness").exists()


def test_a_child_stands_in_the_folder_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, sys\nprint(os.getcwd(), os.getsid(0) == os.getpid(), sys.flags.isolated, sys.argv[1:])\n"
    name = module(tmp_path / "lib", "where", text, monkeypatch)
    own = tmp_path / "own"
    own.mkdir()
    done = run_python(name, [own / "a b", "ü"], folder=own)
    assert done.stdout.decode().strip() == f"{own} True 1 {[str(own / 'a b'), 'ü']}"


def test_a_child_keeps_the_locks_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, sys\nprint(os.fstat(int(sys.argv[1])).st_ino)\n"
    name = module(tmp_path / "lib", "locks", text, monkeypatch)
    with (tmp_path / "lock").open("w") as lock, (tmp_path / "other").open("w") as other:
        done = run_python(name, [str(lock.fileno())], folder=tmp_path, pass_fds=[lock.fileno()])
        assert int(done.stdout) == os.fstat(lock.fileno()).st_ino
        assert run_python(name, [str(other.fileno())], folder=tmp_path).returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_a_child_dies_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    name = module(tmp_path / "lib", "sleeps", text, monkeypatch)
    program = (
        "import sys\nfrom pathlib import Path\nfrom trt_compress.children import run_python\n"
        "run_python(sys.argv[1], sys.argv[2:], folder=Path('/'))\n"
    )
    number = tmp_path / "number"
    with subprocess.Popen([sys.executable, "-c", program, name, str(number)]) as parent:
        wait_for(lambda: number.exists() and number.read_text())
        child = int(number.read_text())
        assert is_alive(child)
        parent.kill()
    wait_for(lambda: not is_alive(child))


STUBBORN = """\
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {other.pid} .")
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux" or sys.version_info < (3, 11), reason="process groups of children")
@pytest.mark.parametrize("how", ["interrupted", "too long"])
def test_a_child_is_ended_with_all_that_it_started(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that does not want to, and what it put into a process group of its own, as ninja does."""
    monkeypatch.setattr(children, "_PATIENCE_S", 0.2)
    name, numbers = module(tmp_path / "lib", "stubborn", STUBBORN, monkeypatch), tmp_path / "numbers"
    if how == "too long":
        with pytest.raises(TimeoutExpired):
            run_python(name, [numbers], folder=tmp_path, timeout=1.5)
    else:
        with pytest.raises(KeyboardInterrupt), started(children.python_command(name, numbers), folder=tmp_path):
            wait_for(lambda: numbers.exists() and numbers.read_text().endswith("."))
            raise KeyboardInterrupt
    assert [is_alive(int(number)) for number in numbers.read_text().split()[:2]] == [False, False]


def test_what_a_program_said_is_there_though_it_took_too_long() -> None:
    with pytest.raises(TimeoutExpired) as caught:
        run(["sh", "-c", "echo said; sleep 60"], timeout=0.5)
    assert caught.value.stdout == b"said\n"


def test_programs_are_looked_for_in_absolute_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (".", "bin"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("cmake", "nvidia-smi", "only-here"):
            program = tmp_path / folder / name
            program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'witness'}\n")
            program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f":.:bin::/usr/bin:/bin:{tmp_path / 'none'}")
    assert find_program("only-here") is None
    assert find_program("sh") in ("/usr/bin/sh", "/bin/sh")
    assert find_program("./only-here") == str(tmp_path / "only-here")  # whoever writes a path means it
    with pytest.raises(FileNotFoundError, match="only-here"):
        start(["only-here"])
    assert run(["sh", "-c", "cmake; nvidia-smi; echo $PATH"]).stdout.split()[-1:] == [
        f"/usr/bin:/bin:{tmp_path / 'none'}".encode()
    ]
    monkeypatch.setenv("PATH", "")
    assert find_program("only-here") is None and find_program("sh") is not None
    assert run(["sh", "-c", "only-here"]).returncode == 127
    assert not (tmp_path / "witness").exists()


def test_libraries_named_relative_to_the_current_folder_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", ":../lib:/opt/lib")
    monkeypatch.setenv("LD_PRELOAD", "./evil.so")
    done = run(["sh", "-c", "echo $LD_LIBRARY_PATH; echo $LD_PRELOAD."])
    assert done.stdout.decode().split() == ["/opt/lib", "."]
    assert done.stderr == b""


def test_the_current_folder_is_forgotten_and_absolute_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    monkeypatch.setenv("PYTHONPATH", "lib::/absolute")
    monkeypatch.setenv("PATH", ":bin:/usr/bin")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", ["", here, f"{here}/lib", "/absolute", "more", "/usr/lib/python"])
    monkeypatch.setattr(sys, "path", sys.path[1:])
    current_folder.forget()
    assert sys.path == ["/absolute", "/usr/lib/python"]
    assert os.environ["PATH"] == "/usr/bin"
    monkeypatch.setenv("PYTHONPATH", here)  # someone wants it
    monkeypatch.setattr(sys, "path", [here, "/usr/lib/python"])
    current_folder.forget()
    assert sys.path == [here, "/usr/lib/python"]


@pytest.mark.parametrize("arguments", [["--version"], ["list", "targets"]], ids=" ".join)
def test_python_m_finds_no_module_in_the_current_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a module there is called, but for the few that `python -m` loads itself before it looks for ours."""
    name = module(tmp_path / "lib", "loaded", "import sys\nprint(*sys.modules)\n", monkeypatch)
    loaded = subprocess.run([sys.executable, "-m", name], capture_output=True, text=True, check=True).stdout.split()
    monkeypatch.undo()
    witness = tmp_path / "witness"
    here = tmp_path / "here"
    here.mkdir()
    names = {*sys.stdlib_module_names, "typer", "rich", "numpy", "click", "sitecustomize", "usercustomize"}
    for name in names - {*loaded}:
        (here / f"{name}.py").write_text(WITNESS.format(witness=str(witness)))
    command = [sys.executable, "-m", "trt_compress", *arguments]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not witness.exists(), witness.read_text()


def test_an_interrupted_wait_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a terminal reaches the parent alone, as the child has a session of its own."""
    text = "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    name, number = module(tmp_path / "lib", "waits", text, monkeypatch), tmp_path / "number"
    program = (
        "import sys\nfrom pathlib import Path\nfrom trt_compress.children import run_python\n"
        "try:\n    run_python(sys.argv[1], sys.argv[2:], folder=Path('/'))\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, name, str(number)]) as parent:
        wait_for(lambda: number.exists() and number.read_text())
        parent.send_signal(signal.SIGINT)
        assert parent.wait(120) == 130
    assert not is_alive(int(number.read_text()))


def test_libraries_of_others_are_loaded_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some look for further ones in the current folder: their search path ends in a colon."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "trtc_brings_libraries.py").write_text("import os\nhere = os.getcwd()\n")
    monkeypatch.setattr(current_folder, "_LOADED_ELSEWHERE", ("trtc_brings_libraries",))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "lib"), *sys.path])
    monkeypatch.chdir(tmp_path)
    current_folder.forget()
    module = importlib.import_module("trtc_brings_libraries")
    assert module.here == "/" and os.getcwd() == str(tmp_path)
    assert module.__spec__ is not None and module.__spec__.loader is module.__loader__
    assert inspect.getsource(module).startswith("import os")
    current_folder.forget()
    assert sum(type(finder).__name__ == "_Finder" for finder in sys.meta_path) == 1
    del sys.modules["trtc_brings_libraries"]
