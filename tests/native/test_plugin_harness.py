"""Every TensorRT plugin through its whole life, without TensorRT: by its headers, or those of the emulation.

The kernels run on the CPU by the emulation, under the address and undefined-behaviour sanitizers. What the plugins
answer is held against SPEC and the torch operator.
"""

import os
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.native.emulation.building import (
    HERE,
    SANITIZE,
    harness,
    headers_params,
    interface_params,
    link,
    objects,
    operator_folders,
    tensorrt_library,
)
from tests.plugins.test_conformance import Case, check
from trt_compress.plugins.build import build
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN
from trt_compress.plugins.testing.plugin_harness import (
    HarnessAnswers,
    Question,
    ask,
    harness_on_gpu,
    input_types,
    plugin_dtype,
    tensor_from,
)
from trt_compress.tools.machine import gpus

each_version = pytest.mark.parametrize("headers", interface_params())
PLUGINS = {folder.name for folder in operator_folders("cuda_op.cpp")}
OPERATORS = [operator for operator in operators().values() if operator.spec.torch_name in PLUGINS]
each_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.spec.torch_name)
MOST_VALUES = int(os.environ.get("TRTC_TEST_VALUES", "4000"))  # of one tensor; of more the sanitized emulation is slow
FIELD_TYPES = {"int": "int32", "ints": "int32", "float": "float32"}

FAULTS = {
    "ReadsDimensions": "asked for the value of a dimension that is not constant",
    "DividesByZero": "a dimension is divided by zero",
    "LooksAhead": "supportsFormatCombination() looks at tensors after pos",
    "TakesAnyFormat": "a format other than linear is accepted",
    "TooManyFormats": "more format combinations are accepted than getFormatCombinationLimit() says",
    "WrongShape": "shapes differ between known and unknown sizes",
    "TakesTooFew": "getOutputDataTypes() takes too few inputs",
    "BoolOutput": "a plugin's output cannot be BOOL or UINT8",
    "LosesFields": "the creator does not take its own serialized fields",
    "ChangesFields": "the fields change when they are serialized again",
    "NoClone": "clone() gave no plugin",
    "ForgetfulClone": "a clone serializes other fields",
    "SharedContext": "attachToContext() gave no plugin of its own",
    "OneContext": "a second context got no plugin of its own",
    "ZeroTactic": "tactics must be unique and not zero",
    "WrongAlias": "output 0 is aliased with something of another shape or type",
    "TakesAnything": "the creator took fields that it must refuse",
    "RefusesSilently": "nothing was logged for fields that were refused",
    "WrongName": "the plugin is called Sound",
    "WritesBeyond": "enqueue wrote beyond output 0",
    "WritesBefore": "enqueue wrote beyond output 0",
    "WritesInput": "enqueue wrote into input x",
    "WritesBeyondWorkspace": "enqueue wrote beyond its workspace",
    "OtherBits": "a second run gives other bits",
    "FailsToRun": "enqueue() returned 1",
    "LargeSize": "a measured size is above its upper bound",
    "KeepsShapes": "a change of shapes gives other bits than a new plugin",
    "CountsShapes": "shapes that changed back give other bits",
}
CHANGES = ("Sound", "KeepsShapes", "CountsShapes")  # run on other sizes too


# ---- the harness itself ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], HarnessAnswers]:
    """The harness on the example plugin: sound, and with one fault after another."""

    @cache
    def answers(headers: Path) -> HarnessAnswers:
        folder = tmp_path_factory.mktemp("example")
        flags = (*SANITIZE, "-isystem", str(headers))
        parts = objects((HERE.parent / "harness" / "example_plugin.cpp", HERE / "cuda_emulation.cpp"), flags)
        library = link(folder / "libexample.so", parts, ["-shared", *SANITIZE])
        for name, values in (("x", 42), ("more", 105)):
            (folder / f"{name}.bin").write_bytes(struct.pack(f"{values}f", *range(1, values + 1)))
        lines: list[str] = []
        for name in ("Sound", *FAULTS):
            for dropped, end in ((1, "run"), (-1, "refuse")):
                lines += [f"case {name}.{end}", f"plugin {name} 1 example", f"field num_dropped declared {dropped}"]
                lines += ["field scale declared 2.5", "field list declared 3 4", "input x float32 B=2 N=7 3"]
                more = [f"data x {folder / 'more.bin'}"] if name in CHANGES else []
                lines += [f"data x {folder / 'x.bin'}", "bind B=5", *more, "bind N=9", end]
        return ask(harness(folder, headers, SANITIZE), library, lines, folder, enqueue=True)

    return answers


@each_version
def test_harness_passes_a_sound_plugin(headers: Path, example: Callable[[Path], HarnessAnswers]) -> None:
    answers = example(headers)
    answer = answers.cases["Sound.run"]
    assert answer["problems"] == [] and answers.cases["Sound.refuse"]["problems"] == []
    assert answer["output_shapes"] == [[[2, 6, 3]], [[5, 6, 3]], [[2, 8, 3]]] and answer["changes"] == 1
    assert answer["serialized"][2] == {"name": "list", "type": "int64", "length": 2, "values": [3, 4]}
    written = struct.unpack("36f", Path(answer["outputs"][0]["path"]).read_bytes())
    assert list(written) == [2.5 * value for value in [*range(1, 19), *range(22, 40)]]
    assert "num_dropped must be 0 or more" in answers.cases["Sound.refuse"]["errors"][0]


@each_version
@pytest.mark.parametrize("fault", FAULTS)
def test_harness_finds(fault: str, headers: Path, example: Callable[[Path], HarnessAnswers]) -> None:
    cases = example(headers).cases
    of_fields = fault in ("TakesAnything", "RefusesSilently")
    assert FAULTS[fault] in cases[f"{fault}.{'refuse' if of_fields else 'run'}"]["problems"]
    assert cases[f"{fault}.{'run' if of_fields else 'refuse'}"]["problems"] == []


# ---- the operators ---------------------------------------------------------------------------------------------------


def questions(operator: Operator) -> list[Question]:
    found = []
    for sample in operator.samples:
        for dtype in ("float32", "float16", "bfloat16"):
            question = Question(operator=operator, sample=sample, dtype=dtype)
            first = Question(operator=operator, sample=sample)
            types = [plugin_dtype(tensor) for tensor in question.inputs]
            if dtype == "float32" or types != [plugin_dtype(tensor) for tensor in first.inputs]:
                found.append(question)
    return found


def runs(question: Question) -> bool:
    """Whether the kernels run on this sample in the emulation too."""
    return max(tensor.numel() for tensor in (*question.inputs, *question.outputs)) <= MOST_VALUES


def changes(question: Question) -> bool:
    """Whether they run on other sizes too, and on the first again."""
    values = max(tensor.numel() for tensor in (*question.inputs, *question.outputs))
    return question.dtype == "float32" and values <= min(MOST_VALUES, 2000)


def refusals(operator: Operator) -> dict[str, list[str]]:
    """Fields that the creator must refuse, by what is wrong with them."""
    spec, sample = operator.spec, operator.samples[-1]
    good = {a.name: f"field {a.name} declared {_words(sample.attributes[a.name])}" for a in spec.attributes}
    found = {}
    for attribute in spec.attributes:
        name = attribute.name
        bad = {"missing": None, "text": f"field {name} char abc", "empty": f"field {name} empty"}
        if attribute.kind == "int":
            bad["two values"] = f"field {name} declared {_words([sample.attributes[name]] * 2)}"
            bad["a real number"] = f"field {name} float32 1.5"
        if attribute.minimum is not None:
            bad["too small"] = f"field {name} declared {attribute.minimum - 1}"
        if attribute.maximum is not None:
            bad["too large"] = f"field {name} declared {attribute.maximum + 1}"
        for what, line in bad.items():
            fields = {**good, name: line}
            found[f"{name} {what}"] = [line for line in fields.values() if line is not None]
    return found


def _words(value: Any) -> str:
    return " ".join(map(repr, value)) if isinstance(value, list | tuple) else repr(value)


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Callable[[str], HarnessAnswers]]:
    @cache
    def of_version(headers: Path) -> Callable[[str], HarnessAnswers]:
        folder = tmp_path_factory.mktemp("plugins")
        library, program = tensorrt_library(folder, headers, SANITIZE), harness(folder, headers, SANITIZE)

        @cache
        def of_operator(op_type: str) -> HarnessAnswers:
            operator = operators()[op_type]
            inside = folder / operator.spec.torch_name
            inside.mkdir()
            lines: list[str] = []
            for question in questions(operator):
                lines += question.lines(inside if runs(question) else None, changes=changes(question))
            for number, fields in enumerate(refusals(operator).values()):
                lines += [f"case refused-{number}", f"plugin {op_type} {operator.spec.version} {DOMAIN}"]
                lines += [*fields, "refuse"]
            return ask(program, library, lines, inside, enqueue=True)

        return of_operator

    return of_version


Plugins = Callable[[Path], Callable[[str], HarnessAnswers]]


@each_version
@each_operator
def test_creator_is_the_spec(operator: Operator, headers: Path, plugins: Plugins) -> None:
    spec = operator.spec
    creators = plugins(headers)(spec.op_type).library["creators"]
    assert [c["name"] for c in creators] == sorted(o.spec.op_type for o in OPERATORS)
    (creator,) = (c for c in creators if c["name"] == spec.op_type)
    assert (creator["version"], creator["namespace"]) == (str(spec.version), DOMAIN)
    fields = [(field["name"], field["type"]) for field in creator["fields"]]
    assert fields == [(a.name, FIELD_TYPES[a.kind]) for a in spec.attributes]


@each_version
@each_operator
def test_life_breaks_no_rule(operator: Operator, headers: Path, plugins: Plugins) -> None:
    cases = plugins(headers)(operator.spec.op_type).cases
    wrong = {}
    for question in questions(operator):
        found = [*cases[question.label]["problems"], *cases[question.label]["errors"]]
        if not runs(question):
            found = [problem for problem in found if not problem.startswith("no data of the right size")]
        if found:
            wrong[question.label] = found
    assert wrong == {}


@each_version
@each_operator
def test_shapes_types_and_fields_are_the_spec(operator: Operator, headers: Path, plugins: Plugins) -> None:
    spec, cases = operator.spec, plugins(headers)(operator.spec.op_type).cases
    names = [tensor.name for tensor in spec.inputs]
    for question in questions(operator):
        answer, label = cases[question.label], question.label
        types = [plugin_dtype(tensor) for tensor in question.outputs]
        assert answer["output_types"] == types, label
        shapes = [[list(tensor.shape) for tensor in question.outputs], *(outputs for _, outputs in question.others)]
        assert bool(answer["size_tensors"]) == (question.sample.attributes.get(spec.data_sized) == 1), label
        if answer["size_tensors"]:
            # Sizes that the data decide are known by their upper bound only.
            pairs = zip(answer["output_shapes"][0], shapes[0], strict=True)
            assert all(a >= b for given, real in pairs for a, b in zip(given, real, strict=True)), label
        else:
            assert answer["output_shapes"] == shapes, label
        found = {tuple(types[: len(names)]) for types in answer["format_combinations"]}
        assert found == input_types(operator), label
        own = [*(plugin_dtype(tensor) for tensor in question.inputs), *types]
        assert own in answer["format_combinations"], label
        aliases = [names.index(tensor.aliases) if tensor.aliases else -1 for tensor in spec.outputs]
        assert answer["aliases"] == aliases, label
        for field, attribute in zip(answer["serialized"], spec.attributes, strict=True):
            value = question.sample.attributes[attribute.name]
            wanted = list(value) if isinstance(value, list | tuple) else [value]
            assert (field["name"], field["type"]) == (attribute.name, FIELD_TYPES[attribute.kind]), label
            assert field["values"] == pytest.approx(wanted, rel=1e-6), label


@each_version
@each_operator
def test_enqueue_computes_what_the_contract_says(operator: Operator, headers: Path, plugins: Plugins) -> None:
    cases = plugins(headers)(operator.spec.op_type).cases
    ran = [question for question in questions(operator) if runs(question)]
    assert len(ran) >= 5
    for question in ran:
        answer = cases[question.label]
        outputs = [
            tensor_from(Path(output["path"]), like, output["shape"])
            for output, like in zip(answer["outputs"], question.outputs, strict=True)
        ]
        case = Case(operator=operator, sample=question.sample, form="plugin", dtype=question.dtype)
        check(case, question.inputs, outputs)


@each_version
@each_operator
def test_creator_refuses_wrong_fields(operator: Operator, headers: Path, plugins: Plugins) -> None:
    cases = plugins(headers)(operator.spec.op_type).cases
    for number, what in enumerate(refusals(operator)):
        answer = cases[f"refused-{number}"]
        assert answer["problems"] == [], what
        (message,) = answer["errors"]
        assert message.startswith(f"{operator.spec.op_type}: ") and what.split()[0] in message, what


# ---- the library that `plugins build` makes --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("headers", headers_params())
def test_built_library_lives_the_same_life(headers: Path, tmp_path: Path) -> None:
    """With nvcc and no emulation; with a GPU its kernels run too, also in a captured CUDA graph."""
    for tool in ("nvcc", "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on the path")
    here = sorted({int(gpu["compute_cap"].replace(".", "")) for gpu in gpus()})
    (outcome,) = build(only=("tensorrt",), cuda=here or [87], tensorrt=headers)
    assert outcome.library is not None, outcome.note
    asked = [question for operator in OPERATORS for question in questions(operator)]
    lines = [line for question in asked for line in question.lines(tmp_path if here else None)]
    program = harness_on_gpu(tmp_path, headers)
    answers = ask(program, outcome.library.path, lines, tmp_path, enqueue=bool(here))
    wrong = {label: [*said["problems"], *said["errors"]] for label, said in answers.cases.items()}
    assert {label: said for label, said in wrong.items() if said} == {}
    assert set(answers.cases) == {question.label for question in asked}
    for question in asked if here else ():
        answer = answers.cases[question.label]
        assert answer["graph"] == ("skipped: a size depends on the data" if answer["size_tensors"] else "ran")
        outputs = [
            tensor_from(Path(output["path"]), like, output["shape"])
            for output, like in zip(answer["outputs"], question.outputs, strict=True)
        ]
        case = Case(operator=question.operator, sample=question.sample, form="plugin", dtype=question.dtype)
        check(case, question.inputs, outputs)
