"""What the sites of a bundle say together about the tokens of a sample."""

import pytest

from trt_compress.format.manifest import Compression, Dim
from trt_compress.runtime.tokens import caches_text, token_flows, tokens_of_sample, tokens_text, why_no_tokens


def site(
    before: Dim, after: Dim, *, at: str = "blocks.0", groups: int = 1, padding: int = 0, keeps_rest: bool = False
) -> Compression:
    plain = Compression(site=at, compressor="any", config={}, tokens_in=before, tokens_out=after)
    return plain.with_groups(groups=groups, padding=padding, keeps_rest=keeps_rest)


ROUTED = [
    site(64, 20, groups=8, keeps_rest=True),
    site(64, 20, groups=8, keeps_rest=True),
    site(128, 39, groups=4, keeps_rest=True),
]


@pytest.mark.parametrize(
    ("sites", "pair", "text"),
    [
        ([], None, None),
        ([site(65, 60), site(60, 55)], (65, 55), "65 → 55"),
        ([site(197, 99), site(99, 99, at="encoder_output")], (197, 99), "197 → 99"),
        ([site(50, 25, groups=2)], (100, 50), "100 → 50"),  # two halves of a sample, each halved
        (ROUTED, (512, 160), "156–160 of 512"),
        (ROUTED[:2], (512, 160), "160 of 512"),
        ([site(144, 36, keeps_rest=True)], (144, 36), "36 of 144"),
        # windows of 25 over images of 8 x 16: 200 rows of which 72 fill up
        ([site(25, 13, groups=8, padding=72, keeps_rest=True)], (128, 104), "104 of 128"),
        ([site(25, 25, groups=8, padding=72, keeps_rest=True)], (128, 128), "128 of 128"),
        # of bundles made before: neither groups nor rest are said, and the sites are no chain
        ([site(64, 20), site(64, 20), site(128, 39)], None, "20 of 64 at a site, 39 of 128 at a site"),
        ([site("frames", "kept")], None, "frames → kept"),
        ([site("frames", "kept", groups=2)], None, "2 × frames → 2 × kept"),
        ([site(50, "kept"), site("kept", 10)], (50, 10), "50 → 10"),
        ([site(50, 25, at="a/blocks.0"), site(80, 8, at="b/blocks.0")], None, "a: 50 → 25; b: 80 → 8"),
        ([site(50, 25, at="a/blocks.0"), site(25, 8, at="a/blocks.1")], (50, 8), "50 → 8"),
    ],
)
def test_sites_are_put_together(sites: list[Compression], pair: tuple[int, int] | None, text: str | None) -> None:
    assert tokens_of_sample(sites) == pair
    assert tokens_text(sites) == text
    assert why_no_tokens(sites) if pair is None else True


def test_the_note_says_what_the_numbers_are_of() -> None:
    assert token_flows(ROUTED)[0].note == (
        "computed at a site, the rest is kept: 20 of 64 in each of 8, 39 of 128 in each of 4"
    )
    assert token_flows([site(65, 60), site(60, 55)])[0].chain == (65, 60, 55)


@pytest.mark.parametrize("value", ["many", -1, True, 2.5, None, [4]])
def test_groups_that_are_no_count_are_not_taken(value: object) -> None:
    found = Compression(site="a", compressor="b", config={}, tokens_in=4, tokens_out=2, extra={"groups": value})
    assert found.groups == 1


def test_what_a_bundle_says_of_groups_is_no_part_of_its_digest_and_survives() -> None:
    found = ROUTED[0]
    assert Compression.from_json(found.to_json(), "a site") == found
    assert (found.groups, found.padding, found.keeps_rest) == (8, 0, True)
    assert "groups" not in found.to_json(with_extra=False) and "padding" not in found.to_json()


def test_entries_of_caches_are_no_tokens() -> None:
    """A store keeps all entries, a selector some; neither removes a token."""
    sites = [
        Compression(site=f"step/cache.{layer}", compressor=name, config={}, tokens_in=256, tokens_out=kept)
        for layer, selected in ((0, 40), (1, 40), (2, 80), (3, 256))
        for name, kept in (("snapkv", selected), ("kivi", 256))
    ]
    said = "40 of 256 entries in 2 layers; 80 of 256 entries in 1 layer; all 256 entries in 1 layer"
    assert tokens_text(sites) == f"cache: keeps {said}"
    assert tokens_of_sample(sites) is None and why_no_tokens(sites) == "what is compressed is a cache"


def test_what_caches_are_packed_to_is_said() -> None:
    plain, packed = (
        Compression(site="step/cache.0", compressor=name, config={}, tokens_in=256, tokens_out=kept)
        for name, kept in (("snapkv", 40), ("kivi", 256))
    )
    both = packed.with_bytes(12.0, 480, (2, 4))
    assert Compression.from_json(both.to_json(), "a site") == both and both.bits == (2, 4)
    assert caches_text([plain, both]) == "keeps 40 of 256 entries, packed to 2 and 4 bits, in 1 layer"
    assert caches_text([both]) == "keeps all 256 entries, packed to 2 and 4 bits, in 1 layer"
    assert caches_text([plain.with_bytes(12.0, 480)]) == "keeps 40 of 256 entries in 1 layer"
    assert caches_text([site(65, 60)]) is None


@pytest.mark.parametrize("value", ["4", 4, True, [True], ["4"], [0], None])
def test_bits_that_are_none_are_not_taken(value: object) -> None:
    found = Compression(site="a", compressor="b", config={}, tokens_in=4, tokens_out=2, extra={"bits": value})
    assert found.bits == ()
