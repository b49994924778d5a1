"""`debug`: what it writes is read by Polygraphy itself, as far as there is no TensorRT here."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.engines import add_engines
from tests.runtime.generate.toy import write as write_toy
from trt_compress.errors import ConfigError, PluginError
from trt_compress.export.bundle import update_bundle
from trt_compress.format.bundle import Bundle
from trt_compress.tools.cli.main import main
from trt_compress.tools.debugging import write_debug

MakeBundle = Callable[..., Path]


def calls_of(script: Path) -> list[list[str]]:
    """The calls of Polygraphy in a script, as the shell reads them."""
    lines = script.read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("polygraphy ")]


def test_the_reference_runs_and_the_comparison_parses(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """By the real Polygraphy: the script itself, its first call alone, and the others as scripts that it makes."""
    pytest.importorskip("polygraphy", reason="what brings it is the extra polygraphy")
    made = write_debug(make_bundle("b"), target="x86-trt10", folder=tmp_path / "a 'b'")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "polygraphy").write_text(
        f"#!{sys.executable}\nfrom polygraphy.tools import main\nimport sys\nsys.exit(main())\n"
    )
    (tools / "polygraphy").chmod(0o755)
    variables = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run([made.path / "run.sh", "reference"], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"inputs.json", "reference.json"} <= set(os.listdir(made.path))
    (_, compare) = calls_of(made.path / "run.sh")
    done = subprocess.run(
        [*compare, "--gen-script", "made.py"], cwd=made.path, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    generated = (made.path / "made.py").read_text()
    assert "Profile().add('images', min=[1, 8], opt=[4, 8], max=[8, 8])" in generated
    assert "strongly_typed=True" in generated and "'reference.json'" in generated


def test_a_form_and_a_library_of_the_target(exported: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(exported("tome:num_merged=4"), tmp_path / "b")
    library = tmp_path / "lib of plugins.so"
    library.touch()
    made = write_debug(tmp_path / "b", target="x86-trt10", folder=tmp_path / "d", plugins=library)
    text = (made.path / "run.sh").read_text()
    assert made.plugins and f"PLUGINS=${{PLUGINS:-{shlex.quote(str(library))}}}" in text
    subprocess.run(["sh", "-n", made.path / "run.sh"], check=True)
    (reduce,) = [words for words in calls_of(made.path / "reduce.sh") if words[1] == "debug"]
    check = reduce[reduce.index("--check") + 1 :]
    assert check[:3] == ["polygraphy", "run", "polygraphy_debug.onnx"] and "--plugins" in check
    assert "aliased_plugin_io_10_03" in check
    with pytest.raises(PluginError, match="TensorRT-RTX"):
        write_debug(tmp_path / "b", target="rtx", folder=tmp_path / "r", plugins=library)
    rtx = write_debug(tmp_path / "b", target="rtx", folder=tmp_path / "r")
    text = (rtx.path / "run.sh").read_text()
    assert "export POLYGRAPHY_USE_TENSORRT_RTX=1" in text and "PLUGINS" not in text and not rtx.plugins


def test_a_node_and_a_tensor(exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = exported("tome:num_merged=4")
    made = write_debug(bundle, target="x86-trt10", folder=tmp_path / "d", node="blocks.3/TokenMerge", plugins=False)
    assert made.outputs and all(name.startswith("blocks.3/") for name in made.outputs)
    reference, compare = calls_of(made.path / "run.sh")
    at = compare.index("--trt-outputs") + 1
    assert tuple(compare[at : at + len(made.outputs)]) == made.outputs
    at = reference.index("--onnx-outputs") + 1
    assert tuple(reference[at : at + len(made.outputs)]) == made.outputs
    for how, said in (
        ({"node": "blocks.3/TokenMurge"}, "node 'blocks.3/TokenMurge' is not known"),
        ({"output": "logit"}, "tensor 'logit' is not known"),
        ({"output": "logits", "node": "n"}, "--node and --output both say what is compared"),
        ({"graph": "other"}, "graph 'other' is not known"),
    ):
        with pytest.raises(ConfigError, match=said):
            write_debug(bundle, target="x86-trt10", folder=tmp_path / "e", **how)  # type: ignore[arg-type]
    assert not (tmp_path / "e").exists()


def test_states_begin_as_they_do_and_the_engine_says_whether_plugins_are_there(tmp_path: Path) -> None:
    toy = add_engines(write_toy(tmp_path / "b"), plugins="sha256:0")
    np.savez(tmp_path / "i.npz", tokens=np.full((1, 2), 7))
    made = write_debug(toy.path, target="jetson-orin-jp6", folder=tmp_path / "d", inputs=tmp_path / "i.npz")
    with np.load(made.path / "inputs.npz") as arrays:
        assert set(arrays) == {"tokens", "positions", "total_in", "cache_in", "count"}
        assert (arrays["tokens"] == 7).all() and not arrays["cache_in"].any()
    assert made.plugins  # the record of the engine has them, and only the device knows where they are
    assert "PLUGINS=${PLUGINS:-''}" in (made.path / "run.sh").read_text()


def test_what_a_bundle_is_called_is_no_command(make_bundle: MakeBundle, tmp_path: Path) -> None:
    opened = Bundle.open(make_bundle("b"))
    update_bundle(opened, replace(opened.manifest, name="a\ntouch owned"), {})
    made = write_debug(opened.path, target="x86-trt10", folder=tmp_path / "d")
    assert "touch owned" not in (made.path / "run.sh").read_text()


def test_on_the_command_line(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_bundle("b")

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["trt-compress", "debug", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    assert run(path, "--target", "jetson-thor", "-o", tmp_path / "d", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert shlex.split(said["compare"])[:2] == ["polygraphy", "run"] and said["graph"] == "model"
    for words, wrong in (
        (("--target", "cpu"), "The target 'cpu' has no engine that could differ; give one of"),
        (("--target", "jetson-thor", "--plugins", "no.so"), "--plugins no.so is no file"),
        (("--target", "jetson-thor", "--node", "no"), "node 'no' is not known"),
    ):
        assert run(path, *words, "-o", tmp_path / "e") == 2
        assert wrong in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "e").exists()
    assert run(path, "--target", "jetson-thor", "-o", tmp_path / "d") == 2
    assert "exists; give -o a folder that is not there yet" in " ".join(capsys.readouterr().err.split())
