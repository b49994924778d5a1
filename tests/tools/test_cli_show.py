"""`show` draws what the methods of a bundle did to the patches of a picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.tiny_towers import tiny_tower
from trt_compress.export.api import export_model
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.plugins.operator import recording
from trt_compress.tools.token_map import map_tokens
from trt_compress.tools.token_picture import draw_groups, token_of_patch


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_tower(folder, "CLIPVisionModel")
    return folder


def image() -> torch.Tensor:
    return torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))


def maps_of(tower: Path, spec: str) -> Any:
    (graph,) = load_host(f"hf:{tower}").attach(parse_spec(spec))
    with recording() as record:
        found = map_tokens(graph, image())
    return found, record


def test_merged_patches_are_where_the_operator_says(tower: Path) -> None:
    found, record = maps_of(tower, "tome:num_merged=6")
    for count, each in enumerate(found, 1):
        sites = [f"blocks.{layer}" for layer in range(count)]
        np.testing.assert_array_equal(each.owners, token_of_patch(record, sites, num_prefix=1))
        assert (each.method, each.dropped) == ("tome", 0)


def test_dropped_patches_stay_dropped(tower: Path) -> None:
    found, record = maps_of(tower, "random:layers=[0],keep_ratio=0.5+evit:layers=[2],keep_ratio=0.5,fuse=false")
    first = record["blocks.0/TokenSelect/index"][0].numpy()[1:] - 1
    assert np.flatnonzero(found[0].owners >= 0).tolist() == first.tolist()
    second = record["blocks.2/TokenSelect/index"][0].numpy()[1:] - 1
    assert sorted(first[second].tolist()) == np.flatnonzero(found[1].owners >= 0).tolist()
    assert [each.dropped for each in found] == [18, 27]


@pytest.mark.parametrize(
    ("spec", "groups", "dropped"),
    [
        ("visionzip:num_dominant=9,num_contextual=4", 12, 0),
        ("prumerge:num_kept=6,neighbours=5", 7, 0),
        ("token_corr:num_kept=5,alpha=1.0,beta=0.0", 5, 0),
        ("divprune:num_kept=7", 7, 29),
        ("pixel_shuffle:scale=3", 4, 0),
        ("evit:layers=[1],keep_ratio=0.5", 19, 0),
    ],
)
def test_every_kind_of_method(tower: Path, spec: str, groups: int, dropped: int) -> None:
    (*_, last), _ = maps_of(tower, spec)
    kept = last.owners[last.owners >= 0]
    assert (len(np.unique(kept)), last.dropped) == (groups, dropped)


def test_what_was_dropped_is_pale() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    drawn = np.asarray(draw_groups(pixels, np.array([0, -1, 1]), zoom=2, shape=(1, 3)))
    assert drawn[4, 1].tolist() == [0, 0, 0] and drawn[4, 6].tolist() == [204, 204, 204]


def test_the_command(tower: Path, tmp_path: Path, commands: Callable[..., Any]) -> None:
    name = f"hf:{tower}"
    export_model(name, compress="tome:num_merged=6+divprune:num_kept=5", output=tmp_path / "b", targets=["cpu"])
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    done = commands("show", tmp_path / "b", tmp_path / "a.png", "-o", tmp_path / "t.png", "--model", name, "--json")
    assert done.code == 0, done.err
    sites = json.loads(done.out)["sites"]
    assert [row["site"] for row in sites] == ["blocks.0", "blocks.1", "blocks.2", "encoder_output"]
    assert sites[-1]["tokens out"] == 6
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.width > 3 * 288
    for given, said in (
        ((tmp_path / "b", tmp_path / "no.png", "-o", tmp_path / "t.png"), "is no file; give a picture"),
        (
            (tmp_path / "b", tower / "config.json", "-o", tmp_path / "t.png", "--model", name),
            "is no picture that can be",
        ),
        ((tmp_path / "b", tmp_path / "a.png", "-o", tmp_path / "t.xyz", "--model", name), "cannot be written"),
        ((tmp_path / "b", tmp_path / "a.png", "-o", tmp_path / "t.png"), "hf:"),
    ):
        done = commands("show", *given)
        assert done.code == 2 and said in done.err, done.err


def test_a_method_that_reads_a_question(tmp_path: Path, commands: Callable[..., Any]) -> None:
    """Its vectors come from a file; without it, or with others, it is said what is wanted."""
    (tmp_path / "clip").mkdir()
    tiny_tower(tmp_path / "clip", "CLIPVisionModelWithProjection")
    name = f"hf:{tmp_path / 'clip'}"
    export_model(name, compress="cdpruner:num_kept=5,segments=2", output=tmp_path / "b", targets=["cpu"])
    Image.new("RGB", (30, 24), "red").save(tmp_path / "p.png")
    text = np.random.default_rng(0).normal(size=(1, 2, 6)).astype(np.float32)
    np.savez(tmp_path / "q.npz", text=text)
    np.savez(tmp_path / "short.npz", text=text[:, :1])
    asked = ("show", tmp_path / "b", tmp_path / "p.png", "-o", tmp_path / "t.png", "--model", name)
    found = commands(*asked, "--inputs", tmp_path / "q.npz", "--json")
    assert found.code == 0, found.err
    assert [site["patches dropped"] for site in json.loads(found.out)["sites"]] == [31]
    for more, said in (
        ((), "the bundle takes text [1, 2, 6] beside the picture; give it with --inputs FILE.npz"),
        (("--inputs", tmp_path / "short.npz"), "has text [1, 1, 6] of float32; the bundle takes text [1, 2, 6]"),
    ):
        refused = commands(*asked, *more)
        assert refused.code == 2 and said in " ".join(refused.err.split()), refused.err


def test_without_a_method_there_is_nothing_to_draw(tower: Path) -> None:
    from trt_compress.errors import UnsupportedError

    (graph,) = load_host(f"hf:{tower}").attach(())
    with pytest.raises(UnsupportedError, match="no method that acts on the patches of one image; export one with"):
        map_tokens(graph, image())
