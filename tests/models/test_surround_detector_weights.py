"""The released weights of the detector against their card."""

import hashlib

import pytest

from trt_compress.methods import parse_spec
from trt_compress.models.hosts.detector3d import attach
from trt_compress.models.zoo.data.driving_scenes import HELD_OUT_SEEDS, TRAIN_SEEDS
from trt_compress.models.zoo.surround_detector import model as zoo_model
from trt_compress.models.zoo.surround_detector.model import FAST, FASTER


def test_released_weights_are_those_of_the_card() -> None:
    card = zoo_model.surround_detector_card()
    content = zoo_model.WEIGHTS_FILE.read_bytes()
    assert len(content) == card["weights"]["bytes"] <= 6_000_000
    assert hashlib.sha256(content).hexdigest() == card["weights"]["sha256"]
    config = zoo_model.surround_detector_config()
    assert card["architecture"]["image_size"] == list(config.image_size)
    assert card["architecture"]["scored_layers"] == list(config.scored_layers)
    assert {"none", FAST, FASTER} < card["accuracy"].keys()
    low, high = card["data"]["held_out_seeds"]
    assert HELD_OUT_SEEDS.start <= low < high <= HELD_OUT_SEEDS.stop <= TRAIN_SEEDS.start


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["none", FASTER])
def test_it_finds_boxes_in_held_out_scenes(spec: str) -> None:
    """Few scenes, so a wide margin around the card's figure."""
    net = attach(zoo_model.build_surround_detector(), parse_spec(spec)).eval()
    score = zoo_model.evaluate(zoo_model.detector_of(net), num_scenes=6)
    wanted = zoo_model.surround_detector_card()["accuracy"][spec]["mean_ap"]
    assert score.mean_ap > 0.6 * wanted
