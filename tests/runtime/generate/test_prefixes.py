"""Beginnings that prompts have in common: found, read once, forked by many threads, and never a change of an answer."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.generate.toy import write
from trt_compress.errors import BundleError, ConfigError
from trt_compress.format.procedure import Upkeep
from trt_compress.runtime import Generator
from trt_compress.runtime.generate.prefixes import LEAST, Prefixes
from trt_compress.runtime.generate.stream import Prefix

SYSTEM = [(7 * number) % 290 + 4 for number in range(2 * LEAST)]


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    write(tmp_path / "b")
    return Generator.open(tmp_path / "b")


def begun(prefix: Prefix | None) -> tuple[int, ...]:
    return () if prefix is None else prefix.tokens


def test_what_two_prompts_begin_with_is_read_once(generator: Generator) -> None:
    prefixes = Prefixes(generator, most=2)
    assert prefixes.of([[*SYSTEM, 5, 6]]) is None  # nobody began so before
    assert prefixes.of([[*SYSTEM[: LEAST - 1], 9]]) is None  # too little to be worth it
    found = prefixes.of([[*SYSTEM, 7]])
    assert begun(found) == tuple(SYSTEM)
    assert prefixes.of([[*SYSTEM, 8]]) is found
    conversation = [*SYSTEM, 7, *range(20, 20 + LEAST)]
    assert prefixes.of([conversation]) is found
    longer = prefixes.of([[*conversation, 9]])  # goes on behind what is there
    assert begun(longer) == tuple(conversation)
    same = [[*reversed(SYSTEM), 5]] * 3
    assert begun(prefixes.of(same)) == tuple(same[0])  # one prompt, several answers
    assert begun(prefixes.of([[*conversation, 9]])) == tuple(conversation)
    again = prefixes.of([[*SYSTEM, 4]])
    assert begun(again) == tuple(SYSTEM) and again is not found  # of two, the one not used for longest had gone
    generator.close()


def test_answers_are_those_without_it_on_many_threads(generator: Generator) -> None:
    prefixes = Prefixes(generator, most=1)
    prompts = [[*SYSTEM, number] for number in range(4, 20)]
    prefixes.of(prompts)

    def answer(prompt: list[int]) -> tuple[list[int], int]:
        (found,) = generator.generate(prompt, max_new=8, temperature=1.0, seed=1, prefix=prefixes.of([prompt]))
        return found.ids, found.reused

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(answer, prompts))
    wanted = [generator.generate(prompt, max_new=8, temperature=1.0, seed=1)[0].ids for prompt in prompts]
    assert found == [(ids, len(SYSTEM)) for ids in wanted]
    generator.close()


def test_a_prefix_is_saved_and_answers_as_before(generator: Generator, tmp_path: Path) -> None:
    prefix = generator.prefix(SYSTEM)
    prefix.save(tmp_path / "prefix")
    prompt = [*SYSTEM, 9]
    wanted = generator.generate(prompt, max_new=8, temperature=1.0, seed=1, prefix=prefix)
    generator.close()
    with Generator.open(tmp_path / "b") as other:
        again = other.load_prefix(tmp_path / "prefix")
        assert again.tokens == tuple(SYSTEM)
        assert other.generate(prompt, max_new=8, temperature=1.0, seed=1, prefix=again) == wanted
        assert other.generate(SYSTEM, max_new=8, temperature=0.0, prefix=again)[0].ids == (
            other.generate(SYSTEM, max_new=8, temperature=0.0)[0].ids
        )
        again.sequences.save(tmp_path / "sequences")
        with pytest.raises(BundleError, match="'.*sequences' holds sequences, and no prefix of this bundle"):
            other.load_prefix(tmp_path / "sequences")
        beside = {"tokens": np.array(SYSTEM[:-1]), "logits": again.logits}
        again.sequences.save(tmp_path / "short", beside=beside)
        with pytest.raises(BundleError, match="holds sequences, and no prefix"):
            other.load_prefix(tmp_path / "short")


def test_what_is_not_wanted_any_more_is_not_read(generator: Generator) -> None:
    class Gone(Exception):
        pass

    def between(read: int) -> None:
        if read:
            raise Gone

    prefixes = Prefixes(generator, most=1)
    with pytest.raises(Gone):
        prefixes.of([SYSTEM, SYSTEM], between=between)
    with pytest.raises(ConfigError, match="The prefix does not go on behind the 3 tokens that were read"):
        generator.prefix([5, 6, 8, 9], behind=generator.prefix([5, 6, 7]))
    generator.close()


def test_caches_with_upkeep_keep_none(generator: Generator) -> None:
    manifest = generator.session.bundle.manifest
    assert manifest.procedure is not None
    upkeep = (Upkeep(graph="step", after="prompt"),)
    kept_up = replace(manifest, procedure=replace(manifest.procedure, upkeep=upkeep))
    object.__setattr__(generator.session.bundle, "manifest", kept_up)
    prefixes = Prefixes(generator, most=4)
    assert [prefixes.of([SYSTEM]) for _ in range(3)] == [None] * 3
    generator.close()
