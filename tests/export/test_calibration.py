"""Artifacts from end to end: calibrated from data, carried by a bundle, refused for anything else."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from trt_compress.errors import ConfigError
from trt_compress.export import api
from trt_compress.export.bundle import write_bundle
from trt_compress.export.calibration import calibrate
from trt_compress.export.calibration_data import ArchiveData
from trt_compress.format.bundle import Bundle
from trt_compress.methods import CompressorSpec, parse_spec
from trt_compress.models.calibrate.observe import WatchedHost
from trt_compress.models.compressors.sites import Placement, Tap
from trt_compress.models.hosts.registry import load_host
from trt_compress.tools.cli.main import app

MODEL, SPEC = "zoo:keyword_spotter", "frame_stack:stride=2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded sound, and the projector that was calibrated with it."""
    path = tmp_path_factory.mktemp("calibrated")
    generator = np.random.default_rng(5)
    loudness = generator.uniform(0.01, 0.3, (40, 16000 // 800, 1))
    sound = (generator.standard_normal((40, 16000 // 800, 800)) * loudness).reshape(40, 16000).astype(np.float32)
    np.savez_compressed(path / "sound.npz", audio=sound, label=np.zeros(40, np.int64))
    calibrate(MODEL, compress=SPEC, data=path / "sound.npz", output=path / "p.safetensors", license="CC0-1.0")
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    spec = f"{SPEC},projector={folder / 'p.safetensors'}"
    made = api.export_model(MODEL, compress=spec, output=folder / "bundle", batch="1").path
    assert made is not None
    return made


def said(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 2 and done.stdout == "", done.output
    error = done.stderr.strip()
    assert error.startswith("error: ") and "\n" not in error, error
    return error


def frames_of(sound: Path) -> torch.Tensor:
    """Stacked frames of the model without methods, [samples, 25, 2 C], in float64."""
    model: Any = load_host(MODEL).module
    with torch.no_grad():
        x = model.embed(torch.from_numpy(np.load(sound)["audio"]))
        for layer in model.encoder.stack:
            x = x + layer.attend(x)[0]
            x = x + layer.feed(x)
        return model.encoder.finish(x).double().reshape(len(x), 25, -1)


def test_the_projector_is_what_principal_components_are(folder: Path) -> None:
    """Against numpy's SVD of the frames themselves."""
    with safe_open(folder / "p.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        card = file.metadata()
    stacks = frames_of(folder / "sound.npz").numpy()
    held_out = np.arange(40) % 5 == 4
    fit, judged = stacks[~held_out].reshape(-1, stacks.shape[2]), stacks[held_out].reshape(-1, stacks.shape[2])
    mean = fit.mean(axis=0)
    _, _, rows = np.linalg.svd(fit - mean, full_matrices=False)
    basis = rows[: stacks.shape[2] // 2]
    kept = np.square((judged - mean) @ basis.T).sum() / np.square(judged - mean).sum()
    score = json.loads(card["score"])
    assert score["variance_kept"] == pytest.approx(kept, abs=1e-6)
    assert 0 < score["variance_kept_by_mean"] < score["variance_kept"] < 1
    tensors = load_file(folder / "p.safetensors")
    weight = tensors["linear1.weight"].double().numpy()
    np.testing.assert_allclose(weight @ weight.T, np.eye(len(weight)) / 2, atol=1e-6)  # an orthonormal basis / sqrt 2
    np.testing.assert_allclose(weight @ basis.T @ basis, weight, atol=1e-5)  # of the same space
    frames = stacks.reshape(-1, 2, len(weight)).mean(axis=1)
    projected = stacks.reshape(-1, 2 * len(weight)) @ weight.T + tensors["linear1.bias"].numpy()
    assert np.corrcoef(projected.ravel(), frames.ravel())[0, 1] > 0.9  # turned towards the mean of the frames
    assert (card["data"], card["data_count"], card["license"]) == ("sound.npz", "40", "CC0-1.0")


def test_the_same_data_make_the_same_file(folder: Path, tmp_path: Path) -> None:
    calibrate(MODEL, compress=SPEC, data=folder / "sound.npz", output=tmp_path / "q", license="CC0-1.0")
    assert (tmp_path / "q").read_bytes() == (folder / "p.safetensors").read_bytes()


def test_a_bundle_carries_its_artifact(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "artifacts/frame_stack.projector.safetensors"
    manifest = Bundle.open(bundle).manifest
    assert manifest.files[name].bytes == (bundle / name).stat().st_size
    assert manifest.compression[0].config["projector"] == manifest.recipe["compressors"][0]["projector"] == name
    text = (bundle / "manifest.json").read_text() + (bundle / "recipe.toml").read_text()
    assert str(bundle.parent) not in text
    moved = Path(shutil.move(shutil.copytree(bundle, tmp_path / "first"), tmp_path / "moved"))
    monkeypatch.chdir("/")
    assert api.verify(moved).passed
    again = api.export_model(str(moved / "recipe.toml"), output=tmp_path / "again").path
    assert again is not None
    assert (again / name).read_bytes() == (bundle / name).read_bytes()


def test_inspect_shows_what_an_artifact_was_made_for(bundle: Path, folder: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert shown.exit_code == 0, shown.output
    card = shown.stdout.partition("Artifact artifacts/frame_stack.projector.safetensors")[2]
    said_of = {line.split()[0]: " ".join(line.split()[1:]) for line in card.splitlines() if line.strip()}
    assert said_of["for"] == "frame_stack, option projector, form 1, stride=2"
    assert said_of["data"].startswith("sound.npz (40 samples), sha256 ") and said_of["license"] == "CC0-1.0"
    found = json.loads(CliRunner().invoke(app, ["inspect", str(bundle), "--json"]).stdout)["artifacts"]
    with safe_open(folder / "p.safetensors", framework="pt") as file:
        assert found == {"artifacts/frame_stack.projector.safetensors": file.metadata()}
    assert said_of["sha256"] == next(iter(found.values()))["content_sha256"]


@pytest.mark.parametrize(
    "named", ["/etc/hostname", "artifacts/../../p.safetensors", "../p.safetensors", "artifacts/other.safetensors"]
)
def test_a_recipe_of_a_bundle_names_no_file_outside(bundle: Path, tmp_path: Path, named: str) -> None:
    opened = Bundle.open(bundle)
    compressors = [{**opened.manifest.recipe["compressors"][0], "projector": named}]
    wanted = replace(opened.manifest, recipe={**opened.manifest.recipe, "compressors": compressors})
    files: dict[str, bytes | Path] = {name: opened.file(name) for name in opened.manifest.files}
    toml = opened.read("recipe.toml").decode().replace("artifacts/frame_stack.projector.safetensors", named)
    shutil.copy(bundle / "artifacts" / "frame_stack.projector.safetensors", tmp_path / "p.safetensors")
    theirs = write_bundle(tmp_path / "theirs", wanted, {**files, "recipe.toml": toml.encode()}).path
    for command in (("verify", theirs), ("export", theirs / "recipe.toml", "-o", tmp_path / "out")):
        assert "of frame_stack, no file of the bundle; a bundle may be a stranger's" in said(*command)


def test_any_changed_byte_is_noticed(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "p.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little")
    places = [0, 7, 8, 9, *range(10, 8 + header, 37), 8 + header - 1, 8 + header, len(whole) - 1]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1
        (tmp_path / "p").write_bytes(content)
        with pytest.raises(ConfigError, match=r"^frame_stack: projector .*/p (was|cannot|holds)"):
            parse_spec(f"{SPEC},projector={tmp_path / 'p'}")[0].read()
    for content in (whole[:-1], whole + b"\0", whole[: header // 2], b""):
        (tmp_path / "p").write_bytes(content)
        with pytest.raises(ConfigError, match=r"^frame_stack: projector .*/p (was|cannot)"):
            parse_spec(f"{SPEC},projector={tmp_path / 'p'}")[0].read()


def test_what_it_was_not_made_for_is_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "p.safetensors"
    out = ("-o", tmp_path / "out")
    export = ("export", "zoo:keyword_mome", "--compress", f"{SPEC},projector={file}", *out)
    assert "was made for other weights than these: for keyword_spotter.safetensors (sha256 " in said(*export)
    with pytest.raises(ConfigError, match="was made for other weights than these"):
        load_host("zoo:keyword_mome").attach(parse_spec(f"{SPEC},projector={file}"))
    export = ("export", MODEL, "--compress", f"frame_stack:stride=5,projector={file}", *out)
    assert "was made for stride=2, and stride=5 is given" in said(*export)
    save_file({"linear1.weight": torch.zeros(2, 2)}, tmp_path / "raw.safetensors")
    export = ("export", MODEL, "--compress", f"{SPEC},projector={tmp_path / 'raw.safetensors'}", *out)
    assert "holds tensors without saying what they were made for; make an artifact of them with" in said(*export)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_calibrated_is_said(folder: Path, tmp_path: Path) -> None:
    data, out = ("--data", folder / "sound.npz"), ("-o", tmp_path / "a")
    start = ("calibrate", MODEL, "--compress")
    refused = said(*start, "tome:num_merged=1", *data, *out)
    assert "tome takes no artifact; methods that take one are " in refused and "frame_stack (projector)" in refused
    given = f"{SPEC},projector={folder / 'p.safetensors'}"
    assert "every artifact is given already" in said(*start, given, *data, *out)
    assert "give --data FILE.npz to calibrate with, or --tensors FILE" in said(*start, SPEC, *out)
    assert "not both" in said(*start, SPEC, *data, "--tensors", folder / "p.safetensors", *out)
    assert "is the data itself" in said(*start, SPEC, *data, "-o", folder / "sound.npz")
    for arrays, message in (
        ({"sound": np.zeros((9, 16000), np.float32)}, "has sound; it must hold 'audio', float32 [samples, 16000]"),
        ({"audio": np.zeros((9, 16000))}, "'audio' is float64 [9, 16000]; it must be float32 [samples, 16000]"),
        ({"audio": np.zeros((4, 16000), np.float32)}, "holds 4 samples; give 5 or more"),
        ({"audio": np.full((9, 16000), np.nan, np.float32)}, "'audio' holds NaN or infinity"),
        ({"audio": np.zeros((5, 16000), np.float32)}, "stacks of frames are too few to calibrate a projector for"),
    ):
        np.savez(tmp_path / "d.npz", **cast(Any, arrays))
        assert message in said(*start, "frame_stack", "--data", tmp_path / "d.npz", *out)
    assert not (tmp_path / "a").exists()


def test_tensors_trained_elsewhere_become_an_artifact(folder: Path, tmp_path: Path) -> None:
    width = cast(int, load_host(MODEL).module.width)
    shapes = {"linear1": (16, 2 * width), "linear2": (width, 16)}
    prefix = "model.speech_projector."
    tensors = {f"{prefix}{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    tensors |= {f"{prefix}{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    save_file(tensors | {"model.other": torch.zeros(1)}, tmp_path / "trained.safetensors")
    made = calibrate(MODEL, compress=SPEC, tensors=tmp_path / "trained.safetensors", output=tmp_path / "a")
    assert (made.card.data, made.card.data_count, made.card.score) == ("trained.safetensors", 0, {})
    (graph,) = load_host(MODEL).attach(parse_spec(f"{SPEC},projector={tmp_path / 'a'}"))
    projector: Any = graph.module.get_submodule("placed._steps.encoder_output.0.projector")
    torch.testing.assert_close(projector.linear2.weight.detach(), tensors[f"{prefix}linear2.weight"])


def test_data_stream_and_methods_see_what_passes(folder: Path, tmp_path: Path) -> None:
    """Batches begin anew each time, every fifth sample is apart, and taps of any layer come along."""
    host = load_host(MODEL)
    specs = parse_spec("frame_pool:stride=5,layer=3+tome:num_merged=1")
    watched = WatchedHost(host, specs, 0)
    data = ArchiveData(folder / "sound.npz", watched.graphs())
    parts = data.parts()
    assert [[len(batch["audio"]) for batch in part] for part in (parts.fit, parts.held_out)] == [[8] * 4, [2] * 4]
    assert data.count == 40 and data.num_held_out == 8

    def gathered() -> Iterator[torch.Tensor]:
        taps = (Tap(kind="keys", layer=1), Tap(kind="keys", layer=2))
        at = (Placement(kind="after_attention", layers=(2,)),)
        for seen in watched.observe(parts.fit, placements=at, taps=taps):
            (passing,) = seen.values()
            assert passing.arrival.site.address == "blocks.2" and passing.tokens.x.shape[1] == 48
            yield passing.taps.of("keys", 1)

    first, second = torch.cat([*gathered()]), torch.cat([*gathered()])
    assert torch.equal(first, second) and first.shape[:2] == (32, 49)
    (dense,) = WatchedHost(host, parse_spec("frame_pool"), 0).outputs([next(iter(parts.fit))])
    (pooled,) = WatchedHost(host, parse_spec("frame_pool"), 0).outputs(
        [next(iter(parts.fit))], parse_spec("frame_pool:stride=10")[0].config
    )
    assert dense.keys() == pooled.keys() == {"model.logits"}
    assert not torch.equal(dense["model.logits"], pooled["model.logits"])
    data.close()
    opened = ArchiveData(folder / "sound.npz", watched.graphs())
    (folder / "sound.npz").touch()
    with pytest.raises(ConfigError, match="was changed while it was read"):
        opened.close()


def test_a_model_with_states_is_watched_step_by_step(tmp_path: Path) -> None:
    host = load_host("zoo:keyword_stream")
    chunks = np.random.default_rng(0).standard_normal((5, 3, 3200)).astype(np.float32)
    np.savez(tmp_path / "d.npz", audio=chunks)
    spec: CompressorSpec = parse_spec("frame_stack:stride=5")[0]
    watched = WatchedHost(host, [spec], 0)
    with contextlib.closing(ArchiveData(tmp_path / "d.npz", watched.graphs())) as data:
        seen: list[Mapping[str, Any]] = list(watched.observe(data.parts().fit))
    assert [one["encoder_output"].tokens.x.shape[:2] for one in seen] == [(4, 10)] * 3
    (graph,) = host.attach(())
    states = [torch.zeros([4 if dim == "batch" else int(dim) for dim in s.shape], dtype=getattr(torch, s.dtype))
              for s in graph.states]  # fmt: skip
    assert watched.info.num_tokens == 10
    with torch.no_grad():
        _, *states = graph.module(torch.from_numpy(chunks[:4, 0]), *states)
        logits, *_ = graph.module(torch.from_numpy(chunks[:4, 1]), *states)
    kept = watched.outputs([{"audio": chunks[:4]}])
    next(kept)
    torch.testing.assert_close(next(kept)["model.logits"], logits)
