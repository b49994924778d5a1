"""What a bundle's recipe may name: a bundle is a stranger's until the user says that it is not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trt_compress.errors import ConfigError
from trt_compress.export import api
from trt_compress.export.bundle import write_bundle
from trt_compress.export.recipe import Recipe
from trt_compress.export.trust import refuse_paths
from trt_compress.format.bundle import Bundle
from trt_compress.methods import parse_spec
from trt_compress.models.hosts import timm_download
from trt_compress.models.zoo.digits_vit.model import WEIGHTS_FILE
from trt_compress.tools.cli.main import app
from trt_compress.tools.sweep.run import sweep

OWN = "import pathlib\npathlib.Path(__file__).with_name('witness').touch()\ndef make():\n    raise SystemExit('no')\n"
Forged = Callable[..., Path]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = api.export_model("zoo:digits_vit", output=tmp_path_factory.mktemp("digits") / "bundle", batch="1").path
    assert path is not None
    return path


@pytest.fixture
def forged(digits: Path, tmp_path: Path) -> Forged:
    """A bundle that is whole, and whose recipe says what a stranger likes."""

    def make(**recipe: Any) -> Path:
        opened = Bundle.open(digits)
        wanted = replace(opened.manifest, recipe={**opened.manifest.recipe, **recipe})
        files = {name: opened.file(name) for name in opened.manifest.files if name != "recipe.toml"}
        toml = "".join(f"{key} = {json.dumps(value)}\n" for key, value in wanted.recipe.items() if value != [])
        bundle = write_bundle(tmp_path / "theirs", wanted, {**files, "recipe.toml": toml.encode()}, force=True)
        return bundle.path

    return make


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "mine.py"
    path.parent.mkdir()
    path.write_text(OWN)
    return path


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 2 and done.stdout == "", done.output
    said = done.stderr.strip()
    assert said.startswith("error: ") and len(said.partition("\nHint: ")[0].splitlines()) == 1, said
    return said


def test_code_that_a_bundle_names_is_not_run(forged: Forged, own: Path, tmp_path: Path) -> None:
    bundle = forged(model=f"{own}:make")
    for command in (("verify", bundle), ("export", bundle / "recipe.toml", "-o", tmp_path / "again"),
                    ("sweep", bundle / "recipe.toml", "--data", "held-out")):  # fmt: skip
        said = refused(*command)
        assert f"names model {own}:make, whose code would be run; " in said and "give --trust-paths if" in said
        assert not own.with_name("witness").exists()
    with pytest.raises(ConfigError, match="mine.py:make: the function failed|make failed"):
        api.verify(bundle, trust_paths=True)
    assert own.with_name("witness").exists()


def test_whoever_names_the_own_model_has_it_run(forged: Forged, own: Path) -> None:
    bundle = forged(model=f"{own}:make")
    with pytest.raises(ConfigError, match="make failed"):
        api.verify(bundle, model=f"{own}:make")
    assert own.with_name("witness").exists()


@pytest.mark.parametrize("model", ["hf:{}", "wavtokenizer:{}/codec.ckpt", "xytokenizer:{}/codec.ckpt"])
def test_paths_that_a_bundle_names_are_not_looked_at(forged: Forged, tmp_path: Path, model: str) -> None:
    """Not even to see whether there is anything: the sentence is the same."""
    name = model.format(tmp_path / "nowhere")
    assert f"names model {name}; a bundle may be a stranger's" in refused("verify", forged(model=name))
    assert f"names model {name}; a bundle may" in refused("export", forged(model=name) / "recipe.toml", "-o", "out")


def test_weights_are_those_that_the_user_gives(forged: Forged, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    shutil.copy(WEIGHTS_FILE, mine)
    bundle = forged(weights=str(mine))
    said = refused("verify", bundle)
    assert f"names the weights {mine}; " in said and "give --weights FILE or --trust-paths if" in said
    assert f"names the weights {mine}; " in refused("export", bundle / "recipe.toml", "-o", tmp_path / "out")
    assert api.verify(bundle, weights=mine).passed
    assert api.verify(bundle, trust_paths=True).passed
    api.export_model(str(bundle / "recipe.toml"), output=tmp_path / "out", weights=mine, dry_run=True)
    api.export_model(str(bundle / "recipe.toml"), output=tmp_path / "out", trust_paths=True, dry_run=True)


def test_nothing_is_downloaded_for_a_stranger(forged: Forged, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an export, which takes random weights of a timm model unless it is asked for timm's own."""
    asked: list[str] = []

    def ask(name: str) -> dict[str, Any]:
        asked.append(name)
        raise ConfigError("asked")

    monkeypatch.setattr("trt_compress.models.hosts.timm_build.source_overlay", ask)
    monkeypatch.setattr(timm_download, "source_overlay", ask)
    bundle = forged(model="timm:vit_tiny_patch16_224", weights="pretrained")
    said = refused("verify", bundle)
    assert (
        "names timm's pretrained weights, which may be downloaded; " in said
        and "--weights pretrained or --trust" in said
    )
    assert asked == []
    for allowed in ({"weights": "pretrained"}, {"trust_paths": True}):
        with pytest.raises(ConfigError, match="asked"):
            api.verify(bundle, **allowed)  # type: ignore[arg-type]
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["hf-hub:user/model", "local-dir:/etc", "vit_tiny_patch16_224.hf-hub:user/model"])
def test_a_name_of_timm_is_no_other_way_to_the_network(forged: Forged, name: str) -> None:
    assert f"timm:{name}" in refused("verify", forged(model=f"timm:{name}")).replace("'", "")


def test_a_file_of_a_compressor_is_a_path_too(tmp_path: Path) -> None:
    projector = tmp_path / "projector.safetensors"
    recipe = Recipe(model="zoo:digits_vit", compressors=parse_spec(f"frame_stack:projector={projector}"))
    with pytest.raises(ConfigError, match=rf"names {projector} of frame_stack, no file of .*give --trust-paths if"):
        refuse_paths(recipe, where="it", named=())
    refuse_paths(recipe, where="it", named=("compressors",))


def test_a_recipe_is_the_users_own_unless_it_lies_in_a_bundle(forged: Forged, own: Path, tmp_path: Path) -> None:
    theirs = forged(model=f"{own}:make") / "recipe.toml"
    link = tmp_path / "link.toml"
    link.symlink_to(theirs)
    assert "which lies in a bundle, names model" in refused("export", link, "-o", tmp_path / "out")
    below = theirs.parent / "more" / "recipes" / "fast.toml"
    below.parent.mkdir(parents=True)
    below.write_bytes(theirs.read_bytes())
    assert "which lies in a bundle, names model" in refused("export", below, "-o", tmp_path / "out")
    with pytest.raises(ConfigError, match="names model"):
        sweep(str(theirs), data="held-out")
    mine = tmp_path / "home" / "recipe.toml"
    shutil.copy(theirs, mine)
    with pytest.raises(ConfigError, match="make failed"):
        api.export_model(str(mine), output=tmp_path / "out")


def test_models_of_the_zoo_and_of_timm_are_taken(digits: Path, tmp_path: Path) -> None:
    assert api.verify(digits).passed
    result = api.export_model(str(digits / "recipe.toml"), output=tmp_path / "again", dry_run=True)
    assert result.manifest.model.source == "zoo:digits_vit"
