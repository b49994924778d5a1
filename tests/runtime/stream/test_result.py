"""A stream's result survives JSON, its schema is published, and a result that does not add up is refused."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.gen_schemas import schema_of

SCHEMA = schema_of("stream-result")


def full_json() -> dict[str, Any]:
    """Three frames, one of each outcome, with every optional part given."""
    return {
        "schema_version": "1.0",
        "document": "trt-compress stream",
        "identity": {
            "bundle": "zoo:digits_vit tome:num_merged=4",
            "model": "zoo:digits_vit",
            "weights": "digits_vit.safetensors",
            "precision": "fp32",
            "opset": 20,
            "backend": "ort-cpu",
            "levels": [
                {
                    "name": "tome:num_merged=4",
                    "bundle": "zoo:digits_vit tome:num_merged=4",
                    "digest": "ab",
                    "graphs": {"model.onnx": "cd"},
                    "engines": {},
                    "compression": [
                        {
                            "site": "blocks.0",
                            "compressor": "tome",
                            "config": {"num_merged": 4},
                            "tokens_in": 65,
                            "tokens_out": 61,
                        }
                    ],
                    "flops": 1e6,
                    "baseline_flops": 2e6,
                }
            ],
            "native_library": None,
            "native_reason": "The native operators were not asked for.",
            "versions": {"numpy": "2.4.6"},
            "device": {"cpu": "AMD EPYC", "cores": 2},
            "sources": ["frames/*.png"],
        },
        "protocol": {
            "kind": "fixed rate",
            "fps": 30.0,
            "policy": "latest",
            "queue_depth": 2,
            "deadline_ns": 33_000_000,
            "warmup": 5,
            "threads": 1,
            "order": ["decode", "preprocess", "session", "postprocess", "sink"],
            "streams": 1,
            "burst": None,
            "gap_ns": None,
            "stall_ns": 5_000_000_000,
            "scheduling": "realtime",
        },
        "started_at": "2026-11-24T10:00:00+00:00",
        "wall_ns": 100_000_000,
        "ended": "end of source",
        "error": None,
        "counts": {
            "in": 3,
            "delivered": 1,
            "dropped": 1,
            "failed": 1,
            "deadline_missed": 0,
            "reasons": {"a newer frame came": 1, "corrupt": 1},
        },
        "first_inference_ns": 9_000_000,
        "after_idle_ns": [7_000_000],
        "quality": {"top1": {"value": 1.0, "n": 1}},
        "controller": {
            "settings": {"percentile": 95.0},
            "switches": [{"frame": 2, "from": "dense", "to": "tome", "reason": "p95 40.0 ms of 33.0 ms"}],
        },
        "resources": {
            "peak_rss_bytes": 1,
            "device_memory_bytes": None,
            "engine_bytes": None,
            "energy_joule": None,
            "idle_watt": None,
            "power": None,
            "power_reason": "No power rail can be read on this machine",
        },
        "overlay": {"drawn": 1, "behind": 0, "without_result": 2, "waited_ns": 5, "after_ns": 6},
        "frames": {
            "id": [0, 1, 2],
            "capture_ns": [0, None, 66],
            "arrival_ns": [0, 33_333_333, 66_666_666],
            "start_ns": [5, 33_333_340, None],
            "end_ns": [7_000_000, 40_000_000, 66_666_999],
            "deadline_missed": [False, None, None],
            "outcome": ["delivered", "dropped", "failed"],
            "reason": [None, "a newer frame came", "corrupt"],
            "level": ["tome", None, None],
            "stage_ns": {"decode": [5, 6, None], "session": [6_000_000, None, None]},
            "queue_wait_ns": {"source": [5, 7, None]},
            "tokens_in": [65, None, None],
            "tokens_out": [33, None, None],
            "first_after_idle": [True, False, False],
        },
    }


def load(data: dict[str, Any]) -> StreamResult:
    return StreamResult.from_text(json.dumps(data))


def test_a_result_survives_json_with_what_a_later_version_adds(tmp_path: Path) -> None:
    data = full_json() | {"schema_version": "1.3", "weather": {"celsius": 21}}
    data["frames"]["humidity"] = [1, 2, 3]
    file = tmp_path / "result.json"
    file.write_text(load(data).to_text(), encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8")) == data
    assert StreamResult.read(file) == load(data)


def test_end_to_end_times_are_those_of_delivered_frames() -> None:
    assert load(full_json()).frames.end_to_end_ns() == [7_000_000]


def test_the_schema_is_valid_and_accepts_a_result() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(full_json() | {"weather": 1}, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("document",), "trt-compress bench", "is not the result of a stream; give the result.json"),
        (("schema_version",), "2.0", "has schema version 2.0, and this trt-compress reads 1.x; install"),
        (("schema_version",), "one", "has no 'schema_version' such as \"1.0\""),
        (("protocol", "kind"), "open loop", "protocol.kind is 'open loop'; allowed are closed loop, fixed rate"),
        (("protocol", "policy"), "newest", "protocol.policy is 'newest'; allowed are block, latest, drop-oldest"),
        (("ended",), "tired", "ended is 'tired'; allowed are end of source, frame limit, interrupted, error"),
        (("frames", "outcome"), ["delivered", "lost", "failed"], "frames.outcome is 'lost'; allowed are delivered"),
        (("frames", "arrival_ns"), [0, 1.5, 2], r"frames.arrival_ns[1] is 1.5; it must be an integer"),
    ],
)
def test_the_schema_and_the_reader_refuse_the_same(path: tuple[str, ...], value: Any, message: str) -> None:
    data = full_json()
    holder: Any = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(data)


def test_frames_that_do_not_add_up_are_refused() -> None:
    data = copy.deepcopy(full_json())
    data["counts"]["dropped"] = 0
    message = r"3 frames came in, and 1 delivered \+ 0 dropped \+ 1 failed are not as many"
    with pytest.raises(ConfigError, match=message):
        load(data)


@pytest.mark.parametrize("column", ["level", "tokens_in", "stage_ns.session", "queue_wait_ns.source"])
def test_a_short_column_is_refused(column: str) -> None:
    data = full_json()
    holder, _, name = f"frames.{column}".rpartition(".")
    target = data["frames"] if holder == "frames" else data["frames"][holder.partition(".")[2]]
    target[name].pop()
    with pytest.raises(ConfigError, match=f"the column frames.{column} has 2 rows and frames.id 3"):
        load(data)


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'.*nothing\.json' cannot be read \(No such file or directory\)"):
        StreamResult.read(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        StreamResult.from_text("{")
