"""All forms of every operator on the same calls: reference, torch, body, native operator, emulated GPU kernels.

Inside the contract they must agree, whatever the values: ties, both zeros, subnormal numbers, NaN and infinity where
the contract speaks of them, batch 0, no channels, positions up to 2**62. A decision between two numbers that differ by
rounding may go either way; there the operator's regret must be next to nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from tests.attack.calls import ATTRIBUTES, NAMES, Array, Call, lawful_call, types_of
from tests.attack.sessions import Sessions, output_types
from tests.native.emulation.building import cuda_library
from trt_compress.plugins.library import Library
from trt_compress.plugins.native_torch import CudaKernels
from trt_compress.plugins.operator import as_float32
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN
from trt_compress.plugins.testing.reference import reference

SEED = 11
OF_ONE_SESSION = 24
OPSETS = (18, 20)
REGRET = 1e-5  # as CLEAR of the conformance test: closer decisions hang on the rounding of float32
# A few near ties are the price of random values; more would say that this test compares nothing.
MOST_NEAR_TIES = 0.02
BITWISE = ("TokenRestore", "KVAppend", "KVCompact")
DECIDED_BY_ROUNDING = ("TokenMerge", "TokenSelectDynamic", "CodebookEncode")

Form = Callable[[Call], Sequence[Array]]


def tensors_of(call: Call) -> list[torch.Tensor]:
    return [
        torch.tensor(array).to(getattr(torch, dtype)) for array, dtype in zip(call.inputs, call.dtypes, strict=True)
    ]


def arguments_of(call: Call) -> list[Any]:
    names = [attribute.name for attribute in operators()[call.op_type].spec.attributes]
    values = [call.attributes[name] for name in names]
    return [*tensors_of(call), *(as_float32(value) if isinstance(value, float) else value for value in values)]


def arrays(results: Any) -> list[Array]:
    several = results if isinstance(results, tuple | list) else [results]
    return [(tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy() for tensor in several]


def by_torch(call: Call) -> list[Array]:
    function = getattr(getattr(torch.ops, DOMAIN), operators()[call.op_type].spec.torch_name)
    return arrays(function(*arguments_of(call)))


def by_kernels(kernels: CudaKernels) -> Form:
    def run(call: Call) -> list[Array]:
        found = arrays(kernels.run(operators()[call.op_type].spec, arguments_of(call)))
        kernels.check()
        return found

    return run


@pytest.fixture(scope="module")
def forms(native_library: Library, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Form]:
    contracts = {contract["name"]: contract for contract in native_library.info["operators"]}
    assert set(contracts) == set(NAMES) == {operator.spec.name for operator in operators().values()}
    found: dict[str, Form] = {"torch": by_torch}
    for opset in OPSETS:
        function = lambda call, opset=opset: operators()[call.op_type].function_proto(opset, [call.attributes])  # noqa: E731
        found[f"body {opset}"] = Sessions(contracts, None, function, opset=opset).run
    found["native"] = Sessions(contracts, native_library.path).run
    library = cuda_library(tmp_path_factory.mktemp("emulated"), ["-O2"])
    found["kernels"] = by_kernels(CudaKernels(library, device_type="cpu"))
    return found


def scale_of(call: Call, wanted: Sequence[Array]) -> float:
    """What errors are relative to: the largest output, or of a sum that cancels its largest term."""
    scale = max((float(np.abs(w[np.isfinite(w)]).max(initial=0)) for w in wanted if w.dtype.kind == "f"), default=0.0)
    if call.name == "TokenMix" and not call.attributes["normalize"]:
        x, weight = (np.abs(array.astype(np.float64)) for array in call.inputs)
        scale = max(scale, float((weight @ x).max(initial=0)))
    elif call.name == "AttentionScore" and not call.attributes["softmax"]:
        q, k, _, bias, _ = (np.abs(array.astype(np.float64)) for array in call.inputs)
        terms = q.max(initial=0) * k.sum(axis=3).max(initial=0) * abs(call.attributes["scale"])
        scale = max(scale, float(terms + bias.max(initial=0)))
    elif call.name in ("TokenSelect", "KVAttention", "KVAttentionPlain", "CodebookDecode", "TokenMerge"):
        if call.name == "TokenSelect" and call.attributes["remainder"] == 1:
            x, score = (np.abs(array.astype(np.float64)) for array in call.inputs)
            scale = max(scale, float((score[:, None] @ x).max(initial=0)))
        elif call.name in ("KVAttention", "KVAttentionPlain"):
            least = call.inputs[6 if call.name == "KVAttention" else 2]
            scale = max(scale, float(np.abs(least.astype(np.float64)).max(initial=0)))
            if call.attributes.get("v_rank"):
                factor, basis = (float(np.abs(call.inputs[at].astype(np.float64)).max(initial=0)) for at in (12, 13))
                scale = max(scale, factor * basis)
        elif call.name != "TokenSelect":
            array = call.inputs[0 if call.name == "TokenMerge" else -1]
            scale = max(scale, float(np.abs(array.astype(np.float64)).max(initial=0)))
    return scale


def difference(call: Call, described: Any, dtype: str, found: Array, wanted: Array, scale: float) -> str:
    """What is wrong with one output; nothing if it is right."""
    if found.shape != wanted.shape:
        return f"{described.name} has shape {found.shape}, not {wanted.shape}"
    if found.dtype.kind != "f" or not wanted.size:
        same = np.array_equal(found, wanted)
        return "" if same else f"{described.name} is {found.tolist()}, not {wanted.tolist()}"[:600]
    spec = operators()[call.op_type].spec
    one, two = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(two)
    if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
        return f"{described.name} has other numbers that are not finite"
    error = float(np.abs(one[finite] - two[finite]).max(initial=0))
    if not error <= spec.tolerance[dtype] * scale:
        return f"{described.name} is off by {error:.3g}, of {scale:.3g}"
    if call.name in BITWISE and not np.array_equal(np.signbit(one), np.signbit(two)):
        return f"{described.name} has zeros of another sign"
    return ""


def regret_of(call: Call, outputs: Sequence[Array]) -> float:
    """How much worse than the best the decisions of these outputs are."""
    operator = operators()[call.op_type]
    assert operator.regret is not None
    named = dict(zip([tensor.name for tensor in operator.spec.inputs], tensors_of(call), strict=True))
    made = {tensor.name: torch.tensor(array) for tensor, array in zip(operator.spec.outputs, outputs, strict=True)}
    return float(operator.regret(named, call.attributes, made).max())


def compare(call: Call, contract: Any, found: Sequence[Array], wanted: Sequence[Array]) -> tuple[str, bool]:
    """What is wrong, and whether a near tie went the other way."""
    spec, types = operators()[call.op_type].spec, output_types(contract, call)
    scale = scale_of(call, wanted)
    pairs = list(zip(spec.outputs, types, found, wanted, strict=True))
    wrong = [said for pair in pairs if (said := difference(call, *pair, scale))]
    decided = any(said.split()[0] in ("dest", "index", "count", "code", "largest") for said in wrong)
    finite = all(np.isfinite(array).all() for array in call.inputs if array.dtype.kind == "f")
    shapes = [one.shape == two.shape for *_, one, two in pairs]
    if decided and call.name in DECIDED_BY_ROUNDING and (finite or call.name == "TokenMerge"):
        may_trim = call.name == "TokenSelectDynamic" and call.attributes["mode"] == 1
        if (all(shapes) or may_trim) and regret_of(call, found) <= REGRET:
            return "", True
    return "; ".join(wrong), False


def shown(call: Call) -> str:
    inputs = ", ".join(f"{dtype}{list(a.shape)}" for a, dtype in zip(call.inputs, call.dtypes, strict=True))
    return f"{call.name} {call.attributes} ({inputs})"


def wanted_of(call: Call, first: Sequence[Array]) -> Sequence[Array]:
    """What the reference says; of calls without a batch or without outputs there is nothing but shapes."""
    if 0 in [size for array in first for size in array.shape] or not call.inputs[0].shape[0]:
        return first
    with np.errstate(all="ignore"):
        return reference(call.op_type, call.inputs, call.attributes).outputs


def session_of(random: Any, number: int) -> tuple[str, Any, Any]:
    """What the calls of one session share: an operator, its attributes and dtypes."""
    name = NAMES[number % len(NAMES)]
    return name, ATTRIBUTES[name](random), types_of(random, name)


def attacked(forms: dict[str, Form], contracts: Any, count: int, of_one_session: int) -> tuple[list[str], Counter[str]]:
    """Differences between the forms, and near ties by form."""
    random = default_rng(SEED)
    differences: list[str] = []
    near_ties: Counter[str] = Counter()
    name, attributes, types = session_of(random, 0)
    for number in range(count):
        if number and number % of_one_session == 0:
            name, attributes, types = session_of(random, number // of_one_session)
        call = lawful_call(random, name, attributes, types)
        first: Sequence[Array] | None = None
        for form, run in forms.items():
            if form.startswith("body") and "bfloat16" in call.dtypes:
                continue  # ONNX Runtime has no bfloat16 for the standard operators on the CPU
            try:
                found = run(call)
                first = found if first is None else first
                wrong, is_near = compare(call, contracts[name], found, wanted_of(call, first))
            except Exception as error:  # whatever a form raises inside the contract is a difference
                wrong, is_near = f"{type(error).__name__}: {error}"[:400], False
            near_ties[form] += is_near
            if wrong:
                differences.append(f"{form}: {shown(call)}: {wrong}")
    return differences, near_ties


def test_forms(attack: Any, forms: dict[str, Form], native_library: Library) -> None:
    contracts = {contract["name"]: contract for contract in native_library.info["operators"]}
    count = attack.count(150, 10_000)
    differences, near_ties = attacked(forms, contracts, count, OF_ONE_SESSION if attack.long else 6)
    attack.saw(seed=SEED, differences=len(differences), forms=len(forms) + 1, near_ties=sum(near_ties.values()))
    assert differences[:10] == []
    assert max(near_ties.values()) <= MOST_NEAR_TIES * count
