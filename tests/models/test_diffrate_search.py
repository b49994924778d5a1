"""The search of DiffRate: its soft counts against the hard ones, its target, and the artifact from end to end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from timm.models.vision_transformer import VisionTransformer

from tests.models.arrivals import a_host
from tests.models.vits import images, make_vit, run
from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.export.calibration import Calibration, calibrate
from trt_compress.methods import ArtifactFile, parse_spec
from trt_compress.methods.artifact import with_card
from trt_compress.methods.vision import DiffRateConfig
from trt_compress.models.calibrate.observe import WatchedHost
from trt_compress.models.compressors.diffrate import DiffRate
from trt_compress.models.compressors.diffrate_search import (
    Search,
    SearchConfig,
    SearchSpec,
    even_counts,
    flops_ratio,
    within,
)
from trt_compress.models.hosts.base import WeightsInfo
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import vit_host

MODEL = "own.py:small"
CODE = """
from timm.models.vision_transformer import VisionTransformer

def small(depth=4):
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=depth, num_heads=2, num_classes=5)

def deep():
    return small(5)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the user's own with weights, and images."""
    path = tmp_path_factory.mktemp("diffrate")
    (path / "own.py").write_text(CODE)
    save_file(make_vit().state_dict(), path / "weights.safetensors")
    np.savez(path / "images.npz", image=images(20).numpy(), label=np.arange(20))
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> Calibration:
    return calibrate(
        f"{folder / MODEL}",
        compress="diffrate:flops_ratio=0.6",
        data=folder / "images.npz",
        weights=folder / "weights.safetensors",
        output=folder / "schedule.safetensors",
        trust_paths=True,
    )


def by_hand(counts: tuple[tuple[int, int], ...], tokens: int, width: int) -> float:
    """FLOPs of blocks, product by product, against those of all tokens."""

    def block(come: int, left: int) -> int:
        projections = come * width * 3 * width + come * width * width
        products = 2 * come * come * width
        return projections + products + left * width * 4 * width * 2

    came = [tokens, *(left for _, left in counts[:-1])]
    found = sum(block(come, left) for come, (_, left) in zip(came, counts, strict=True))
    return found / (len(counts) * block(tokens, tokens))


def test_flops_are_those_of_the_products() -> None:
    counts = ((17, 17), (15, 12), (9, 7), (5, 2))
    found = float(flops_ratio(torch.tensor(counts).float(), a_host(4, 17, 1, width=32)))
    assert found == pytest.approx(by_hand(counts, 17, 32), rel=1e-6)


@pytest.mark.parametrize("target", [0.35, 0.6, 0.9])
def test_counts_meet_the_target(target: float) -> None:
    host = a_host(6, 65, 1, width=96)
    for counts in (even_counts(host, target), within([(65, 65), *[(40, 30)] * 5], host, target)):
        DiffRateConfig(prune_kept=tuple(p for p, _ in counts), merge_kept=tuple(m for _, m in counts))
        assert target - 0.03 < by_hand(counts, 65, 96) <= target
        assert counts[0] == (65, 65)


class Runs:
    """A model in the search, with images."""

    def __init__(self, vit: VisionTransformer) -> None:
        weights = WeightsInfo(source="random", sha256="0" * 64)
        self.host = WatchedHost(
            vit_host(vit, source="tiny", weights=weights), parse_spec("diffrate:flops_ratio=0.6"), 0
        )
        self.search = Search(self.host.info, 0.6)
        self.batches = [{"image": images(5).numpy()}]

    def soft(self) -> torch.Tensor:
        spec = SearchSpec(name="diffrate", config=SearchConfig(search=self.search))
        (found,) = self.host.outputs_with(spec, self.batches)
        return found["model.logits"]

    def hard(self) -> torch.Tensor:
        pruned, merged = zip(*((int(p), int(m)) for p, m in self.search.expected().detach()), strict=True)
        (found,) = self.host.outputs(self.batches, DiffRateConfig(prune_kept=pruned, merge_kept=merged))
        return found["model.logits"]


@pytest.mark.parametrize("variant", ["plain", "registers", "distilled", "avg"])
def test_the_search_computes_what_its_counts_do(variant: str) -> None:
    """Tokens with nearly no size against tokens that are gone."""
    runs = Runs(make_vit(variant))
    soft, hard = runs.soft().detach(), runs.hard()
    assert float((soft - hard).abs().max()) <= 1e-4 * float(hard.abs().max())


def test_every_count_has_a_gradient() -> None:
    runs = Runs(make_vit())
    (grad,) = torch.autograd.grad(runs.soft().square().sum(), [runs.search.logits])
    assert bool(grad.isfinite().all())
    strongest = grad.abs().amax(dim=2)
    assert bool((strongest[1:3] > 0).all()), strongest  # behind the last attention only the class token is read
    assert float(strongest[0].max()) == 0  # the first layer removes nothing


def test_the_search_moves_towards_what_matters() -> None:
    """Where a loss wants one layer's tokens, it keeps more of them than at first, and the target still holds."""
    search = Search(a_host(4, 65, 1, width=32), 0.6)
    before = search.expected().detach()[1, 1].item()
    for _ in range(60):
        wanted = (search.expected()[1, 1] - 65).square() / 65
        search.step(wanted)
    counts = search.counts()
    assert counts[1][1] > before
    assert by_hand(counts, 65, 32) <= 0.6


def test_an_artifact_is_made_and_taken(folder: Path, made: Calibration) -> None:
    assert set(made.card.score) == {"distance", "distance_of_even_counts", "flops_ratio"}
    assert 0.5 < made.card.score["flops_ratio"] <= 0.6
    assert made.spec == f"diffrate:flops_ratio=0.6,schedule={folder / 'schedule.safetensors'}"
    assert (made.card.data_count, made.held_out) == (20, 4)
    host = load_host(f"{folder / MODEL}", weights=str(folder / "weights.safetensors"))
    (graph,) = host.attach(parse_spec(made.spec))
    left = [17, *(site.tokens_out for site in graph.module.plan)]
    assert sorted(left, reverse=True) == left and left[-1] < 17
    assert run(graph.module, images(2)).shape == (2, 5)


def test_the_same_data_make_the_same_file(folder: Path, made: Calibration) -> None:
    content = made.path.read_bytes()
    again = calibrate(
        f"{folder / MODEL}",
        compress="diffrate:flops_ratio=0.6",
        data=folder / "images.npz",
        weights=folder / "weights.safetensors",
        output=folder / "again.safetensors",
        trust_paths=True,
    )
    assert again.path.read_bytes() == content


def test_other_weights_and_another_depth_are_refused(folder: Path, made: Calibration) -> None:
    with pytest.raises(TrtCompressError, match="diffrate: schedule .* was made for other weights than these"):
        load_host("zoo:digits_vit").attach(parse_spec(made.spec))
    (spec,) = parse_spec(made.spec)
    read, _ = spec.read()
    with pytest.raises(
        ConfigError, match="schedule .* is for 4 layers, and tiny has 5; give prune_kept and merge_kept"
    ):
        DiffRate.placements(read.config, a_host(5, 17, 1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="schedule .* is for 17 tokens, and tiny has 26"):
        DiffRate.placements(read.config, a_host(4, 26, 1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"was made for flops_ratio=0\.6, and flops_ratio=0\.5 is given"):
        load_host("zoo:digits_vit").attach(parse_spec(made.spec.replace("0.6", "0.5")))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("diffrate:flops_ratio=1.5", r"flops_ratio=1\.5 is out of range; it is a share of the FLOPs"),
        ("diffrate:flops_ratio=0.5,table=deit_s", "give table=deit_s or deit_b, or else both lists"),
        ("diffrate:schedule=a", "give table=deit_s or deit_b, .* or flops_ratio=… and schedule=FILE"),
        ("diffrate:flops_ratio=0.6", "schedule=FILE is missing; make it with `trt-compress calibrate"),
        ("diffrate:flops_ratio=0.6,schedule=missing", "schedule missing cannot be read"),
    ],
)
def test_what_is_refused(spec: str, said: str) -> None:
    with pytest.raises(TrtCompressError, match=f"diffrate: {said}"):
        load_host("zoo:digits_vit").attach(parse_spec(spec))


def test_a_target_that_no_count_meets() -> None:
    with pytest.raises(ConfigError, match=r"flops_ratio=0\.01 is out of reach of tiny; .* it is 0\.\d+; give that or"):
        Search(a_host(4, 17, 1, width=32), 0.01)


def test_an_artifact_that_holds_something_else(made: Calibration) -> None:
    content = with_card(save({"prune_kept": torch.ones(4), "merge_kept": torch.ones(4)}), made.card)
    config = DiffRateConfig(flops_ratio=0.6, schedule=ArtifactFile("other", content))
    with pytest.raises(ConfigError, match="schedule other does not hold the whole numbers prune_kept and merge_kept"):
        DiffRate.placements(config, a_host(4, 17, 1))
    content = with_card(save({"prune_kept": torch.tensor([9, 9]), "merge_kept": torch.tensor([8, 8])}), made.card)
    with pytest.raises(ConfigError, match="at layer 1 prune_kept=9 and merge_kept=8 behind 8; the numbers never rise"):
        DiffRate.placements(DiffRateConfig(flops_ratio=0.6, schedule=ArtifactFile("x", content)), a_host(2, 17, 1))
