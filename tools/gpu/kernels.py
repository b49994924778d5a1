"""The kernels on a GPU against floors, textbook and PyTorch: `python -m trt_compress.tools.gpu.kernels`.

One call of less than ten minutes. The copy bandwidth is measured in it; each kernel's result is checked before it is
timed, between sides that take turns, from captured CUDA graphs, with a cold level 2 cache. Every result is appended as
a line of JSON when it is there, with what was wanted and what was expected beforehand (`gpu_cases.py`).
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from trt_compress.errors import GateError, TrtCompressError, UnsupportedError
from trt_compress.plugins.attention_score.spec import HEADS, ROWS
from trt_compress.plugins.native_torch import CudaKernels, torch_forms
from trt_compress.plugins.operator import Operator, as_float32
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch, sample_inputs
from trt_compress.tools.bench.textbook import merge as textbook_merge
from trt_compress.tools.gpu import cases
from trt_compress.tools.gpu.command import measure, parser_of
from trt_compress.tools.gpu.timing import (
    Call,
    DeviceClock,
    Recorder,
    Timed,
    copy_bytes_per_s,
    ratio,
    summary,
)

WHO = "gpu_kernels"
ROUNDS = 100
LANES = 128  # fp32 multiply-adds of a multiprocessor in a cycle, SM 86 and later but 100
CLEAR = 1e-4  # decisions that cost no more than this are rounding's
ITEMS = 4  # of a batch, whose decisions are looked at on the CPU


class Bench:
    """One run: where, with what, and until when."""

    def __init__(
        self,
        clock: DeviceClock,
        kernels: CudaKernels | None,
        recorder: Recorder,
        *,
        deadline: float,
        rounds: int = ROUNDS,
        dry_run: bool = False,
        seed: int = 0,
    ) -> None:
        self.clock = clock
        self.kernels = kernels
        self.recorder = recorder
        self.deadline = deadline
        self.rounds = rounds
        self.dry_run = dry_run
        self.seed = seed
        self.copy_bytes_per_s = copy_bytes_per_s(clock, deadline, **({"num_bytes": 1 << 20} if dry_run else {}))
        facts = clock.facts()
        clock_hz = 1e6 * float(facts["now"].get("clocks.max.sm") or 1980)
        self.fp32_per_s = 2.0 * LANES * facts["multiprocessors"] * clock_hz
        recorder.add(
            {"case": "copy", "gb_per_s": round(self.copy_bytes_per_s / 1e9, 1), "verdict": "reported",
             "detail": f"{self.copy_bytes_per_s / 1e9:.0f} GB/s read and written"}
        )  # fmt: skip

    # ---- steps -------------------------------------------------------------------------------------------------------

    def steps(self) -> dict[str, Callable[[], Mapping[str, Any]]]:
        """What there is to measure, the most wanted first."""
        found: dict[str, Callable[[], Mapping[str, Any]]] = {"TokenMerge, 64 images": self.merge}
        for cache in cases.CACHES:
            found[f"KVAttention, {cache.bits} bits, batch {cache.batch}"] = partial(self.cache, cache)
        for name, rows in (("last row", 1), ("64 text rows", 64)):
            found[f"AttentionScore, {name}"] = partial(self.score, name, rows)
        found |= {case.name: partial(self.large, case) for case in cases.LARGE}
        found |= {case.name: partial(self.small, case) for case in cases.SMALL}
        return found

    def run(self, only: str = "") -> None:
        """Every step whose name holds `only`; one that fails or finds no time is recorded as such."""
        for name, step in self.steps().items():
            if only.lower() not in name.lower():
                continue
            if time.monotonic() > self.deadline:
                self.recorder.add({"case": name, "verdict": "skipped", "detail": "no time was left"})
                continue
            try:
                line = step()
            except ImportError as error:
                line = {"verdict": "skipped", "detail": str(error)}
            except (TrtCompressError, RuntimeError) as error:
                line = {"verdict": "failed", "detail": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            if self.dry_run and line["verdict"] != "failed":
                line = {**line, "verdict": "rehearsed"}  # times of a CPU meet and miss nothing
            self.recorder.add({"case": name, **line})
            last = self.recorder.lines[-1]
            print(f"{last['verdict']:9}{name}: {last.get('detail', '')}", flush=True)

    def large(self, case: cases.KernelCase) -> Mapping[str, Any]:
        """A kernel against its floor."""
        operator, sample = case.operator, case.sample(self.dry_run)
        inputs = self.inputs(operator, sample)
        ours, outputs = self.ours(operator, sample, inputs)
        num_bytes = self.bytes_moved(case, sample)
        half = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=self.clock.device)
        copied = torch.empty_like(half)
        times = self.timed({"ours": ours, "copy of as many bytes": lambda: copied.copy_(half)})
        by_bytes = 1e6 * num_bytes / self.copy_bytes_per_s
        by_flops = 1e6 * operator.spec.flops({**sample.axes, **sample.attributes}) / self.fp32_per_s
        floor = max(by_bytes, by_flops)
        share = ratio([floor] * len(times["ours"]), times["ours"])
        is_met = None if case.wanted is None else share["median"] >= case.wanted
        what = "of the floor by arithmetic" if by_flops > by_bytes else "of a copy"
        return {
            **self.described(operator, sample),
            "bytes_moved": num_bytes,
            "floor_us": round(floor, 2),
            "floor_by_flops_us": round(by_flops, 2),
            "share_of_floor": share,
            "share_of_copy_of_as_many_bytes": ratio(times["copy of as many bytes"], times["ours"]),
            "time_us": {name: summary(values) for name, values in times.items()},
            "wanted": {"share_of_floor": case.wanted},
            "expected": {"share_of_floor": case.expected, "why": case.why},
            "verdict": _verdict(is_met),
            "detail": f"{float(np.median(times['ours'])):.1f} us, {share['median']:.1%} {what}",
        }

    def small(self, case: cases.KernelCase) -> Mapping[str, Any]:
        """A kernel on little data against the cost of launching anything at all."""
        operator, sample = case.operator, case.sample(self.dry_run)
        ours, _ = self.ours(operator, sample, self.inputs(operator, sample))
        one = torch.zeros(1, device=self.clock.device)
        times = self.timed({"ours": ours, "launch": lambda: one.fill_(1.0)})
        launches = ratio(times["ours"], times["launch"])
        assert case.wanted is not None
        return {
            **self.described(operator, sample),
            "over_launch": launches,
            "time_us": {name: summary(values) for name, values in times.items()},
            "wanted": {"over_launch": case.wanted},
            "expected": {"over_launch": case.expected, "why": case.why},
            "verdict": _verdict(launches["median"] <= case.wanted),
            "detail": f"{float(np.median(times['ours'])):.1f} us, {launches['median']:.2f} x the cost of a launch",
        }

    def merge(self) -> Mapping[str, Any]:
        """TokenMerge against the textbook, and against one block of ViT-B."""
        from timm.models.vision_transformer import Block

        sizes = dict(cases.MERGE) if not self.dry_run else {**cases.MERGE, "batch": 2, "tokens": 17, "channels": 24}
        batch, tokens, channels, features, count = sizes.values()
        count = min(count, tokens // 3)
        axes = {"B": batch, "N": tokens, "C": channels, "D": features}
        attributes = {"num_merged": count, "num_protected": 1, "order": 0}
        operator = operators()["TrtcTokenMerge"]
        sample = Sample(axes=axes, attributes=attributes, reason="ViT-B")
        inputs = self.inputs(operator, sample)
        x, metric, size = inputs
        ours, outputs = self.ours(operator, sample, inputs)
        half_size = size.to(x.dtype)
        block: Any = Block(channels, 12, qkv_bias=True).to(self.clock.device, x.dtype).eval()

        def textbook() -> object:
            return textbook_merge(x, metric, half_size, count)

        calls = {"ours": ours, "textbook": textbook, "block": lambda: block(x)}
        with torch.inference_mode():
            times = self.timed(calls, eager={"textbook, eager": textbook})
            theirs = textbook_merge(x, metric, half_size, count)[0]
        over = ratio(times["textbook"], times["ours"])
        share = ratio(times["ours"], times["block"])
        wanted, expected = cases.MERGE_WANTED, cases.MERGE_EXPECTED
        floor = 1e6 * operator.spec.bytes_moved({**axes, **attributes}, 2) / self.copy_bytes_per_s
        is_met = over["median"] >= wanted["over_textbook"] and share["median"] <= wanted["share_of_block"]
        return {
            **self.described(operator, sample),
            "floor_us": round(floor, 2),
            "share_of_floor": ratio([floor] * len(times["ours"]), times["ours"]),
            "over_textbook": over,
            "over_textbook_eager": ratio(times["textbook, eager"], times["ours"]),
            "share_of_block": share,
            "same_as_textbook": round(float((theirs - outputs[0]).abs().lt(0.01).float().mean()), 4),
            "time_us": {name: summary(values) for name, values in times.items()},
            "wanted": wanted,
            "expected": expected,
            "verdict": _verdict(is_met),
            "detail": f"{float(np.median(times['ours'])):.1f} us, {over['median']:.2f} x the textbook, "
            f"{share['median']:.1%} of a ViT-B block",
        }

    def cache(self, case: cases.CacheCase) -> Mapping[str, Any]:
        """KVAttention over a packed cache against PyTorch's attention over one of fp16, the fastest that it has."""
        operator = operators()["TrtcKVAttention"]
        axes = cases.cache_axes(case, self.dry_run)
        sample = Sample(axes=axes, attributes=cases.cache_attributes(case), reason="32k tokens of context")
        inputs = self.inputs(operator, sample)
        ours, _ = self.ours(operator, sample, inputs)
        b, h, g, d, length = (axes[letter] for letter in "BHGDL")
        q = inputs[0]
        k, v = (torch.randn(b, g, length, d, device=q.device, dtype=q.dtype) for _ in "kv")
        sides = {"ours": self.clock.side(ours), **self.attention_sides(q, k, v)}
        times = self.clock.in_turns(sides, self.rounds, self.deadline)
        best = min((name for name in times if name != "ours"), key=lambda name: float(np.median(times[name])))
        over = ratio(times[best], times["ours"])
        floor = 1e6 * operator.spec.bytes_moved({**axes, **sample.attributes}, 2) / self.copy_bytes_per_s
        return {
            **self.described(operator, sample),
            "floor_us": round(floor, 2),
            "share_of_floor": ratio([floor] * len(times["ours"]), times["ours"]),
            "over_fp16": over,
            "over_each": {name: ratio(values, times["ours"]) for name, values in times.items() if name != "ours"},
            "fastest_fp16": best,
            "notes": {name: side.note for name, side in sides.items() if side.note},
            "time_us": {name: summary(values) for name, values in times.items()},
            "wanted": {"over_fp16": case.wanted},
            "expected": {"over_fp16": case.expected, "why": case.why},
            "verdict": _verdict(None if case.wanted is None else over["median"] >= case.wanted),
            "detail": f"{float(np.median(times['ours'])):.1f} us, {over['median']:.2f} x fp16 ({best})",
        }

    def score(self, name: str, rows: int) -> Mapping[str, Any]:
        """AttentionScore against one attention layer of a 7B decoder over as many tokens."""
        sizes = {**cases.SCORE, **({"heads": 2, "width": 64} if self.dry_run else {})}
        tokens, heads, width = sizes["tokens"], sizes["heads"], sizes["width"]
        d = width // heads
        operator = operators()["TrtcAttentionScore"]
        settings: dict[str, Any] = {a.name: 0 for a in operator.spec.attributes}
        settings |= {"scale": d**-0.5, "causal": 1, "softmax": 1, "start": sizes["start"], "stop": sizes["stop"]}
        settings |= {"rows": ROWS.index("mean"), "heads": HEADS.index("mean"), "head_kernel": [1], "kernel": [1]}
        axes = {"B": 1, "H": heads, "G": heads, "R": rows, "N": tokens, "D": d}
        sample = Sample(axes=axes, attributes=settings, reason=name)
        ours, _ = self.ours(operator, sample, self.inputs(operator, sample))
        layer = _AttentionLayer(width, heads).to(self.clock.device, torch.float16).eval()
        x = torch.randn(1, tokens, width, device=self.clock.device, dtype=torch.float16)
        with torch.inference_mode():
            times = self.timed({"ours": ours, "attention layer": lambda: layer(x)})
        share = ratio(times["ours"], times["attention layer"])
        expected, why = cases.SCORE_EXPECTED[name]
        return {
            **self.described(operator, sample),
            "share_of_layer": share,
            "time_us": {side: summary(values) for side, values in times.items()},
            "wanted": {"share_of_layer": cases.SCORE_WANTED},
            "expected": {"share_of_layer": expected, "why": why},
            "verdict": _verdict(share["median"] < cases.SCORE_WANTED),
            "detail": f"{float(np.median(times['ours'])):.1f} us, {share['median']:.1%} of an attention layer",
        }

    # ---- pieces ------------------------------------------------------------------------------------------------------

    def inputs(self, operator: Operator, sample: Sample) -> tuple[Tensor, ...]:
        """Fresh inputs in fp16 where the operator takes that."""
        made = sample_inputs(operator, sample, dtype="float16", seed=self.seed)
        return tuple(tensor.to(self.clock.device) for tensor in made)

    def ours(self, operator: Operator, sample: Sample, inputs: Sequence[Tensor]) -> tuple[Call, tuple[Tensor, ...]]:
        """The kernels on these inputs, and their outputs, which were compared with the torch form.

        Raises:
            GateError: They differ.
        """
        spec = operator.spec
        with torch_forms(self.clock.device.type):
            wanted = call_torch(operator, sample, [tensor.clone() for tensor in inputs])
        if self.kernels is None:  # a rehearsal without a library
            return lambda: call_torch(operator, sample, inputs), wanted
        given = [sample.attributes[attribute.name] for attribute in spec.attributes]
        values = [as_float32(value) if isinstance(value, float) else value for value in given]
        checked = self.kernels.bind(spec, [tensor.clone() for tensor in inputs], values)
        for output in checked.outputs:
            if not any(output is tensor for tensor in checked.inputs):
                output.view(torch.uint8).fill_(0xCC) if output.numel() and output.dim() else None
        checked()
        self.kernels.check()
        check(operator, sample, inputs, checked.outputs, wanted)
        return self.kernels.bind(spec, inputs, values), checked.outputs

    def timed(self, calls: Mapping[str, Call], eager: Mapping[str, Call] | None = None) -> dict[str, list[float]]:
        """Times of all in turns: captured, but for those that are to run as they are."""
        sides = {name: self.clock.side(call) for name, call in calls.items()}
        sides |= {name: self.clock.side(call, capture=False) for name, call in (eager or {}).items()}
        return self.clock.in_turns(sides, self.rounds, self.deadline)

    def attention_sides(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Timed]:
        """PyTorch's attention by each way there is: its own grouping of heads, or a KV head's queries as its rows."""
        b, h, t, d = q.shape
        grouped = q.reshape(b, k.shape[1], h // k.shape[1] * t, d)
        forms: dict[str, Call] = {
            "enable_gqa": lambda: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            "queries as rows": lambda: functional.scaled_dot_product_attention(grouped, k, v),
        }
        backends = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
        if self.dry_run:
            backends = {"math": SDPBackend.MATH}
        sides = {}
        for form, call in forms.items():
            for name, backend in backends.items():
                try:
                    sides[f"{form}, {name}"] = self.clock.side(_with(partial(sdpa_kernel, backend), call))
                except RuntimeError as error:
                    print(f"         {form}, {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        if not sides:
            raise UnsupportedError(
                "PyTorch has no fused attention for such a cache here; there is nothing to compare with."
            )
        return sides

    @staticmethod
    def bytes_moved(case: cases.KernelCase, sample: Sample) -> int:
        """Bytes of the contract; a matrix that is one for all items is read once."""
        axes = sample.axes
        num_bytes = case.operator.spec.bytes_moved({**axes, **sample.attributes}, 2)
        return num_bytes - 2 * (axes["B"] - 1) * axes["M"] * axes["N"] if case.values == "shared" else num_bytes

    @staticmethod
    def described(operator: Operator, sample: Sample) -> dict[str, Any]:
        """What was run."""
        return {"operator": operator.spec.name, "sizes": sample.label, "dtype": "float16"}


class _AttentionLayer(torch.nn.Module):
    """Projections and causal attention of a decoder's layer, fused as PyTorch does it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return out


def _with(context: Callable[[], AbstractContextManager[object]], call: Call) -> Call:
    def run() -> object:
        with context():
            return call()

    return run


def _verdict(is_met: bool | None) -> str:
    return "reported" if is_met is None else "met" if is_met else "missed"


def check(
    operator: Operator, sample: Sample, inputs: Sequence[Tensor], ours: Sequence[Tensor], wanted: Sequence[Tensor]
) -> None:
    """Compare the kernels' outputs with the torch form's on the same device.

    Whole numbers are equal and floats within the contract's tolerance. Where the operator decides something, items in
    which rounding decided otherwise are compared by what that cost, and must be few.

    Raises:
        GateError: They differ.
    """
    spec, name = operator.spec, operator.spec.torch_name
    batch = inputs[0].shape[0]
    same = torch.ones(batch, dtype=torch.bool, device=ours[0].device)
    for described, a, b in zip(spec.outputs, ours, wanted, strict=True):
        if not a.is_floating_point() and not described.aliases:
            if operator.regret is None or a.dim() == 0:
                if not torch.equal(a, b):
                    raise GateError(f"{name}: {described.name} is not what the torch form gives ({sample.label}).")
            else:
                same &= (a == b).reshape(batch, -1).all(dim=1)
    if operator.regret is not None:
        _check_regret(operator, sample, inputs, ours)
        if same.float().mean() < 0.5:
            raise GateError(f"{name}: most decisions are not those of the torch form ({sample.label}).")
    for described, a, b in zip(spec.outputs, ours, wanted, strict=True):
        if not a.is_floating_point():
            if described.aliases and not torch.equal(a, b):
                raise GateError(f"{name}: {described.name} is not what the torch form gives ({sample.label}).")
            continue
        if operator.regret is not None:
            a, b = a[same], b[same]
        tolerance = 2 * spec.tolerance["float16" if a.dtype == torch.float16 else "float32"]
        if a.dtype == torch.float32 and inputs[0].dtype == torch.float16:
            tolerance = 2 * spec.tolerance["float16"]
        largest = float(b.abs().max()) if b.numel() else 0.0
        error = float((a.float() - b.float()).abs().max()) if b.numel() else 0.0
        if not error <= tolerance * largest:
            raise GateError(
                f"{name}: {described.name} is off by {error:.2g}, of {largest:.2g}; {tolerance * largest:.2g} is "
                f"allowed ({sample.label})."
            )


def _check_regret(operator: Operator, sample: Sample, inputs: Sequence[Tensor], ours: Sequence[Tensor]) -> None:
    assert operator.regret is not None
    batch = inputs[0].shape[0]

    def few(tensor: Tensor) -> Tensor:
        return (tensor[:ITEMS] if tensor.dim() and tensor.shape[0] == batch else tensor).cpu()

    given = {d.name: few(t).float() for d, t in zip(operator.spec.inputs, inputs, strict=True)}
    made = {d.name: few(t) for d, t in zip(operator.spec.outputs, ours, strict=True)}
    regret = float(operator.regret(given, sample.attributes, made).max())
    if not regret <= CLEAR:
        raise GateError(f"{operator.spec.torch_name}: a decision is worse than the best by {regret:.2g}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and record; 0: measured, 2: not possible here, 3: a kernel gave wrong results or did not run."""
    parser = parser_of(__doc__, WHO, rounds=ROUNDS)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds it")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    given = parser.parse_args(arguments)

    def run(clock: DeviceClock, kernels: CudaKernels | None, recorder: Recorder, deadline: float) -> None:
        bench = Bench(
            clock, kernels, recorder, deadline=deadline, rounds=given.rounds, dry_run=given.dry_run, seed=given.seed
        )
        with torch.no_grad() if given.dry_run else nullcontext():
            bench.run(given.only)

    return measure(WHO, given, run)


if __name__ == "__main__":
    sys.exit(main())
