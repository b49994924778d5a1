"""The command package: what is copied to a device is whole, says its hashes, and builds and runs on its place."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

from tests.runtime.generate.toy import write as write_toy
from tests.tools.conftest import Cli
from trt_compress.errors import ConfigError
from trt_compress.export.bundle import update_bundle
from trt_compress.export.targets import TARGETS
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Lowered
from trt_compress.tools.cli.main import app
from trt_compress.tools.device import package as packing
from trt_compress.tools.device.devices import DEVICES

MakeBundle = Callable[..., Path]
BASE = "/usr/bin:/bin"
OF_THE_SYSTEM = {"sha256sum", "sudo", "cp", "systemctl", "nvpmodel", "jetson_clocks"}
ALL = tuple(dict.fromkeys(device.target for device in DEVICES.values()))


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    """A bundle for every device, and a file that JetPack 6 alone needs."""
    path = make_bundle("tiny")
    opened = Bundle.open(path)
    own = opened.read("model.onnx")
    sha256 = hashlib.sha256(own).hexdigest()
    form = Lowered(target="jetson-orin-jp6", file="lowered/jp6.onnx", lowering="plugin", sha256=sha256)
    update_bundle(opened, replace(opened.manifest, targets=ALL, lowered=(form,)), {"lowered/jp6.onnx": own})
    return path


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def typed_in(readme: str) -> Iterator[list[str]]:
    """The commands in the blocks of a README."""
    for block in re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE):
        yield from (line.split() for line in block.splitlines() if line)


@pytest.mark.parametrize("device", DEVICES)
def test_a_package_is_whole_and_says_its_hashes(cli: Cli, bundle: Path, tmp_path: Path, device: str) -> None:
    done = cli("package", bundle, "--for", device, "-o", "out", "--json")
    assert done.returncode == 0, done.stderr
    out, said = tmp_path / "out", json.loads(done.stdout)
    lines = [line.split("  ", 1) for line in (out / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} | {"SHA256SUMS"} == files_of(out)
    assert said["files"] == len(lines) + 1
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == sum_ for sum_, name in lines)
    packed = Bundle.open(out / "bundle")
    target = DEVICES[device].target
    assert packed.manifest.targets == (target,) and packed.manifest.digest == said["digest"]
    assert ("lowered/jp6.onnx" in packed.manifest.files) == (target == "jetson-orin-jp6")
    assert "model.onnx" in packed.manifest.files  # what ONNX Runtime runs there
    with tarfile.open(out / "source.tar.gz") as archive:
        names = set(archive.getnames())
    needed = ("plugins/CMakeLists.txt", "plugins/token_merge/kernel.cu", "runtime/cpp/include/trt_compress/runtime.h")
    assert {f"source/trt_compress/{name}" for name in needed} <= names
    assert {"headers/onnxruntime/onnxruntime_c_api.h", "headers/json/nlohmann/json.hpp"} <= names
    assert not [name for name in names if name.endswith((".safetensors", ".pyc", ".so", ".jsonl"))]
    assert json.loads((out / "package.json").read_text())["target"]["sms"] == list(TARGETS[target].sms)
    for program in ("build.sh", "run.sh", "trt-compress"):
        assert os.access(out / program, os.X_OK)
        subprocess.run(["sh", "-n", out / program], check=True)
        assert not set(re.findall(r"@([A-Z_]+)@", (out / program).read_text())) - {"HERE", "USER"}


@pytest.mark.parametrize("device", DEVICES)
def test_every_command_of_its_readme_exists(cli: Cli, bundle: Path, tmp_path: Path, device: str) -> None:
    assert cli("package", bundle, "--for", device, "-o", "out").returncode == 0
    out, target = tmp_path / "out", DEVICES[device].facts
    text = (out / "README.md").read_text()
    assert not re.search(r"@[A-Z_]+@", text)
    commands = list(typed_in(text))
    assert [words[0] for words in commands[:3]] == ["sha256sum", "./build.sh", "./run.sh"]
    for words in commands:
        for word in words:
            if word.startswith("./") and not word.startswith("./build/"):
                assert (out / word).is_file(), word
        assert words[0].startswith("./") or {words[0], words[1] if words[0] == "sudo" else words[0]} <= OF_THE_SYSTEM
    ours = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {word for word in re.findall(r"`\./trt-compress ([a-z]+)", text)} <= ours
    scripts = (out / "build.sh").read_text() + (out / "run.sh").read_text()
    assert {word for word in re.findall(r'trt-compress" ([a-z]+)', scripts)} <= ours
    if target.tensorrt_version:
        oldest, newest = target.tensorrt_version
        assert f"TensorRT from {oldest} to below {newest}, CUDA {target.cuda}, SM {target.sms[0]}." in text
        assert f'--cuda "{target.sms[0]}"' in scripts and f'--target "{target.name}"' in scripts
    else:
        assert '--cuda "none"' in scripts and "sudo nvpmodel" not in text


@pytest.mark.parametrize("device", DEVICES)
def test_a_jetson_builds_engines_and_runs_them(bundle: Path, tmp_path: Path, device: str) -> None:
    """What is run there is on the engines that `build.sh` makes, with a CUDA for Python as the device has."""
    out = packing.write_package(bundle, device=device, output=tmp_path / "out").path
    run, readme = (out / "run.sh").read_text(), (out / "README.md").read_text()
    needed = (out / "requirements.txt").read_text().split()
    facts = DEVICES[device].facts
    if not DEVICES[device].is_jetson:
        assert "--backend" not in run and "tensorrt" not in readme
        assert not [line for line in needed if line.startswith("cuda")]
        return
    build = (out / "build.sh").read_text()
    assert f'"$here/trt-compress" build "$here/bundle" --target "{facts.name}"' in build
    assert build.index("plugins build") < build.index('trt-compress" build') < build.index("trt-compress.service.in")
    assert '"$here/bundle" --backend tensorrt "$@"' in run and "ONNX Runtime" not in run
    assert 'Session.open("bundle", backend="tensorrt")' in readme and "in ONNX\nRuntime" not in readme
    assert "ExecStart=@HERE@/run.sh" in (out / "trt-compress.service.in").read_text()
    (cuda,) = [line for line in needed if line.startswith("cuda")]
    assert cuda == f"cuda-bindings>={facts.cuda},<{int(str(facts.cuda)[:2]) + 1}"


@pytest.mark.parametrize("kind", ["image", "text", "other"])
def test_each_kind_of_bundle_runs_on_engines(kind: str, tmp_path: Path) -> None:
    """A stream, a server, or a measurement: each with the words that the command line takes."""
    toy = write_toy(tmp_path / "b").manifest
    manifest = {
        "text": toy,
        "image": replace(toy, text=None, procedure=None, preprocess={"kind": "image", "input": "step.tokens"}),
        "other": replace(toy, text=None, procedure=None, preprocess={}),
    }[kind]
    words = {"text": "serve", "image": "run", "other": "bench"}
    for on_engines in (True, False):
        way = packing._way_of(manifest, on_engines=on_engines)
        last = way.command.splitlines()[-1]
        assert ("--backend tensorrt" in last) == on_engines
        if on_engines:
            assert last.startswith(f'exec "$here/trt-compress" {words[kind]} "$here/bundle"')
            (option,) = [
                one
                for one in get_command(app).commands[words[kind]].params  # type: ignore[attr-defined]
                if "--backend" in one.opts
            ]
            assert "tensorrt" in f"{option.help}{option.metavar}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tiny", "--for", "jetson-nano"), "device 'jetson-nano' is not known; there are jetson-orin-jp6"),
        (("tiny", "--for", "x86-trt10"), "device 'x86-trt10' is not known"),
        (("no", "--for", "linux-x86_64"), "'no' does not exist"),
        (("other", "--for", "jetson-thor"), "was exported for cpu, and jetson-thor runs what is exported for"),
        (("tiny", "--for", "linux-x86_64", "--require-digest", "0" * 64), "is required; it is another bundle"),
        (("tiny", "--for", "linux-x86_64", "--onnxruntime", "tiny"), "'tiny' has no onnxruntime_c_api.h"),
    ],
)
def test_what_is_wrong_is_said(
    cli: Cli, bundle: Path, make_bundle: MakeBundle, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    other = Bundle.open(make_bundle("other"))
    update_bundle(other, replace(other.manifest, targets=("cpu",)), {})
    before = sorted(os.listdir(tmp_path))
    done = cli("package", *arguments, "-o", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_force_replaces_a_package_and_nothing_else(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    package = ("package", bundle, "--for", "linux-x86_64", "-o")
    assert "is not a package, so --force does not replace it" in cli(*package, "photos", "--force").stderr
    assert "holds only what its manifest lists" in cli(*package, bundle / "out").stderr
    assert "is not a package, so --force does not replace it" in cli(*package, bundle, "--force").stderr
    assert cli(*package, "out").returncode == 0
    assert "use --force to replace it" in cli(*package, "out").stderr
    (tmp_path / "out" / "old").touch()
    assert cli(*package, "out", "--force").returncode == 0
    assert not (tmp_path / "out" / "old").exists()
    assert {name.name for name in tmp_path.iterdir()} == {"photos", "tiny", "out"}


def test_a_package_that_cannot_be_written_leaves_the_old_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    packing.write_package(bundle, device="linux-x86_64", output=out)
    before = {name: (out / name).read_bytes() for name in files_of(out)}
    put, left = packing._put, 3

    def full(target: Path, content: bytes) -> str:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        return put(target, content)

    monkeypatch.setattr(packing, "_put", full)
    with pytest.raises(ConfigError, match="cannot be written \\(No space left on device\\).* Nothing was changed"):
        packing.write_package(bundle, device="jetson-thor", output=out, force=True)
    assert {name: (out / name).read_bytes() for name in files_of(out)} == before
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "out"}


# ---- on the device ---------------------------------------------------------------------------------------------------


def on_device(
    folder: Path, *command: str, path: str = BASE, home: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run something there with nothing but a path and a home."""
    variables: Mapping[str, str] = {"PATH": path, "HOME": str(home or folder)}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=3600)


def test_the_scripts_say_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    packing.write_package(bundle, device="jetson-orin-jp6", output=out)
    fake = tmp_path / "fake"
    fake.mkdir()
    for name, text in {
        "uname": 'case "$1" in -s) echo Linux ;; *) echo aarch64 ;; esac',
        "python3": "",
        "c++": "",
    }.items():
        (fake / name).write_text(f"#!/bin/sh\n{text}\n")
        (fake / name).chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "id"):
        (tools / name).symlink_to(shutil.which(name, path=BASE) or "")

    def said(*command: str, path: str = BASE, folder: Path = out) -> str:
        done = on_device(folder, *command, path=path)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
        return done.stderr

    assert "run ./build.sh" in said("./run.sh") and "run ./build.sh" in said("./trt-compress", "doctor")
    assert "'--fast' is not known" in said("./build.sh", "--fast")
    assert "--wheels no is no folder" in said("./build.sh", "--wheels", "no")
    assert "this package is for Linux aarch64, and this is Linux" in said("./build.sh")
    assert "'cmake' is not on the path; apt install cmake." in said("./build.sh", path=f"{fake}:{tools}")
    odd = tmp_path / "a b"
    shutil.copytree(out, odd)
    assert "has characters that a systemd unit does not take" in said("./build.sh", folder=odd)
    assert "env" not in os.listdir(out)


@pytest.mark.slow
def test_a_package_builds_and_runs_where_it_is_unpacked(
    exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the system's own programs and a network; out of the archive that is copied, in a folder that is new."""
    missing = [name for name in ("cmake", "c++", "python3", "tar", "sha256sum") if not shutil.which(name, path=BASE)]
    if missing or sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip(f"this is no Linux x86_64 with {', '.join(missing) or 'its programs'}")
    made, device = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("device")
    device.chmod(0o755)
    out = packing.write_package(exported(), device="linux-x86_64", output=made / "app").path
    archive = subprocess.run(["tar", "c", "-C", made, "app"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", device], input=archive, check=True)
    shutil.rmtree(out)
    here, home = device / "app", device / "home"
    home.mkdir()
    for words in list(typed_in((here / "README.md").read_text()))[:2]:
        done = on_device(here, *words, home=home)
        if "cannot be installed; connect the device to a network" in done.stderr:
            pytest.skip("there is no network to install Python's packages from")
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr}"
    assert os.listdir(home) == []
    code = "from PIL import Image\nfor at in range(3): Image.new('L', (8, 8), at * 80).save(f'{at}.png')"
    assert on_device(here, "env/bin/python", "-c", code, home=home).returncode == 0
    done = on_device(here, "./run.sh", "--source", "*.png", "--warmup", "1", "--json", home=home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["counts"]["delivered"] == 3 and "trt-compress" in done.stdout
    (in_c,) = (
        words for words in typed_in((here / "README.md").read_text()) if words[0] == "./build/runtime/run_bundle"
    )
    assert "logits begins with" in on_device(here, *in_c, home=home).stdout
    unit = (here / "build" / "trt-compress.service").read_text()
    assert f"ExecStart={here}/run.sh\n" in unit and "@" not in unit
    if shutil.which("systemd-analyze"):
        checked = on_device(here, "systemd-analyze", "verify", "build/trt-compress.service", home=home)
        assert str(here) not in checked.stderr, checked.stderr
