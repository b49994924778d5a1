"""What a manifest says of texts: files that are there, tokens that there are, settings within their limits."""

import json
from typing import Any

import pytest

from tests.format.test_manifest import full_json
from trt_compress.errors import BundleError
from trt_compress.runtime import Manifest


def with_text(**changes: Any) -> Manifest:
    data = full_json()
    data["text"] |= changes
    return Manifest.from_text(json.dumps(data))


@pytest.mark.parametrize("file", ["text/tokenizer.json", "text/chat_template.jinja", "license/LICENSE"])
def test_what_travels_with_a_model_is_a_file_of_the_bundle(file: str) -> None:
    data = full_json()
    del data["files"][file]
    with pytest.raises(BundleError, match=f"needs the file '{file}', which is not listed"):
        Manifest.from_text(json.dumps(data)).check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocabulary": 0}, "'text.vocabulary' is 0; it is 1 to"),
        ({"stop": [2, 100]}, r"'text.stop\[1\]' is 100; tokens are 0 to 99"),
        ({"bos": -1}, "'text.bos' is -1; tokens are 0 to 99"),
        ({"stop": [1] * 2000}, "'text.stop' has 2000 tokens"),
        ({"context": 0}, "'text.context' is 0; it is 1 to"),
        ({"generation": {"temperature": "hot"}}, "'text.generation.temperature' is 'hot'; it is a number"),
        ({"generation": {"top_p": 1.5}}, "'text.generation.top_p' is 1.5; it is 0 to 1"),
        ({"generation": {"top_k": 1.5}}, "'text.generation.top_k' is '1.5'; it is a whole number"),
        ({"generation": {"do_sample": 1}}, "'text.generation.do_sample' is '1'; it is true or false"),
    ],
)
def test_values_that_no_model_has_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        with_text(**change).check()


def test_settings_of_a_later_version_are_kept() -> None:
    kept = with_text(generation={"top_p": 0.9, "future": [1]})
    kept.check()
    assert kept.text is not None and kept.text.generation == {"top_p": 0.9, "future": [1]}
