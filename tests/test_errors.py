"""The tree drawn at the top of errors.py is the tree of the classes."""

import re

import pytest

from trt_compress import errors

DRAWN = re.compile(r"[├└]── (\w+)(?:\((\w+)\))?.*exit (\d)$", re.MULTILINE)


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = {name: (base or None, int(code)) for name, base, code in DRAWN.findall(errors.__doc__ or "")}
    real = {
        name: (next((base.__name__ for base in cls.__bases__[1:]), None), cls.exit_code)
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.TrtCompressError) and cls is not errors.TrtCompressError
    }
    assert drawn == real


def test_a_hint_stands_on_its_own_line() -> None:
    with pytest.raises(ValueError, match=r"^num_merged=130, at most 98\.\nHint: Lower num_merged\.$"):
        raise errors.ConfigError("num_merged=130, at most 98.", hint="Lower num_merged.")
    assert str(errors.GateError("off by 1.")) == "off by 1."
