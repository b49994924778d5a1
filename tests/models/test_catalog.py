"""What is known of models without loading them: never less than what timm itself takes."""

import re

import pytest
import timm
from timm.models import _registry

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.model_name import parse_model
from trt_compress.models.hosts import catalog
from trt_compress.models.hosts.registry import list_models


def test_every_model_of_timm_stands_in_its_files() -> None:
    files = dict(catalog._timm_files())
    registered = {name: stem for stem, text in files.items() for name in catalog._REGISTERED.findall(text)}
    assert set(timm.list_models()) <= set(registered)
    words = {word for text in files.values() for word in re.findall(r"\w+", text)}
    old = getattr(_registry, "_deprecated_models", {})
    assert set(old) <= words


def test_what_timm_takes_is_not_refused() -> None:
    old = sorted(getattr(_registry, "_deprecated_models", {}))
    names = [*timm.list_pretrained("vit_*")[::12], *timm.list_models(module="deit"), *old[::40]]
    for name in names:
        try:
            catalog.check_timm(parse_model(f"timm:{name}"))
        except UnsupportedError:  # it is known, and no host drives it
            assert timm.is_model(name)


def test_what_is_listed_passes() -> None:
    names = [model.name for model in list_models()]
    for name in [*(name for name in names if name.startswith("zoo:")), *names[-1:]]:
        catalog.check_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:", "model 'timm:' is not known to timm"),
        ("timm:vit_tiny_patch16_22", r"is not known to timm .* Did you mean 'vit_tiny_patch16_224'\?"),
        ("timm:vit_tiny_patch16_224.augreg", r"knows no weights 'augreg' of .*; there are augreg_in21k_ft_in1k"),
        ("zoo:", "model 'zoo:' is not known; there are zoo:digits_vit"),
    ],
)
def test_what_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        catalog.check_model(name)


def test_a_tag_may_be_left_empty_as_timm_has_it() -> None:
    assert timm.is_model("vit_tiny_patch16_224.")
    catalog.check_model("timm:vit_tiny_patch16_224.")


def test_without_timm_nothing_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_timm_files", lambda: iter(()))
    catalog.check_timm(parse_model("timm:anything"))
