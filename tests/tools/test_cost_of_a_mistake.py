"""A mistake is said before anything heavy is loaded: under 1 s of CPU and 100 MB, and nothing is left behind.

That second is one of a machine on which Python adds a million numbers in 30 ms. A slower one, or one whose core does
something else besides, has as much longer as it takes for them.
"""

import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.small_bundle import write_small
from tests.typed_commands import LIGHT, Typed

MOST_SECONDS, MOST_MIB = 1.0, 100.0
SECONDS_A_MILLION = 0.03  # of CPU, for as many additions
HEAVY = ("torch", "timm", "onnx", "onnxscript", "transformers", "onnxruntime", "safetensors", "scipy", "sklearn", "av")
EXPORT = ("export", "zoo:digits_vit", "-o", "out")
TUNE = ("tune", "zoo:digits_vit", "-o", "out")
RUN = ("run", "bundle", "--source", "frames/*.png")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "source of a model": (("export", "digits_vit", "-o", "out"), "model 'digits_vit' is not known"),
    "zoo": (("export", "zoo:digit_vit", "-o", "out"), "model 'zoo:digit_vit' is not known; there are zoo:digits_vit"),
    "timm": (("export", "timm:vit_tiny_patch16_225", "-o", "out"), "Did you mean 'vit_tiny_patch16_224'?"),
    "timm, nothing like it": (("export", "timm:zebra", "-o", "out"), "model 'timm:zebra' is not known to timm"),
    "timm, weights": (("export", "timm:vit_tiny_patch16_224.nope", "-o", "out"), "knows no weights 'nope'"),
    "timm, of another kind": (("export", "timm:resnet18", "-o", "out"), "timm.models.resnet is not supported"),
    "timm, refused by name": (("export", "timm:vit_base_patch16_siglip_224", "-o", "out"), "global_pool='map' is not"),
    "timm, option": (("export", "timm:vit_tiny_patch16_224?classes=3", "-o", "out"), "'classes' is not known"),
    "hf": (("export", "hf:nowhere", "-o", "out"), "/nowhere: config.json cannot be read"),
    "hf, type": (("export", "hf:gpt", "-o", "out"), "/gpt: model_type 'gpt9' is not supported"),
    "codec": (("export", "wavtokenizer:no.ckpt", "-o", "out"), "no.ckpt cannot be read (No such file"),
    "own file": (("export", "no.py:make", "-o", "out"), "/no.py: the file cannot be read"),
    "compressor": ((*EXPORT, "--compress", "tomee:num_merged=4"), "compressor 'tomee' is not known; there are tome"),
    "option": ((*EXPORT, "--compress", "tome:num_mergd=4"), "Did you mean 'num_merged'?"),
    "value": ((*EXPORT, "--compress", "evit:keep_ratio=1.5"), "evit: keep_ratio=1.5 is out of range"),
    "layers": ((*EXPORT, "--compress", "evit:layers=[6,3]"), "evit: layers=[6, 3] does not ascend"),
    "projector": ((*EXPORT, "--compress", "frame_stack:projector=no.pt"), "no.pt cannot be read (No such"),
    "target": ((*EXPORT, "--target", "jetson-orin"), "target 'jetson-orin' is not known; there are cpu"),
    "precision": ((*EXPORT, "--precision", "FP12"), "precision 'fp12' is not known; there are fp32, fp16, bf16, int8."),
    "opset": ((*EXPORT, "--opset", "99"), "opset 99 is out of range; cpu takes 18 to 21."),
    "weights": ((*EXPORT, "--weights", "no.pt"), "no.pt cannot be read (No such file"),
    "weights, a folder": ((*EXPORT, "--weights", "frames"), "frames cannot be read (Is a directory)"),
    "weights, a text": ((*EXPORT, "--weights", "long.toml"), "PyTorch checkpoint of tensors (it is a text file)"),
    "weights, an archive": ((*EXPORT, "--weights", "a.zip"), "PyTorch checkpoint of tensors (it is a zip archive)"),
    "weights, GGUF": ((*EXPORT, "--weights", "a.gguf"), "PyTorch checkpoint of tensors (it is a GGUF file)"),
    "weights of timm": ((*EXPORT, "--weights", "pretrained"), "'pretrained' downloads what timm has"),
    "recipe": (("export", "no.toml", "-o", "out"), "recipe no.toml cannot be read"),
    "recipe, a number without end": (("export", "long.toml", "-o", "out"), "recipe long.toml is not valid TOML"),
    "recipe, precision": (("export", "half.toml", "-o", "out"), "precision 'half' is not known"),
    "output is there": (("export", "zoo:digits_vit", "-o", "frames"), "The output directory 'frames' exists"),
    "output nowhere": (("export", "zoo:digits_vit", "-o", "/proc/out"), "The bundle '/proc/out' cannot be written"),
    "output in a file": (("export", "zoo:digits_vit", "-o", "long.toml/out"), "cannot be written"),
    "output, too long a name": (("export", "zoo:digits_vit", "-o", "x" * 300), "File name too long"),
    "build, target": (("build", "bundle", "--target", "rtxx"), "Did you mean 'rtx'?"),
    "build, no engine": (("build", "bundle", "--target", "cpu"), "target 'cpu' runs the ONNX file itself"),
    "build, bundle": (("build", "no", "--target", "rtx"), "'no' does not exist"),
    "build, module": (("build", "bundle", "--target", "x86-trt10"), "needs the Python module 'tensorrt'"),
    "package, device": (("package", "bundle", "--for", "jetson", "-o", "out"), "device 'jetson' is not known"),
    "package, bundle": (("package", "no", "--for", "jetson-thor", "-o", "out"), "'no' does not exist"),
    "package, output": (("package", "bundle", "--for", "jetson-thor", "-o", "frames"), "The output directory 'frames'"),
    "preflight, target": (("preflight", "bundle", "--target", "gpu"), "target 'gpu' is not known"),
    "verify, bundle": (("verify", "no"), "'no' does not exist"),
    "verify, native": (("verify", "bundle", "--native"), "are not built for this version of the sources"),
    "bench, bundle": (("bench", "no"), "'no' does not exist"),
    "bench, backend": (("bench", "bundle", "--backend", "cpu"), "backend 'cpu' is not known"),
    "bench, graph": (("bench", "bundle", "--graph", "x"), "no graph 'x'"),
    "bench, baseline": (("bench", "bundle", "--baseline", "no"), "'no' does not exist"),
    "bench, pairs": (("bench", "bundle", "--pairs", "0"), "pairs=0"),
    "bench, seed": (("bench", "bundle", "--seed", "-1"), "seed=-1"),
    "bench, inputs": (("bench", "bundle", "--inputs", "no.npz"), "'no.npz' does not exist"),
    "bench, no archive": (("bench", "bundle", "--inputs", "long.toml"), "'long.toml' is not a readable .npz file"),
    "bench, json nowhere": (("bench", "bundle", "--json", "no/a.json"), "'no/a.json' cannot be written"),
    "bench, json a folder": (("bench", "bundle", "--json", "frames"), "'frames' cannot be written (Is a directory)"),
    "bench, json over the bundle": (
        ("bench", "bundle", "--json", "bundle/manifest.json"),
        "--json bundle/manifest.json is a file of the bundle itself",
    ),
    "bench, native": (("bench", "bundle", "--native"), "are not built for this version of the sources"),
    "evaluate, data": (("evaluate", "bundle"), "No data is given"),
    "evaluate, no such data": (("evaluate", "bundle", "--data", "no"), "--data: 'no' is not there"),
    "evaluate, bundle": (("evaluate", "no", "--data", "frames"), "'no' does not exist"),
    "evaluate, baseline": (("evaluate", "bundle", "--data", "frames", "--baseline", "no"), "'no' does not exist"),
    "evaluate, graph": (("evaluate", "bundle", "--data", "frames", "--graph", "x"), "no graph 'x'"),
    "evaluate, backend": (("evaluate", "bundle", "--data", "frames", "--backend", "cpu"), "backend 'cpu' is not known"),
    "evaluate, held-out": (("evaluate", "bundle", "--data", "held-out"), "'zoo:tiny' has no held-out data"),
    "evaluate, budget": (("evaluate", "bundle", "--data", "frames", "--budget", "acc>=1"), "metric 'acc' is not known"),
    "evaluate, over the data": (("evaluate", "bundle", "--data", "frames", "--json", "frames/0.png"), "--data itself"),
    "evaluate, over the bundle": (
        ("evaluate", "bundle", "--data", "frames", "--json", "bundle/manifest.json"),
        "--json bundle/manifest.json is a file of the bundle itself",
    ),
    "sweep, model": (("sweep", "zoo:digit_vit", "--data", "frames"), "model 'zoo:digit_vit' is not known"),
    "sweep, range": (("sweep", "zoo:digits_vit", "--data", "frames", "--compress", "evit:fuse=|"), "an empty value"),
    "sweep, option": (("sweep", "zoo:digits_vit", "--data", "frames", "--compress", "tome:num=1|2"), "option 'num'"),
    "sweep, precision": (("sweep", "zoo:digits_vit", "--data", "frames", "--precision", "FP12"), "precision 'fp12'"),
    "sweep, rounds": (("sweep", "zoo:digits_vit", "--data", "frames", "--rounds", "0"), "rounds=0"),
    "sweep, loss": (("sweep", "zoo:digits_vit", "--data", "frames", "--max-drop", "-1"), "max_drop=-1"),
    "sweep, page": (("sweep", "zoo:digits_vit", "--data", "frames", "--html", "no/a.html"), "another file to --html"),
    "sweep, folder": (("sweep", "zoo:digits_vit", "--data", "frames", "-o", "/proc/a"), "another folder to -o"),
    "tune, model": (("tune", "zoo:digit_vit", "-o", "out"), "model 'zoo:digit_vit' is not known"),
    "tune, method": ((*TUNE, "--compress", "tomee"), "compressor 'tomee' is not known; there are tome"),
    "tune, no schedule": ((*TUNE, "--compress", "avg_pool"), "it has no count for each layer that could be searched"),
    "tune, set": ((*TUNE, "--compress", "tome:num_merged=4"), "tune finds num_merged itself; give 'tome' alone"),
    "tune, several in one": ((*TUNE, "--compress", "tome+evit"), "repeat --compress"),
    "tune, floor": ((*TUNE, "--compress", "random"), "is measured beside every setting anyway"),
    "tune, budget": ((*TUNE, "--budget", "p95_ms<20"), "The budget has the part 'p95_ms<20'"),
    "tune, metric": ((*TUNE, "--budget", "p95ms<=20"), "Did you mean 'p95_ms'?"),
    "tune, percentile": ((*TUNE, "--budget", "p95_ms<=20", "--rounds", "64"), "p95_ms, which takes 130"),
    "tune, gain": ((*TUNE, "--min-gain", "0.9"), "min_gain=0.9; give 1 or more"),
    "tune, trials": ((*TUNE, "--trials", "0"), "trials=0; give at least 1"),
    "tune, precision": ((*TUNE, "--precision", "fp32,fp12"), "precision 'fp12' is not known"),
    "tune, samples": ((*TUNE, "--precision", "fp32,int8"), "samples"),
    "tune, form of int8": ((*TUNE, "--int8", "dynamic"), "--int8 is for precision int8, and int8 is not among the"),
    "tune, kept layers": ((*TUNE, "--keep-precision", "auto"), "give --precision fp32,int8, or leave it out"),
    "tune, rest of int8": ((*TUNE, "--int8-rest", "fp16"), "--int8-rest is for precision int8"),
    "tune, share of int8": ((*TUNE, "--int8-share", "0.5"), "--int8-share is for precision int8"),
    "tune, calibration": ((*TUNE, "--calibrate", "frames"), "--calibrate is for precision int8"),
    "tune, bits": ((*TUNE, "--weights-bits", "3"), "weights_bits"),
    "tune, two quantizers": (
        (*TUNE, "--weights-bits", "8", "--precision", "fp32,int8", "--int8", "dynamic"),
        "both quantize the weights of linear layers",
    ),
    "tune, a folder of something else": (("tune", "zoo:digits_vit", "-o", "."), "'bundle' is there and of no tuning"),
    "tune, data": ((*TUNE, "--data", "no"), "'no' is not there; give a folder"),
    "tune, no data": (("tune", "timm:vit_tiny_patch16_224", "-o", "out"), "No data is given; write --data DIR"),
    "tune, folder": (("tune", "zoo:digits_vit", "-o", "/proc/a"), "another folder to -o"),
    "run, bundle": (("run", "no", "--source", "frames/*.png"), "'no' does not exist"),
    "run, source": (("run", "bundle", "--source", "no.mp4"), "The source 'no.mp4' does not exist"),
    "run, pattern": (("run", "bundle", "--source", "no/*.png"), "Nothing matches 'no/*.png'"),
    "run, power": ((*RUN, "--power", "volts"), "power reader 'volts' is not known"),
    "run, policy": ((*RUN, "--policy", "newest"), "policy 'newest' is not known"),
    "run, labels": ((*RUN, "--labels", "no.jsonl"), "'no.jsonl' cannot be read"),
    "run, out": ((*RUN, "--out", "no/a.jsonl"), "'no/a.jsonl' cannot be written"),
    "run, out over the source": ((*RUN, "--out", "frames/0.png"), "--out frames/0.png is the source itself"),
    "run, overlay": ((*RUN, "--overlay", "a.wav"), "--overlay a.wav: the bundle gives no sound"),
    "run, two outputs in one": ((*RUN, "--out", "a.mp4", "--overlay", "a.mp4"), "is the file of --out itself"),
    "run, report": ((*RUN, "--report", "/proc/a"), "'/proc/a' cannot be written"),
    "run, report in a file": ((*RUN, "--report", "long.toml"), "'long.toml' cannot be written"),
    "run, level": ((*RUN, "--adapt", "--level", "no", "--deadline-ms", "9"), "'no' does not exist"),
    "run, native": (("run", "bundle", "--source", "scene.npz", "--native"), "not built for this version of the"),
    "scene, output": (("scene", "made:1", "--bundle", "bundle", "-o", "no/a.npz"), "'no/a.npz' cannot be written"),
    "sample, kind": (("sample", "videos", "-o", "out"), "Did you mean 'video'?"),
    "sample, output": (("sample", "video", "-o", "/proc/out"), "'/proc/out' cannot be written"),
    "compare": (("compare", "no.json"), "no.json"),
    "list": (("list", "compressor"), "Did you mean 'compressors'?"),
}  # fmt: skip


def slowness() -> float:
    """How many times as long as there this machine takes now, 1 at least."""
    began, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return max(1.0, (time.process_time() - began) / SECONDS_A_MILLION)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Typed, float]]:
    """A process in which only the command line is loaded, and the seconds that takes on the machine of the limit."""
    slow = slowness()
    with Typed(tmp_path_factory.mktemp("light"), loaded=LIGHT) as typed:
        started = typed("--version").started
        yield typed, started / max(slow, slowness())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mistakes")


@pytest.fixture
def filled(place: Path) -> Path:
    """A folder with a bundle, a picture and files that are none of what they should be, made once."""
    if not (place / "frames").exists():
        write_small(place / "bundle", "picture")
        (place / "frames").mkdir()
        (place / "frames" / "0.png").write_bytes(b"no picture")
        (place / "scene.npz").write_bytes(b"no scene")
        (place / "long.toml").write_text(f"opset = {'9' * 5000}\n")
        (place / "half.toml").write_text('model = "zoo:digits_vit"\nprecision = "half"\n')
        with zipfile.ZipFile(place / "a.zip", "w") as archive:
            archive.writestr("notes.txt", "none")
        (place / "a.gguf").write_bytes(b"GGUF\x03\0\0\0")
        (place / "gpt").mkdir()
        (place / "gpt" / "config.json").write_text('{"model_type": "gpt9"}')
    return place


def within(costs: list[tuple[float, float]]) -> bool:
    """Whether one of these seconds and MiB is what a mistake may cost."""
    return any(seconds < MOST_SECONDS and mib < MOST_MIB for seconds, mib in costs)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_little(mistake: str, filled: Path, tmp_path: Path, light: tuple[Typed, float]) -> None:
    (arguments, message), (typed, started) = MISTAKES[mistake], light
    before = sorted(filled.rglob("*"))
    costs: list[tuple[float, float]] = []
    while len(costs) < 3 and not within(costs):  # what else the machine does only adds to it: the least of three counts
        slow = slowness()
        done = typed(*arguments, folder=filled, variables={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")})
        assert message in done.err and len(done.err.splitlines()) <= 2, done.err
        assert (done.code, {*HEAVY} & {*done.loaded}, done.out) == (2, set(), "")
        assert "typer" in done.loaded and done.started > 0.02 and done.peak_mib > 10, "nothing was measured"
        costs.append((started + done.busy / max(slow, slowness()), done.peak_mib))
    assert within(costs), costs
    assert sorted(filled.rglob("*")) == before and not (tmp_path / "cache").exists()
