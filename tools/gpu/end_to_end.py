"""ToMe end to end on a GPU, beside the model without it: `python -m trt_compress.tools.gpu.end_to_end`.

ViT-L/16 and ViT-B/16 (random weights, fp16) at the paper's settings and batch 64, 8 and 1: PyTorch with the operators
of this project as CUDA kernels, interleaved with the dense model; where they are installed, ONNX Runtime's CUDA
provider, TensorRT, and TensorRT-RTX with portable and SM 80 engines, with what each says of this device. Where the time
goes is told kernel by kernel. One call of less than ten minutes; each result is appended as a line of JSON at once.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.children import PIPE, TimeoutExpired, run_python
from trt_compress.errors import GateError, TrtCompressError
from trt_compress.plugins.native_torch import CudaKernels, install, torch_forms, uninstall
from trt_compress.strays import temporary_folder
from trt_compress.tools.gpu.account import account
from trt_compress.tools.gpu.command import measure, parser_of
from trt_compress.tools.gpu.models import BATCHES, MODELS, TINY, TINY_BATCHES, TimedModel, flops
from trt_compress.tools.gpu.timing import Call, DeviceClock, Recorder, ratio, summary

WHO = "gpu_end_to_end"
ROUNDS = 40
LEAST_COSINE = 0.98  # of logits: a near tie that goes the other way in fp16 moves them a little
SLOW = 0.95  # of what the operations say; below it the account is what a reader wants
ENGINE_RESERVE_S = 30.0
_WORKER = "trt_compress.tools.gpu.engine_worker"


class EndToEnd:
    """One run: where, with what, and until when."""

    def __init__(
        self,
        clock: DeviceClock,
        kernels: CudaKernels | None,
        recorder: Recorder,
        *,
        deadline: float,
        rounds: int,
        dry_run: bool,
    ) -> None:
        self.clock = clock
        self.kernels = kernels
        self.recorder = recorder
        self.deadline = deadline
        self.rounds = rounds
        self.dry_run = dry_run
        self.models = TINY if dry_run else MODELS
        self.batches = TINY_BATCHES if dry_run else BATCHES
        self.dtype = torch.float32 if dry_run else torch.float16

    def run(self, *, with_engines: bool) -> None:
        """PyTorch first, at every batch; then the engines."""
        device = self.clock.device.type
        if self.kernels is not None:
            install(self.kernels)
        try:
            for model in self.models:
                variants = model.variants(self.clock.device, self.dtype)
                for batch in self.batches:
                    self._step(f"PyTorch, {model.name}, batch {batch}", model, batch, variants)
                del variants
                if device == "cuda":
                    torch.cuda.empty_cache()
        finally:
            if self.kernels is not None:
                uninstall(device)
        if with_engines:
            for line in self.engines():
                self._add(line)

    def _add(self, line: Mapping[str, Any]) -> None:
        if self.dry_run and line["verdict"] in ("met", "missed", "reported"):
            line = {**line, "verdict": "rehearsed"}
        self.recorder.add(line)
        print(f"{line['verdict']:9}{line['case']}: {line.get('detail', '')}", flush=True)

    def _step(self, name: str, model: TimedModel, batch: int, variants: Mapping[str, nn.Module]) -> None:
        if time.monotonic() > self.deadline:
            self._add({"case": name, "verdict": "skipped", "detail": "no time was left"})
            return
        try:
            line = self.torch_models(model, batch, variants)
        except (TrtCompressError, RuntimeError) as error:
            line = {"verdict": "failed", "detail": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        self._add({"case": name, **line})

    # ---- PyTorch -----------------------------------------------------------------------------------------------------

    def torch_models(self, model: TimedModel, batch: int, variants: Mapping[str, nn.Module]) -> Mapping[str, Any]:
        """All forms of one model in turns, from captured graphs; dense and merging also as PyTorch launches them."""
        vit: Any = variants["dense"]
        size = int(vit.patch_embed.img_size[0])
        image = torch.randn(batch, 3, size, size, device=self.clock.device, dtype=self.dtype)
        device = self.clock.device.type

        def call(module: nn.Module) -> Call:
            return lambda: module(image)

        def in_torch_form() -> object:
            with torch_forms(device):
                return variants["tome"](image)

        with torch.inference_mode():
            before = dict(self.kernels.calls) if self.kernels else {}
            agreement = self.agreement(variants, image)
            ran = {k: n - before.get(k, 0) for k, n in self.kernels.calls.items()} if self.kernels else {}
            sides = {name: self.clock.side(call(module)) for name, module in variants.items()}
            sides["tome, torch form of the operator"] = self.clock.side(in_torch_form)
            for name in ("dense", "tome"):
                sides[f"{name}, eager"] = self.clock.side(call(variants[name]), capture=False)
            times = self.clock.in_turns(sides, self.rounds, self.deadline)
            accounts = {name: account(call(variants[name]), self.clock.device) for name in ("dense", "tome")}
        if self.kernels is not None:
            self.kernels.check()
        fewer = flops(vit, 0, size) / flops(vit, model.num_merged, size)
        speedup = ratio(times["dense"], times["tome"])
        is_paper = batch == max(self.batches)
        met = "met" if speedup["median"] >= model.wanted else "missed"
        return {
            "model": model.name,
            "spec": model.spec,
            "batch": batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "weights": "random (seed 0)",
            "speedup": speedup,
            "speedups_over_dense": {name: ratio(times["dense"], values) for name, values in times.items()},
            "speedup_over_textbook": ratio(times["textbook"], times["tome"]),
            "speedup_eager": ratio(times["dense, eager"], times["tome, eager"]),
            "fewer_flops": round(fewer, 3),
            "is_slower_than_flops_say": speedup["median"] < SLOW * fewer,
            "kernel_calls": ran,
            "agreement": agreement,
            "time_us": {name: summary(values) for name, values in times.items()},
            "notes": {name: side.note for name, side in sides.items() if side.note},
            "account": accounts,
            "wanted": {"speedup": model.wanted if is_paper else None},
            "expected": {"speedup": model.expected.get(batch), "why": model.why},
            "verdict": met if is_paper else "reported",
            "detail": f"{speedup['median']:.2f} x dense, {fewer:.2f} x fewer operations, merging "
            f"{_share(accounts['tome'], 'token merging'):.1%} of its time",
        }

    def agreement(self, variants: Mapping[str, nn.Module], image: Tensor) -> dict[str, float]:
        """Cosine of logits between forms of the same model.

        Raises:
            GateError: They are not the same function.
        """
        with torch_forms(self.clock.device.type):
            torch_form = variants["tome, attention written out"](image)
        pairs = {
            "tome, with its operator in torch form": (variants["tome"](image), torch_form),
            "tome, with the textbook": (variants["tome"](image), variants["textbook"](image)),
            "dense, with attention written out": (
                variants["dense"](image),
                variants["dense, attention written out"](image),
            ),
        }
        found = {
            name: round(float(functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)), 6)
            for name, (a, b) in pairs.items()
        }
        wrong = {name: value for name, value in found.items() if not value >= LEAST_COSINE}
        if wrong:
            raise GateError(f"logits differ: {wrong}; their cosine must be at least {LEAST_COSINE}.")
        return found

    # ---- engines -----------------------------------------------------------------------------------------------------

    def engines(self) -> Iterator[Mapping[str, Any]]:
        """Each engine library that is installed, on the ONNX files of the smaller model."""
        wanted = [("onnxruntime", None), ("tensorrt", None), ("tensorrt_rtx", None), ("tensorrt_rtx", "SM80")]
        present = []
        for backend, capability in wanted:
            reason = self.absent(backend)
            name = _engine_name(backend, capability)
            if reason:
                yield {"case": name, "verdict": "skipped", "detail": reason}
            else:
                present.append((backend, capability))
        if not present:
            return
        with temporary_folder("gpu-end-to-end") as folder:
            try:
                bundles = self.export(folder)
            except (TrtCompressError, ImportError, RuntimeError) as error:
                detail = f"the export did not work here: {str(error).splitlines()[0]}"
                for backend, capability in present:
                    yield {"case": _engine_name(backend, capability), "verdict": "skipped", "detail": detail}
                return
            for backend, capability in present:
                yield from self.engine(folder, bundles, backend, capability)

    def absent(self, backend: str) -> str:
        """Why a backend cannot be tried here; empty if it can."""
        if importlib.util.find_spec(backend) is None:
            return f"the package {backend} is not installed"
        if backend == "onnxruntime" and not self.dry_run:
            import onnxruntime

            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                return "this onnxruntime has no CUDA provider (onnxruntime-gpu has)"
        if time.monotonic() > self.deadline - ENGINE_RESERVE_S:
            return "no time was left"
        return ""

    def export(self, folder: Path) -> dict[str, Path]:
        """Bundles of the dense and the merging model."""
        from trt_compress.export.api import export_model

        source = "zoo:digits_vit" if self.dry_run else f"timm:{self.models[-1].name}"
        specs = {"dense": "none", "tome": "tome:num_merged=5" if self.dry_run else self.models[-1].spec}
        batch = f"{min(self.batches)}:{max(self.batches)}:{max(self.batches)}"
        precision = "fp32" if self.dry_run else "fp16"
        for name, spec in specs.items():
            export_model(
                source, compress=spec, targets=["cuda"], batch=batch, precision=precision, output=folder / name
            )
        return {name: folder / name for name in specs}

    def engine(
        self, folder: Path, bundles: Mapping[str, Path], backend: str, capability: str | None
    ) -> Iterator[Mapping[str, Any]]:
        """One backend in a process of its own; its lines as results."""
        import onnx

        from trt_compress.export.lower import lower_for_target
        from trt_compress.export.targets import get_target

        case = _engine_name(backend, capability)
        target = get_target({"onnxruntime": "cuda", "tensorrt": "x86-trt10", "tensorrt_rtx": "rtx"}[backend])
        own = folder / case.replace(" ", "-").replace(",", "")
        own.mkdir()
        shape: list[int] = []
        for name, bundle in bundles.items():
            model = onnx.load(bundle / "model.onnx")
            shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
            onnx.save_model(lower_for_target(model, target), own / f"{name}.onnx")
        seconds = max(self.deadline - time.monotonic(), 1.0)
        request = {
            **{"backend": backend, "capability": capability, "batches": list(self.batches), "shape": shape},
            **{"rounds": self.rounds, "seconds": seconds, "dry_run": self.dry_run, "capture": backend != "onnxruntime"},
            **{name: str(own / f"{name}.onnx") for name in bundles},
        }
        (own / "request.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            done = run_python(_WORKER, [own / "request.json"], folder=own, errors=PIPE, timeout=seconds)
            said, errors = done.stdout, done.stderr.decode(errors="replace").strip()
            ended = f"it ended with {done.returncode}: {errors[-600:]}"
        except TimeoutExpired as error:
            said, ended = error.stdout or b"", "no time was left"
        output = said.decode(errors="replace")
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        is_told = False
        for line in lines:
            common = {"model": self.models[-1].name, "backend": backend, "capability": capability, **line}
            if line["stage"] == "timed":
                is_told = True
                detail = f"{line['speedup']['median']:.2f} x dense"
                yield {"case": f"{case}, batch {line['batch']}", **common, "verdict": "reported", "detail": detail}
            elif "error" in line:
                is_told = True
                detail = f"refused at {line['stage']}: {line['error']}"
                yield {"case": case, **common, "verdict": "refused", "detail": detail, "steps": lines}
        if not is_told:
            yield {"case": case, "verdict": "refused", "detail": ended, "steps": lines}


def _share(found: Mapping[str, Any], kind: str) -> float:
    total = float(found["total_us"])
    return float(found["by_kind_us"].get(kind, 0.0)) / total if total else 0.0


def _engine_name(backend: str, capability: str | None) -> str:
    if backend == "tensorrt_rtx":
        return f"TensorRT-RTX, {capability or 'portable'} engine"
    return {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}[backend]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and record; 0: measured, 2: not possible here, 3: forms of a model that are not the same function."""
    parser = parser_of(__doc__, WHO, rounds=ROUNDS)
    parser.add_argument("--no-engines", action="store_true", help="PyTorch only")
    given = parser.parse_args(arguments)

    def run(clock: DeviceClock, kernels: CudaKernels | None, recorder: Recorder, deadline: float) -> None:
        run = EndToEnd(clock, kernels, recorder, deadline=deadline, rounds=given.rounds, dry_run=given.dry_run)
        run.run(with_engines=not given.no_engines)

    return measure(WHO, given, run)


if __name__ == "__main__":
    sys.exit(main())
