"""The table of what goes together in a cache: every pair is in it, and where one does not go an export says so."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.cache.policies import CHUNK, CONTEXT, model, spec_of
from trt_compress.errors import ConfigError
from trt_compress.export.api import export_model
from trt_compress.methods import METHODS, parse_spec
from trt_compress.methods.config import CACHE_KINDS
from trt_compress.models.compressors.artifacts import for_weights
from trt_compress.models.hosts.decoder_config import Caching
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.decoder_host import plan_of
from trt_compress.models.language.directory import Directory

OF_KIND = {kind: [name for name, method in METHODS.items() if method.kind == kind] for kind in CACHE_KINDS}
PAIRS = [
    *itertools.product(OF_KIND["selector"] + OF_KIND["reader"], OF_KIND["store"]),
    *itertools.product(OF_KIND["selector"], OF_KIND["reader"]),
]


def said() -> dict[tuple[str, str], str | None]:
    """What the README says of each pair, row and column: the sentence, or None where both go together."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    text = readme.partition("<!-- table: cache_pairs -->")[2].partition("<!-- end -->")[0]
    notes = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
    found: dict[tuple[str, str], str | None] = {}
    columns: list[str] = []
    for line in filter(None, text.splitlines()):
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if cells[0] == "role":
            columns = cells[2:]
        for column, cell in zip(columns, cells[2:], strict=True) if cells[0] in CACHE_KINDS else ():
            number = re.fullmatch(r"no \((\d+)\)", cell)
            assert number or cell == "yes", line
            assert (cells[1], column) not in found
            found[cells[1], column] = notes[number[1]] if number else None
    return found


def test_every_pair_is_in_the_table() -> None:
    assert set(said()) == set(PAIRS) and all(OF_KIND.values())


@pytest.fixture(scope="module")
def folder(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """That of the tests of caches, with the artifacts that were calibrated for it."""
    return made_once("a tiny Llama", model)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_an_export_does_what_the_table_says(pair: tuple[str, str], folder: Path, tmp_path: Path) -> None:
    """It refuses with the same sentence, and writes nothing; of what goes together there is a plan."""
    wanted, spec = said()[pair], "+".join(spec_of(policy, folder) for policy in pair)
    if wanted is None:
        source = Directory(folder)
        config = read_config(source.config, name=source.name)
        specs = for_weights(parse_spec(spec), source="tiny", sha256=source.sha256())
        plan = plan_of(config, Caching(context=CONTEXT, chunk=CHUNK), "tiny", specs)
        assert set(pair) <= {policy.method.name for layer in plan.layers for policy in layer.policies}
        return
    with pytest.raises(ConfigError) as caught:
        export_model(f"hf:{folder}", output=tmp_path / "out", compress=spec, context=CONTEXT, chunk=CHUNK)
    assert caught.value.message == wanted.replace("NAME", pair[0])
    assert not (tmp_path / "out").exists()
