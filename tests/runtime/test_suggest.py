import pytest

from trt_compress.suggest import did_you_mean


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
