"""Calibration of a model that reads tokens: an observer watches its graphs while the procedure runs them on text."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.export.toy_decoder import CHUNK, VOCABULARY, Step, decoder
from trt_compress.errors import ConfigError
from trt_compress.export import api
from trt_compress.export.calibration import calibrate
from trt_compress.export.calibration_data import ArchiveData
from trt_compress.export.calibration_text import reads_of, text_inputs
from trt_compress.methods import METHODS, ArtifactFile, CompressorConfig, Method, parse_spec, spec
from trt_compress.methods.artifact import ArtifactForm
from trt_compress.models.calibrate import observe
from trt_compress.models.calibrate.observe import WatchedHost
from trt_compress.models.compressors import place as placer
from trt_compress.models.compressors import registry
from trt_compress.models.compressors.base import Acting, Compressor
from trt_compress.models.compressors.calibration import Calibrated, CalibrationData, CalibrationHost
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import place
from trt_compress.models.compressors.registry import compressor_class
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site
from trt_compress.models.hosts import registry as hosts
from trt_compress.models.hosts.base import LoadedHost

INFO = HostInfo(
    name="reader",
    sites=(Site(kind="kv_cache", layer=0, graph="step", taps=frozenset({"keys"})),),
    depth=1,
    num_tokens=CHUNK,
    width=32,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RangesConfig(CompressorConfig):
    """Options of the made-up method."""

    ranges: ArtifactFile | None = None


RANGES = Method(
    name="ranges",
    summary="a test",
    source="none",
    differs="nothing",
    config=RangesConfig,
    implementation="none",
    artifacts={"ranges": ArtifactForm(summary="the largest key of each channel")},
)


class Ranges(Compressor):
    """At the cache it changes nothing; its artifact is the largest absolute value of each channel of the keys."""

    method = RANGES
    takes_padding = True

    @classmethod
    def placements(cls, config: Any, host: HostInfo) -> tuple[Placement, ...]:
        return (Placement(kind="kv_cache", layers=(0,), graph="step"),)

    def __init__(self, config: Any, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.tokens_out = arrival.tokens

    @classmethod
    def calibrate(cls, host: CalibrationHost, data: CalibrationData, config: Any) -> Calibrated:
        def largest(part: Any) -> tuple[Tensor, int]:
            found, count = torch.zeros(32), 0
            for seen in host.observe(part):
                tokens = seen["step/cache.0"].tokens
                assert tokens.valid is not None
                there = tokens.x[tokens.valid]
                count += len(there)
                found = torch.maximum(found, there.abs().amax(dim=0))
            return found, count

        found, count = largest(data.fit)
        held_out, _ = largest(data.held_out)
        return Calibrated(
            tensors={"largest": found, "count": torch.tensor([count])},
            score={"outside": float((held_out > found + 1e-4).float().mean())},
        )

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        return tokens


class Reading(Step):
    """The toy decoder's step, whose keys come to a site on their way into the cache."""

    def __init__(self, specs: Any) -> None:
        super().__init__()
        self.placed = place(specs, INFO)["step"]
        self.plan = self.placed.sites

    def forward(self, ids: Tensor, count: Tensor, *states: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        keys = self.key(self.embed(ids))
        valid = torch.arange(ids.shape[1]) < count[:, None]
        taps = Taps()
        taps.put(0, {"keys": keys})
        self.placed("cache.0", Tokens(x=keys, valid=valid), taps)
        found: tuple[Tensor, ...] = super().forward(ids, count, *states)
        return found


def reader() -> LoadedHost:
    """The toy decoder, which methods can be put into."""
    plain = decoder()

    def attach(specs: Any) -> Any:
        step, *others = plain.attach(())
        return (replace(step, module=Reading(specs).eval()), *others)

    return replace(plain, source="zoo:reader", attach=attach)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "METHODS", {**METHODS, "ranges": RANGES})
    find: Callable[[Method], type[Acting]] = lambda method: (  # noqa: E731
        Ranges if method is RANGES else compressor_class(method)
    )
    for module in (placer, observe, registry):
        monkeypatch.setattr(module, "compressor_class", find)
    monkeypatch.setattr(hosts, "load_host", lambda model, **_: reader())
    monkeypatch.setattr(api, "check_model", lambda model, weights, reading=None: None)


def text(folder: Path, **more: Any) -> Path:
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, (12, 17))
    np.savez(folder / "text.npz", **{"prompt": tokens[:, :10], "steps": tokens[:, 10:], **more})
    return folder / "text.npz"


def test_keys_of_all_runs_are_seen_and_filling_is_told_apart(tmp_path: Path) -> None:
    data = text(tmp_path)
    made = calibrate("zoo:reader", compress="ranges", data=data, output=tmp_path / "r.safetensors")
    tokens = np.concatenate([np.load(data)["prompt"], np.load(data)["steps"]], axis=1)
    step = Step()
    with torch.no_grad():
        keys = step.key(step.embed(torch.from_numpy(tokens))).abs()
    fit = [number for number in range(12) if number % 5 != 4]
    found = load_file(tmp_path / "r.safetensors")
    torch.testing.assert_close(found["largest"], keys[fit].amax(dim=(0, 1)))
    assert found["count"].tolist() == [len(fit) * 17]
    outside = (keys[[4, 9]].amax(dim=(0, 1)) > found["largest"] + 1e-4).float().mean()
    assert made.card.score == {"outside": pytest.approx(float(outside))} and made.held_out == 2


def test_runs_come_in_the_order_of_the_procedure(tmp_path: Path) -> None:
    host, named = reader(), parse_spec("ranges")
    watched = WatchedHost(host, named, 0, reads=reads_of(host))
    with contextlib.closing(
        ArchiveData(text(tmp_path), watched.graphs(), (), text_inputs(host, watched.graphs()))
    ) as data:
        seen: list[Mapping[str, Any]] = list(watched.observe(data.parts().held_out))
        given = [one["step/cache.0"].tokens.valid.sum(dim=1).tolist() for one in seen]
        outputs = list(watched.outputs(data.parts().held_out))
    assert given == [[4] * 2, [4] * 2, [2] * 2, *[[1] * 2] * 7]  # chunks of four, then steps
    assert torch.equal(seen[0]["step/cache.0"].taps["keys"], seen[0]["step/cache.0"].tokens.x)
    logits = [one["step.logits"] for one in outputs if "step.logits" in one]
    assert len(logits) == 10 and len(outputs) == 12  # and two flushes
    with pytest.raises(Exception, match="watched without what reads sequences"):
        WatchedHost(host, named, 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt": np.full((12, 10), 50)}, r"'prompt' holds numbers that are not from 0 to 49\.$"),
        ({"prompt": np.zeros((12, 10), np.float32)}, r"'prompt' is float32 \[12, 10\]; it must be int64 \[samples, p"),
        ({"steps": np.zeros((11, 7), np.int64)}, r"differ in their number of samples \(prompt 12, steps 11\)"),
        (
            {"steps": np.zeros((12, 80), np.int64)},
            r"^calibrate: the data cannot be read: flush after step \d+ needs 72 ",
        ),
    ],
)
def test_text_that_does_not_suit_is_refused(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate("zoo:reader", compress="ranges", data=text(tmp_path, **more), output=tmp_path / "r.safetensors")
    assert not (tmp_path / "r.safetensors").exists()
    np.savez(tmp_path / "none.npz", tokens=np.zeros((12, 3), np.int64))
    with pytest.raises(ConfigError, match=r"has tokens; it must hold 'prompt', int64 \[samples, prompt\]\."):
        calibrate("zoo:reader", compress="ranges", data=tmp_path / "none.npz", output=tmp_path / "r.safetensors")
