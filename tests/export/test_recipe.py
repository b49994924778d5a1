"""Recipes: what an export is made from survives every form it is written in."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from trt_compress.errors import ConfigError
from trt_compress.export.api import export_model
from trt_compress.export.options import OPTIONS
from trt_compress.export.ranges import BatchRange
from trt_compress.export.recipe import Recipe, read_recipe, recipe_from_json, recipe_from_options
from trt_compress.export.targets import TARGETS, newest_common_opset
from trt_compress.methods import parse_spec

FULL = Recipe(
    model="timm:deit_small_patch16_224",
    weights="pretrained",
    weights_sha256="0123456789abcdef" * 4,
    compressors=parse_spec("tome:num_merged=[4,0,3],over_limit=clamp+evit:keep_ratio=[0.7,0.5],layers=[3,6]"),
    targets=("rtx", "jetson-orin-jp6"),
    batch=BatchRange(min=1, opt=2, max=3),
    precision="fp16",
    opset=19,
)


@pytest.mark.parametrize("recipe", [Recipe(model="zoo:digits_vit"), FULL], ids=["plain", "full"])
def test_a_recipe_survives_toml_and_json(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.toml") == recipe
    assert recipe_from_json(recipe.to_json(), where="here") == recipe


def test_what_is_not_given_has_a_default() -> None:
    recipe = recipe_from_options("zoo:digits_vit")
    assert recipe == Recipe(model="zoo:digits_vit")
    assert (recipe.spec, recipe.weights, recipe.targets, recipe.precision) == ("none", None, ("cpu",), "fp32")
    assert (str(recipe.batch), recipe.opset) == ("1:4:8", newest_common_opset())
    assert all(recipe.opset <= target.max_opset for target in TARGETS.values())


def test_options_win_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(FULL.to_toml(), encoding="utf-8")
    mine = str(tmp_path / "mine.toml")
    assert recipe_from_options(mine) == FULL
    changed = recipe_from_options(mine, compress="none", targets=["cpu", "cpu"], batch="4", precision="fp32", opset=20)
    assert changed == Recipe(
        model=FULL.model,
        weights="pretrained",
        weights_sha256=FULL.weights_sha256,
        batch=BatchRange(min=4, opt=4, max=4),
        precision="fp32",
        opset=20,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": object()},
            "^model is of type object; give a name such as timm:NAME .*FILE.py:FACTORY for a mod",
        ),
        ({"opset": "20"}, "^opset='20' is not a whole number"),
        ({"batch": 3}, "^batch=3 is not a text like 1:4:8"),
        ({"targets": [1]}, r"^targets=\[1\] is not a list of names"),
        ({"compress": ["tome"]}, r"^compress=\['tome'\] is not a text; write it as"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_from_options(**{"model": "zoo:digits_vit", **options})


def test_one_target_needs_no_list() -> None:
    assert recipe_from_options("zoo:digits_vit", targets="rtx").targets == ("rtx",)


def test_a_hash_is_a_hash() -> None:
    with pytest.raises(ConfigError, match="^weights_sha256 'abc' is not a hash; give 64 hexadecimal digits"):
        Recipe(model="zoo:digits_vit", weights_sha256="abc")


def test_weights_in_a_file_count_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('model = "zoo:digits_vit"\nweights = "w/own.safetensors"', encoding="utf-8")
    assert read_recipe(tmp_path / "mine.toml").weights == str(tmp_path / "w" / "own.safetensors")


def test_weights_given_as_an_option_count_from_here_and_mean_the_same_file_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_from_options("zoo:digits_vit", weights="own.safetensors")
    assert recipe.weights == str(tmp_path / "own.safetensors")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert read_recipe(tmp_path / "bundle" / "recipe.toml") == recipe
    assert recipe_from_options("timm:vit_tiny_patch16_224", weights="pretrained").weights == "pretrained"


def test_the_newest_opset_is_that_of_the_oldest_target() -> None:
    for name, target in TARGETS.items():
        assert recipe_from_options("zoo:digits_vit", targets=[name], opset=target.max_opset).opset == target.max_opset
        with pytest.raises(ConfigError, match=f"^opset {target.max_opset + 1} is out of range; {name} takes 18 to"):
            recipe_from_options("zoo:digits_vit", targets=[name], opset=target.max_opset + 1)


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^recipe .*mine.toml cannot be read: 'utf-8' codec can't decode"):
        read_recipe(tmp_path / "mine.toml")
    with pytest.raises(ConfigError, match=r"^recipe .* cannot be read: Is a directory\.$"):
        read_recipe(tmp_path)


def test_recipe_and_function_take_what_the_list_of_options_says() -> None:
    assert {option.key for option in OPTIONS} == {field.name for field in dataclasses.fields(Recipe)}
    of_a_run = {"output", "force", "dry_run", "trust_paths", "verify_layers", "progress"}
    keywords = {option.keyword for option in OPTIONS if option.keyword} | {"model"}
    assert keywords == inspect.signature(export_model).parameters.keys() - of_a_run
