"""Spec strings and recipe tables: what they say, what they refuse, and that they say the same when written again."""

import dataclasses
import json

import pytest

from trt_compress.errors import ConfigError
from trt_compress.methods import METHODS, CompressorConfig, parse_spec, spec_from_table, spec_string
from trt_compress.methods.vision import AvgPoolConfig, EvitConfig, RandomConfig, TomeConfig

MEANINGS = {
    "tome:num_merged=13": [TomeConfig(num_merged=13)],
    "tome:num_merged=[3,2,1]": [TomeConfig(num_merged=(3, 2, 1))],
    "tome:num_merged=8,schedule=decreasing": [TomeConfig(num_merged=8, schedule="decreasing")],
    "tome:num_merged=2,proportional_attention=false,over_limit=clamp": [
        TomeConfig(num_merged=2, proportional_attention=False, over_limit="clamp")
    ],
    "evit": [EvitConfig()],
    "evit:keep_ratio=0.5": [EvitConfig(keep_ratio=0.5)],
    "evit:keep_ratio=[0.9,0.5],layers=[2,4],fuse=false": [EvitConfig(keep_ratio=(0.9, 0.5), layers=(2, 4), fuse=False)],
    "avg_pool:stride=4,layer=0": [AvgPoolConfig(stride=4, layer=0)],
    "random:keep_ratio=0.25,seed=7": [RandomConfig(keep_ratio=0.25, seed=7)],
    "tome:num_merged=[1,0,2]+evit:layers=[3],keep_ratio=0.5+avg_pool:layer=5": [
        TomeConfig(num_merged=(1, 0, 2)),
        EvitConfig(layers=(3,), keep_ratio=0.5),
        AvgPoolConfig(layer=5),
    ],
    "none": [],
}

REFUSED = [
    ("tomee:num_merged=3", r"compressor 'tomee' is not known; there are tome, .*, or none\. Did you mean 'tome'\?"),
    ("TOME:num_merged=3", r"compressor 'TOME' is not known; .* Did you mean 'tome'\?"),
    ("xyz", r"compressor 'xyz' is not known; there are tome, evit, .*frame_pool, .*or none\.$"),
    ("tome:num_merge=3", r"tome: option 'num_merge' is not known; there are .* Did you mean 'num_merged'\?"),
    ("evit:seed=3", r"evit: option 'seed' is not known; there are keep_ratio, layers, fuse\.$"),
    ("tome", r"tome: option 'num_merged' is missing; write tome:num_merged=…\."),
    ("tome:schedule=constant", r"tome: option 'num_merged' is missing"),
    ("tome:num_merged=3,num_merged=4", r"spec 'tome:num_merged=3,num_merged=4': num_merged stands twice; give it once"),
    ("tome:num_merged", r"spec 'tome:num_merged': 'num_merged' is not key=value\."),
    ("tome:num_merged=", r"'num_merged=' is not key=value\."),
    ("tome:num_merged=[1,2", r"cannot be read; write name:key=value"),
    ("tome:num_merged=2++evit", r"spec '' cannot be read; write name:key=value,key=\[1,2\], several joined by \+\."),
    ("+", r"spec '' cannot be read"),
    ("tome=3", r"spec 'tome=3' cannot be read"),
    ("tome:num_merged=many", r"tome: num_merged=many is not a whole number or a list of whole numbers like \[1,2\]\."),
    ("tome:num_merged=1.5", r"tome: num_merged=1\.5 is not a whole number or"),
    ("tome:num_merged=[]", r"tome: num_merged=\[\] is not a whole number or"),
    ("tome:num_merged=[1,x]", r"tome: num_merged=\[1,x\] is not a whole number or"),
    ("tome:num_merged=-1", r"tome: num_merged=-1 is negative; give 0 or more tokens to merge\."),
    ("tome:num_merged=[3,-1]", r"tome: num_merged=\(3, -1\) is negative"),
    ("tome:num_merged=[3,1],schedule=decreasing", r"tome: schedule=decreasing needs one num_merged, not a list"),
    ("tome:num_merged=[3],schedule=increasing", r"tome: schedule=increasing needs one num_merged, not a list"),
    ("tome:num_merged=3,schedule=fast", r"schedule=fast is not one of constant, decreasing, increasing\."),
    ("tome:num_merged=3,over_limit=cut", r"tome: over_limit=cut is not one of error, clamp\."),
    ("tome:num_merged=3,proportional_attention=yes", r"tome: proportional_attention=yes is not true or false\."),
    (
        "evit:keep_ratio=0",
        r"evit: keep_ratio=0\.0 is out of range; it is the share of tokens kept, above 0 and up to 1",
    ),
    ("evit:keep_ratio=1.01", r"evit: keep_ratio=1\.01 is out of range"),
    ("evit:keep_ratio=nan", r"evit: keep_ratio=nan is out of range"),
    ("evit:keep_ratio=half", r"evit: keep_ratio=half is not a number or a list of numbers like \[1,2\]\."),
    ("evit:keep_ratio=[0.5,0.5]", r"evit: keep_ratio lists 2 ratios; give layers= with as many layers, ascending\."),
    ("evit:keep_ratio=[0.5,0.5],layers=[1]", r"evit: keep_ratio lists 2 ratios; give layers= with as many"),
    ("evit:layers=3", r"evit: layers=3 is not a list of whole numbers like \[1,2\]\."),
    ("evit:layers=[-1]", r"evit: layers=\[-1\] names layer -1; layers count from 0\."),
    ("random:layers=[3,3]", r"random: layers=\[3, 3\] names a layer twice; name each once\."),
    ("evit:keep_ratio=[0.5,,0.7],layers=[1,2,3]", r"keep_ratio=\[0\.5,,0\.7\] is not a number or a list of numbers"),
    ("evit:layers=[1,2,]", r"evit: layers=\[1,2,\] is not a list of whole numbers"),
    (
        "static_reuse:staleness_weight=nan",
        r"static_reuse: staleness_weight=nan is out of range; give a number from 0 on\.",
    ),
    ("static_reuse:staleness_weight=inf", r"static_reuse: staleness_weight=inf is out of range"),
    ("frame_pool:layer=-1", r"frame_pool: layer=-1 is out of range; layers count from 0\."),
    ("random:keep_ratio=-0.5", r"random: keep_ratio=-0\.5 is out of range"),
    ("random:seed=x", r"random: seed=x is not a whole number\."),
    ("avg_pool:stride=0", r"avg_pool: stride=0 is out of range; give 1 or more\."),
    ("avg_pool:layer=1.5", r"avg_pool: layer=1\.5 is not a whole number\."),
]


def fields_of(config: type[CompressorConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize("text", MEANINGS)
def test_meaning_and_round_trip(text: str) -> None:
    specs = parse_spec(text)
    assert [spec.config for spec in specs] == MEANINGS[text]
    assert parse_spec(spec_string(specs)) == specs
    assert spec_string(parse_spec(spec_string(specs))) == spec_string(specs)


def test_written_form_leaves_defaults_out() -> None:
    text = "tome:num_merged=3,schedule=constant + evit: layers=[ 2, 4 ] , keep_ratio=0.7"
    assert spec_string(parse_spec(text)) == "tome:num_merged=3+evit:layers=[2,4]"
    assert spec_string(()) == "none"
    assert parse_spec("") == parse_spec(" none ") == ()


@pytest.mark.parametrize("text", ["tome:num_merged=5[", "tome:num_merged=5,,", "tome:num_merged=[1,[2]]"])
def test_no_character_is_passed_over(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read; write name:key=value"):
        parse_spec(text)


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_out_of_range_is_refused(seed: str) -> None:
    with pytest.raises(ConfigError, match=f"random: seed={seed} is out of range; give 0 to 2147483647"):
        parse_spec(f"random:seed={seed}")


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text for text, _ in REFUSED])
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec(text)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "layers" in fields_of(method.config)])
def test_layers_that_do_not_ascend_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: layers=\[6, 3\] does not ascend; write layers=\[3, 6\]\.$"):
        parse_spec(f"{name}:layers=[6,3]")
    paired = "merge_ratio" if name == "atome" else "keep_ratio"
    if paired not in fields_of(METHODS[name].config):
        return
    along = rf"write layers=\[3, 6\], and {paired} in the same order\.$"
    with pytest.raises(ConfigError, match=along):
        parse_spec(f"{name}:{paired}=[0.7,0.5],layers=[6,3]")
    with pytest.raises(ConfigError, match=along):
        spec_from_table({"name": name, paired: [0.7, 0.5], "layers": [6, 3]})
    (spec,) = parse_spec(f"{name}:{paired}=[0.5,0.7],layers=[3,6]")
    assert spec.config.to_json()["layers"] == [3, 6]


def test_every_list_of_layers_is_held_to_the_rule() -> None:
    assert {name for name, method in METHODS.items() if "layers" in fields_of(method.config)} == {
        "evit",
        "random",
        "toc3d",
        "atome",
        "dynamicvit",
        "token_transform",
        "tokenpacker",
        "quecc",
    }


@pytest.mark.parametrize("text", [text for text in MEANINGS if "+" not in text and text != "none"])
def test_a_recipe_table_says_the_same(text: str) -> None:
    (spec,) = parse_spec(text)
    table = {"name": spec.name, **{k: v for k, v in spec.config.to_json().items() if v is not None}}
    assert spec_from_table(json.loads(json.dumps(table))) == spec


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"num_merged": 3}, r"recipe: a \[\[compressors\]\] table has no name; write name = \"tome\""),
        ({"name": 3}, r"recipe: a \[\[compressors\]\] table has no name"),
        ({"name": "tome", "num_merged": 1.5}, r"tome: num_merged=1\.5 is not a whole number or a list"),
        ({"name": "tome", "num_merged": True}, r"tome: num_merged=True is not a whole number or a list"),
        ({"name": "tome", "num_merged": [1, "x"]}, r"tome: num_merged=\[1, 'x'\] is not a whole number or"),
        ({"name": "evit", "fuse": 1}, r"evit: fuse=1 is not true or false\."),
        ({"name": "evit", "keepratio": 0.5}, r"evit: option 'keepratio' is not known; .* Did you mean 'keep_ratio'\?"),
    ],
    ids=str,
)
def test_refused_table(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec_from_table(table)


def test_every_compressor_is_described() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.summary and method.source and method.differs
        documented = " ".join(base.__doc__ or "" for base in method.config.__mro__)
        params = method.config.__dataclass_params__  # type: ignore[attr-defined]
        assert params.frozen and method.config.__slots__ is not None
        for field in dataclasses.fields(method.config):
            assert field.kw_only
            assert f" {field.name}: " in documented, f"{name}: {field.name} is not documented"
