import pytest

from trt_compress.suggest import did_you_mean, not_known


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("tmoe", " Did you mean 'tome'?"),
        ("ToMe", " Did you mean 'tome'?"),
        ("avgpool", " Did you mean 'avg_pool'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_suggested(given: str, expected: str) -> None:
    assert did_you_mean(given, iter(["tome", "evit", "avg_pool", "random"])) == expected


def test_the_suggestion_keeps_its_own_capitals() -> None:
    assert did_you_mean("tokenmerg", ["TokenMerge"]) == " Did you mean 'TokenMerge'?"


def test_what_is_not_known_is_refused_in_one_voice() -> None:
    allowed = {"tome": 1, "evit": 2}
    assert (
        not_known("method", "tmoe", allowed) == "method 'tmoe' is not known; there are tome, evit. Did you mean 'tome'?"
    )
    assert not_known("x: bits", 3, (8,)) == "x: bits 3 is not known; there is 8."
    assert not_known("method", 1, ["tome"], ", or none") == "method 1 is not known; there are tome, or none."
