"""The habits of every command: help, exit codes, errors, logs, JSON."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from trt_compress import __version__
from trt_compress.format.manifest import Compression, Engine
from trt_compress.tools.cli.main import app
from trt_compress.tools.cli.tokenizer.group import COMMANDS as TOKENIZER_COMMANDS
from trt_compress.tools.console import LOGGER, configure_logging, print_pairs, print_table, progress
from trt_compress.tools.describe import engine_pairs, sites_text

COMMANDS = (
    "list",
    "plan",
    "export",
    "verify",
    "preflight",
    "build",
    "bench",
    "generate",
    "serve",
    "evaluate",
    "sweep",
    "tune",
    "calibrate",
    "report",
    "compare",
    "inspect",
    "show",
    "doctor",
    "plugins",
    "prune",
    "package",
    "tokenizer",
)
HEAVY = {"torch", "onnx", "onnxruntime", "timm", "transformers", "numpy", "tensorrt", "tensorrt_rtx"}

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def run_python(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)


GROUPED = [("plugins", "build"), ("plugins", "list"), *(("tokenizer", name) for name in TOKENIZER_COMMANDS)]
HELPED = [(), *((name,) for name in COMMANDS), *GROUPED]


@pytest.mark.parametrize("command", HELPED, ids=" ".join)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    program = """
import json, sys
from trt_compress.tools.cli.main import app
from trt_compress.tools.console import print_table
try:
    app()
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""
    start = time.perf_counter()
    finished = run_python(program, *command, "--help")
    print(f"{' '.join(command)} --help: {time.perf_counter() - start:.2f} s")
    assert finished.returncode == 0 and "Usage:" in finished.stdout
    assert HEAVY & set(json.loads(finished.stderr)) == set()


def test_the_commands_are_those_documented(cli: Cli) -> None:
    text = cli("--help").stdout
    assert [name for name in COMMANDS if f"│ {name} " not in text] == []


@pytest.mark.parametrize("arguments", [("list", "targets", "--json"), ("--help",), ("inspect", "nothing", "--json")])
def test_a_stdout_that_takes_nothing_is_no_fault_of_ours(arguments: tuple[str, ...]) -> None:
    """A reader that went away ends a command as SIGPIPE would; a full disk is said."""
    mistake = arguments[0] == "inspect"
    for full in (False, True):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as gone, open("/dev/full", "wb") as disk:
            command = [sys.executable, "-m", "trt_compress", *arguments]
            done = subprocess.run(command, stdout=disk if full else gone, stderr=subprocess.PIPE, text=True)
        assert done.returncode == (2 if mistake or full else 141)
        assert len(done.stderr.splitlines()) == (1 if mistake or full else 0)
        assert mistake or not full or "No space left on device" in done.stderr


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"trt-compress {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exprot",), "Did you mean 'export'?"),
        (("inspect",), "Missing argument"),
        (("export", "zoo:digits_vit"), "Missing option '--output'"),
        (("bench", "somewhere", "--pairs", "many"), "--pairs"),
        (("list", "tragets"), "Did you mean 'targets'?"),
    ],
)
def test_a_wrong_call_exits_2(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    finished = cli(*arguments)
    assert finished.returncode == 2
    assert message in finished.stderr and "Traceback" not in finished.stderr
    assert finished.stdout == ""


WRONG_CALLS = {
    ("exprot",): "command 'exprot' is not known; there are list, plan, export, verify, ",
    ("inspect",): "Missing argument BUNDLE of 'inspect'; give BUNDLE: the directory that export wrote.",
    ("inspect", "a", "b", "c"): "Unexpected argument 'b c' of 'inspect'; it takes BUNDLE. A pattern of file names",
    ("plugins", "build", "x"): "Unexpected argument 'x' of 'plugins build'; it takes options only.",
    ("list", "--jsno"): "No such option '--jsno' of 'list'; it has --json, --verbose, --log-json, --help. Did you mean",
    ("export", "zoo:x", "-o"): "Missing value of option '-o' of 'export'; give --output DIR: where the bundle goes.",
    ("bench", "x", "--pairs=1.5"): "Invalid value for option '--pairs' of 'bench': '1.5' is not a whole number.",
    ("run", "x", "--source", "y", "--fps", "3,5"): "Invalid value for option '--fps' of 'run': '3,5' is not a number.",
    ("list", "--json=3"): "Option '--json' does not take a value.",
}


def run_in_process(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("arguments", WRONG_CALLS, ids=" ".join)
def test_a_wrong_call_is_refused_in_the_form_of_every_error(arguments: tuple[str, ...]) -> None:
    finished = run_in_process(*arguments)
    sentence, hint = finished.stderr.splitlines()
    assert (finished.exit_code, finished.stdout) == (2, "")
    assert sentence.startswith(f"error: {WRONG_CALLS[arguments]}")
    assert hint.startswith("Hint: trt-compress") and hint.endswith(" --help says what it takes.")


def one_error(finished: Any) -> dict[str, object]:
    """The error in the one document on stdout, which is also said on stderr."""
    error = json.loads(finished.stdout)["error"]
    assert set(error) == {"message", "hint", "exit_code"} and error["exit_code"] == finished.exit_code
    assert finished.stderr.startswith(f"error: {error['message']}\n")
    return dict(error)


ASKS_FOR_JSON = [
    ("inspect", "nowhere", "--json"),
    ("inspect", "--json"),
    ("list", "--json", "tragets"),
    ("report", "nowhere.json", "--json"),
    ("compare", "a.json", "--json"),
    ("preflight", "nowhere", "--target", "rtx", "--json"),
    ("build", "nowhere", "--json"),
    ("run", "nowhere", "--source", "x.mp4", "--json"),
    ("export", "zoo:digits_vit", "-o", "x", "--opset", "many", "--json"),
    ("bench", "nowhere", "--json", "-"),
    ("bench", "nowhere", "--pairs", "many", "--json=-"),
    ("inspct", "x", "--json"),
]


@pytest.mark.parametrize("arguments", ASKS_FOR_JSON, ids=" ".join)
def test_an_error_is_json_where_json_is_asked_for(arguments: tuple[str, ...]) -> None:
    assert one_error(run_in_process(*arguments))["exit_code"] == 2


@pytest.mark.parametrize("arguments", [("bench", "nowhere", "--json", "f.json"), ("inspect", "--", "--json")])
def test_an_error_leaves_stdout_alone_where_it_is_not(arguments: tuple[str, ...], tmp_path: Path) -> None:
    finished = run_in_process(*arguments)
    assert (finished.exit_code, finished.stdout) == (2, "")


def test_what_was_found_stands_beside_the_error(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    weight = np.ones((4, 4), np.float32)
    node = helper.make_node("ScatterElements", ["x", "i", "x"], ["y"], reduction="add", name="scatter")
    values = [helper.make_tensor_value_info(name, 1, [4, 4]) for name in "xy"]
    index = numpy_helper.from_array(weight.astype(np.int64), "i")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [index])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "g.onnx")
    finished = run_in_process("preflight", str(tmp_path / "g.onnx"), "--target", "rtx", "--json")
    document = json.loads(finished.stdout)
    assert finished.exit_code == one_error(finished)["exit_code"] == 3
    assert document["target"] == "rtx" and document["findings"][0]["rule"] == "scatter-elements-reduction"


def test_the_package_is_run_as_the_command() -> None:
    command = [sys.executable, "-m", "trt_compress", "inspect", "nowhere"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stderr.startswith("error: 'nowhere' does not exist; ")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("trt-compress ins", ["inspect"]),
        ("trt-compress build b --target jetson-o", ["jetson-orin-jp6", "jetson-orin-jp7"]),
        ("trt-compress list comp", ["compressors"]),
    ],
)
def test_a_shell_completes(typed: str, completed: list[str]) -> None:
    at = str(len(typed.split()) - 1)
    environment = {"_TRT_COMPRESS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": at}
    program = "import sys; sys.argv[0] = 'trt-compress'; from trt_compress.tools.cli.main import main; main()"
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert finished.stdout.split() == completed


@pytest.mark.parametrize("kind", ["operators", "compressors", "targets"])
def test_tables_fit_and_cut_nothing(cli: Cli, kind: str) -> None:
    wide = cli("list", kind, columns=None).stdout
    for columns in (80, 120):
        table = cli("list", kind, columns=columns).stdout
        assert max(map(len, table.splitlines())) <= columns
        assert "…" not in table and "\x1b" not in table
        assert sorted("".join(table.replace("─", "").split())) == sorted("".join(wide.replace("─", "").split()))


def test_list_prints_one_json_document(cli: Cli) -> None:
    found = json.loads(cli("list", "targets", "--json").stdout)
    assert list(found) == ["targets"]
    assert {"cpu", "rtx", "jetson-orin-jp6"} <= {target["name"] for target in found["targets"]}


def test_a_missing_library_is_named_with_its_extra() -> None:
    finished = run_python(
        "import sys; sys.modules['torch'] = None; from trt_compress.tools.cli.main import main; main()", "list"
    )
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: This command needs 'torch', which is not installed.\nHint: pip install \"trt-compress[export]\"\n"
    )


@pytest.mark.parametrize("arguments", [("--log-json", "inspect", "nowhere"), ("inspect", "nowhere", "--log-json")])
def test_log_options_stand_before_and_after_the_command(cli: Cli, arguments: tuple[str, ...]) -> None:
    finished = cli(*arguments)
    assert finished.returncode == 2
    line = json.loads(finished.stderr.splitlines()[-1])
    assert line["level"] == "error" and line["message"].startswith("'nowhere' does not exist; ")


def run_failing(failure: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    program = f"""
from trt_compress.tools import doctor
from trt_compress.tools.cli.main import main
def run_checks():
    raise {failure}
doctor.run_checks = run_checks
main()
"""
    return run_python(program, "doctor", *arguments)


def test_an_unforeseen_error_is_a_sentence_and_exits_1() -> None:
    finished = run_failing("RuntimeError('the disk spoke')")
    assert finished.returncode == 1
    assert finished.stderr == (
        "error: 'doctor' failed on RuntimeError: the disk spoke\n"
        "Hint: This is a bug of trt-compress; please report the command with what it prints with -v.\n"
    )
    assert "Traceback" in run_failing("RuntimeError('the disk spoke')", "-v").stderr


@pytest.mark.parametrize("number", ["EACCES", "EPERM", "ENAMETOOLONG", "ELOOP", "ENOTDIR", "EROFS", "ENOSPC", "ESTALE"])
def test_a_file_that_the_system_refuses_is_no_bug(number: str) -> None:
    finished = run_failing(f"OSError(__import__('errno').{number}, 'it may not be', '/closed/a\\x1b')")
    assert finished.returncode == 2 and len(finished.stderr.splitlines()) == 1
    assert finished.stderr.startswith("error: '/closed/a\\x1b' cannot be used (it may not be); ")


@pytest.mark.parametrize("failure", ["OSError(5, 'no name')", "OSError(__import__('errno').ENOENT, 'gone', 'ours')"])
def test_other_errors_of_the_system_may_be_ours(failure: str) -> None:
    assert run_failing(failure).returncode == 1


@pytest.mark.parametrize(
    "arguments", ["verify bundle --inputs X", "preflight X --target cpu", "evaluate bundle --data X"]
)
def test_a_name_that_is_too_long_is_said(arguments: str, cli: Cli, make_bundle: Callable[..., Path]) -> None:
    make_bundle("bundle")
    finished = cli(*arguments.replace("X", "x" * 300).split())
    assert finished.returncode == 2 and "File name too long" in finished.stderr and "bug" not in finished.stderr


@pytest.mark.parametrize(
    ("failure", "code"), [("KeyboardInterrupt", 130), ("SystemExit(7)", 7)], ids=["interrupt", "exit"]
)
def test_an_interrupted_command_says_nothing(failure: str, code: int) -> None:
    finished = run_failing(failure)
    assert (finished.returncode, finished.stdout) == (code, "") and "Traceback" not in finished.stderr


@pytest.mark.parametrize(("error", "code"), [("GateError", 3), ("BundleError", 2), ("BuildError", 1)])
def test_the_exit_code_is_that_of_the_error(error: str, code: int) -> None:
    finished = run_failing(f"__import__('trt_compress.errors').errors.{error}('it did not hold.', hint='Try again.')")
    assert (finished.returncode, finished.stderr) == (code, "error: it did not hold.\nHint: Try again.\n")


def test_a_reader_that_stops_early_is_no_error() -> None:
    program = "from trt_compress.tools.cli.main import main; main()"
    command = [sys.executable, "-c", program, "list", "operators"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


def test_doctor_explains_and_exits_0(cli: Cli) -> None:
    finished = cli("doctor")
    assert finished.returncode == 0
    assert all(word in finished.stdout for word in ("python", "onnxruntime", "NVIDIA GPU", "disk", "found."))
    checks = json.loads(cli("doctor", "--json").stdout)["checks"]
    assert {"name": "trt-compress", "found": __version__} == {key: checks[0][key] for key in ("name", "found")}
    assert all(check["advice"] for check in checks if check["group"] == "packages" and check["found"] is None)


@pytest.mark.parametrize(
    ("lacking", "last"),
    [
        (
            ("torch", "onnx", "onnxruntime"),
            "Nothing can be run or exported here yet: onnxruntime is missing; pip install",
        ),
        (
            ("torch", "onnx"),
            "Here one can run and time bundles, and cannot export and verify models: onnx, torch missing",
        ),
    ],
    ids=["nothing runs", "a device"],
)
def test_doctor_says_what_cannot_be_done(lacking: tuple[str, ...], last: str) -> None:
    blocked = f"import sys\nfor name in {lacking}: sys.modules[name] = None\n"
    program = f"{blocked}from trt_compress.tools.cli.main import main; main()"
    said = run_python(program, "doctor").stdout.splitlines()[-1]
    assert last in said and (len(lacking) == 2 or "No problems found" not in said)
    checks = json.loads(run_python(program, "doctor", "--json").stdout)["checks"]
    able = {check["name"]: check["found"] for check in checks if check["group"] == "What can be done here"}
    assert able["export and verify models"] == "no"
    assert able["run and time bundles"] == ("no" if "onnxruntime" in lacking else "yes")


def test_doctor_shows_the_tools_with_their_versions(tmp_path: Path) -> None:
    said = {
        "c++": "c++ (Debian 12.2.0-14) 12.2.0",
        "cmake": "cmake version 3.25.1\n\nCMake suite",
        "ninja": "1.11.1",
        "nvcc": "nvcc: NVIDIA (R)\nBuilt on Tue_2025\nCuda compilation tools, release 12.6, V12.6.85",
        "ffmpeg": "ffmpeg version n7.1-dev Copyright (c) 2000-2024",
    }
    for name, text in said.items():
        (tmp_path / name).write_text(f"#!{sys.executable}\nprint({text!r})\n")
        (tmp_path / name).chmod(0o755)
    program = "from trt_compress.tools.cli.main import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {"PATH": str(tmp_path)}
    command = [sys.executable, "-c", program, "doctor", "--json"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    tools = {
        check["name"]: check["found"] for check in json.loads(finished.stdout)["checks"] if check["group"] == "tools"
    }
    found = {"C++ compiler": ("c++", "12.2.0"), "cmake": ("cmake", "3.25.1"), "ninja": ("ninja", "1.11.1")}
    found |= {"nvcc": ("nvcc", "12.6"), "ffmpeg": ("ffmpeg", "n7.1-dev")}
    assert tools == {name: f"{version} ({tmp_path / file})" for name, (file, version) in found.items()}


def test_inspect_shows_a_bundle_without_torch_and_onnx(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle("tiny", compressor="tome")
    blocked = "import sys\nfor name in ('torch', 'onnx', 'timm', 'onnxruntime'): sys.modules[name] = None\n"
    program = f"{blocked}from trt_compress.tools.cli.main import main; main()"
    shown = run_python(program, "inspect", str(bundle))
    assert shown.returncode == 0, shown.stderr
    for word in ("zoo:tiny", "random (seed 0)", "tome:num_merged=13", "197 → 184", "TrtcTokenMerge", "[batch, 8]"):
        assert word in shown.stdout
    data = json.loads(run_python(program, "inspect", str(bundle), "--json").stdout)
    assert data["manifest"]["graphs"][0]["file"] == "model.onnx"
    assert data["bytes"] == (bundle / "model.onnx").stat().st_size


def test_inspect_refuses_a_changed_bundle(cli: Cli, make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle("tiny")
    with (bundle / "model.onnx").open("r+b") as stream:
        stream.write(b"\xff")
    finished = cli("inspect", bundle)
    assert finished.returncode == 2
    assert "error: 'model.onnx' in the bundle" in finished.stderr and "was changed" in finished.stderr


@pytest.mark.parametrize("kind", ["compressors", "operators", "targets"])
def test_a_piped_row_is_one_line_and_no_cell_pads_the_others(cli: Cli, kind: str) -> None:
    rows = json.loads(cli("list", kind, "--json").stdout)[kind]
    lines = cli("list", kind, columns=None).stdout.splitlines()
    for row in rows:
        (line,) = [line for line in lines if line.split()[:1] == [row["name"]]]
        text = [value for value in row.values() if isinstance(value, str) and value != row.get("op_type")]
        assert all(value in line for value in text) and not line.endswith(" ")
        assert len(line) < sum(max(len(value), 44) + 3 for value in text) + 40


def test_rows_that_do_not_fit_become_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    columns = [f"heading{number}" for number in range(12)]
    print_table("Wide", columns, [[f"value{row}{number}" for number in range(12)] for row in range(2)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Wide: value00" and "heading11  value111" in lines and max(map(len, lines)) <= 80


@pytest.mark.parametrize("columns", ["", "80"])
def test_a_long_name_hides_no_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_pairs("Title", [("a name " * 20, "value1"), ("short", "value2")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("short") and line.endswith("value2") and len(line) <= 80 for line in lines)
    assert any(line.endswith("value1") for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_of_the_log_stands_above_the_one_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    before = LOGGER.handlers, LOGGER.propagate, LOGGER.level
    try:
        configure_logging(verbose=False, log_json=False)
        with progress("Working") as step:
            step("first part")
            LOGGER.warning("something odd")
    finally:
        LOGGER.handlers, LOGGER.propagate = before[0], before[1]
        LOGGER.setLevel(before[2])
    assert "Working" in terminal.getvalue()
    (line,) = [line for line in terminal.getvalue().split("\n") if "something odd" in line]
    assert "Working" not in line.split("\x1b[2K")[-1]


def test_words_filter_what_is_listed(cli: Cli) -> None:
    assert [
        row["name"] for row in json.loads(cli("list", "targets", "JETSON", "thor", "--json").stdout)["targets"]
    ] == ["jetson-thor"]
    assert cli("list", "targets", "nothing", "such").stdout == "None of the targets has 'nothing' and 'such'.\n"
    text = cli("export", "--help").stdout
    assert all(
        form in text for form in ("timm:NAME", "zoo:NAME", "hf:DIR", "wavtokenizer:FILE", "FACTORY", "FILE.toml")
    )


INSIDES = re.compile(r"\w=\w|[{}()]'|None|True|False|Trtc\w+:|evidence|_version|max_abs")


def test_what_is_built_and_exported_is_said_in_words_and_units() -> None:
    engine = Engine(
        target="rtx",
        file="engines/rtx/model.engine",
        sha256="0f" * 32,
        bytes=17421964,
        library="tensorrt_rtx",
        library_version="1.7.1.116",
        onnx_sha256="1f" * 32,
        precision_asked="fp16",
        precision_achieved={"evidence": "network", "model": {"fp16": 74}, "operators": {"fp32": 24, "fp16": 1}},
        paths={"TrtcTokenMerge": {"plugin": 2, "function": 6}},
        profile={
            "image": {"min": (1, 3), "opt": (4, 3), "max": (8, 3)},
            "size": {"min": (2,), "opt": (2,), "max": (2,)},
            **{f"keys_{layer}_in": {"min": (1, 3), "opt": (4, 3), "max": (8, 3)} for layer in range(12)},
            "keys_12_in": {"min": (1, 9), "opt": (4, 9), "max": (8, 9)},
        },
        seconds=2.719,
    )
    said = {name: str(value) for name, value in engine_pairs(engine)}
    assert said["built by"] == "TensorRT-RTX 1.7.1.116 in 2.7 s" and said["file"].endswith("model.engine, 16.6 MiB")
    assert said["precision"] == (
        "fp16 asked; the model's layers: 74 in fp16; inside operators: 24 in fp32 and 1 in fp16"
    )
    assert said["operators"] == "TokenMerge: 2 as plugins, 6 as ONNX bodies"
    assert said["inputs"].splitlines() == [
        "image [1, 3] to [8, 3], best at [4, 3]",
        "size [2]",
        "keys_0_in … keys_11_in (12) [1, 3] to [8, 3], best at [4, 3]",
        "keys_12_in [1, 9] to [8, 9], best at [4, 9]",
    ]
    assert not any(INSIDES.search(value) for value in said.values())


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_inspect_fits_and_shows_no_insides(cli: Cli, exported: Callable[..., Path], columns: int) -> None:
    shown = cli("inspect", exported("evit:keep_ratio=0.7", batch="1:2:4"), columns=columns).stdout
    assert max(map(len, shown.splitlines())) <= columns
    assert "1 to 4, best at 2" in shown and "ONNX bodies" in shown and ", torch " in shown.replace("\n", " ")
    insides = [line for line in shown.splitlines() if INSIDES.search(line) and "evit:keep_ratio" not in line]
    assert insides == []


def test_a_planned_export_is_said_in_words(cli: Cli) -> None:
    shown = cli("export", "zoo:digits_vit", "-o", "x", "--compress", "tome:num_merged=4", "--dry-run").stdout
    assert "65 → 61 → 57" in shown and "times fewer than uncompressed" in shown and "a dry run writes nothing" in shown
    assert [line for line in shown.splitlines() if INSIDES.search(line) and "tome:num_merged=4" not in line] == []


def test_settings_are_written_as_a_spec_string_has_them() -> None:
    config = {"keep_ratio": (0.7, 0.5), "layers": None, "fuse": True, "mode": "mean"}
    site = Compression(site="a", compressor="evit", config=config, tokens_in=5, tokens_out=3)
    assert sites_text([site, site]) == "evit:keep_ratio=[0.7,0.5],fuse=true,mode=mean"
