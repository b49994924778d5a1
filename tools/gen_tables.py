"""Tables of the READMEs: `python -m trt_compress.tools.gen_tables` rewrites them, `--check` only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.export.flops import count_flops
from trt_compress.export.targets import TARGETS
from trt_compress.files import write_whole
from trt_compress.methods import METHODS, ArtifactFile, CompressorSpec, Method, parse_spec
from trt_compress.methods.config import CACHE_KINDS, Kind
from trt_compress.models.hosts.decoder_config import Caching, DecoderConfig, LayerConfig
from trt_compress.models.hosts.decoder_host import plan_of
from trt_compress.models.hosts.timm_vit import attach
from trt_compress.models.layers.rope_form import RopeForm
from trt_compress.models.zoo.data.digits import digits_split
from trt_compress.models.zoo.digits_vit.model import build_digits_vit, count_correct
from trt_compress.plugins.registry import specs
from trt_compress.suggest import not_known
from trt_compress.tools import tower_pairs
from trt_compress.tools.bench import cache_figures, costs, tokenizers, vit_methods, workloads
from trt_compress.tools.bench.deit_small import BATCH, MODEL, RESULTS, SPEC, figure_rows
from trt_compress.tools.bench.records import speedup_text
from trt_compress.tools.console import say_error
from trt_compress.tools.gpu import report as gpu_report
from trt_compress.tools.tokenizers.methods import METHODS as TOKENIZER_METHODS

_MARKED = re.compile(r"(<!-- table: (?P<name>[a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_IMAGE = (1, 8, 8)
_MADE_FROM = {"code": "official code", "paper": "paper", "reconstruction": "reconstruction"}
FILES = (Path("README.md"), Path("docs/figures.md"), Path("plugins/README.md"))

# Three levels of roughly a half, three eighths and a quarter of the patches at the end, for every compressor.
DIGITS_SPECS = {
    "tome": [f"tome:num_merged={count}" for count in (4, 5, 6)],
    "evit": [f"evit:keep_ratio={ratio},layers=[3,5]" for ratio in (0.7, 0.6, 0.5)],
    "avg_pool": [f"avg_pool:stride={stride},layer=4" for stride in (2, 3, 4)],
    "random": [f"random:keep_ratio={ratio},layers=[3,5]" for ratio in (0.7, 0.6, 0.5)],
}


_SMALL = DecoderConfig(
    family="llama",
    vocabulary=64,
    width=256,
    inner=256,
    heads=4,
    kv_heads=2,
    head_dim=64,
    limit=4096,
    layers=(LayerConfig(rope=RopeForm(theta=1e4, channels=64, limit=4096)),) * 4,
    eps=1e-5,
    attention_scale=0.125,
)
"""A decoder that has all that cache policies ask for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the tables; returns the exit code (3: a table is not up to date)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 3 if a table is not up to date")
    shown = ", ".join(map(str, FILES))
    parser.add_argument("--file", type=Path, default=None, metavar="FILE", help=f"one file only (default: {shown})")
    given = parser.parse_args(arguments)
    outdated = False
    for file in FILES if given.file is None else (given.file,):
        try:
            before = file.read_text(encoding="utf-8")
            after = fill(before)
        except (OSError, TrtCompressError) as error:
            say_error(str(error))
            return 2
        if not given.check:
            write_whole(file, after)
        elif before != after:
            say_error(f"tables of {file} are not up to date; run python -m trt_compress.tools.gen_tables.")
            outdated = True
    return 3 if outdated else 0


def fill(text: str) -> str:
    """`text` with every marked table made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ConfigError(not_known("table", name, TABLES))
        return f"{match[1]}{TABLES[name]()}{match[3]}"

    return _MARKED.sub(replace, text)


def operators_table() -> str:
    """Operators with what they promise."""
    rows = [
        (f"`{spec.name}`", spec.summary, spec.order, f"[op.py](plugins/{spec.torch_name}/op.py)")
        for spec in specs().values()
    ]
    return _markdown(("operator", "does", "output order", "file"), rows)


def compressors_table() -> str:
    """Token compressors with their source."""
    rows = [
        (name, does, paper, "a baseline" if method.source.startswith("none") else _MADE_FROM[method.provenance], file)
        for method in METHODS.values()
        if method.kind not in CACHE_KINDS
        for name, does, paper, file in [_method_row(method)]
    ]
    return _markdown(("compressor", "does", "paper", "made from", "file"), rows)


def caches_table() -> str:
    """Cache policies with their source."""
    methods = sorted((m for m in METHODS.values() if m.kind in CACHE_KINDS), key=lambda m: CACHE_KINDS.index(m.kind))
    rows = [(method.kind, *_method_row(method)) for method in methods]
    return _markdown(("role", "policy", "does", "paper", "file"), rows)


def towers_table() -> str:
    """Which methods for images go with which towers, and what is said where one does not."""
    notes = dict[str, int]()
    rows = []
    for spec in tower_pairs.SPECS:
        name, cells = spec.partition(":")[0], []
        for tower in tower_pairs.TOWERS:
            found = tower_pairs.placed(spec, tower)
            if isinstance(found, str):
                alike = re.sub(rf"\b{name}\b", "NAME", found)
                cells.append(f"no ({notes.setdefault(alike, len(notes) + 1)})")
            else:
                cells.append(f"yes: {found.tokens_out}" if not cells else "yes")
        rows.append((f"`{spec}`", *cells))
    listed = "".join(f"{number}. {reason}\n" for reason, number in notes.items())
    return _markdown(("method", *tower_pairs.TOWERS), rows) + f"{listed}\n"


def tokenizers_table() -> str:
    """Papers on tokenizers with the command of each."""
    rows = [
        (f"`{one.command}`", one.summary, one.source.split(";")[0], one.provenance, _linked(one.implementation))
        for one in TOKENIZER_METHODS
    ]
    return _markdown(("tokenizer …", "does", "paper", "made from", "file"), rows)


def _linked(file: str) -> str:
    return f"[{Path(file).name}]({file})"


def cache_pairs_table() -> str:
    """Which selectors and readers go with which store, which reader with which selector, and what is said where one
    does not."""
    of_kind = {kind: [name for name, method in METHODS.items() if method.kind == kind] for kind in CACHE_KINDS}
    notes = dict[str, int]()

    def cell(first: str, second: str) -> str:
        reason = why_not(first, second)
        if reason is None:
            return "yes"
        alike = re.sub(rf"\b{first}\b", "NAME", reason)  # of many rows
        return f"no ({notes.setdefault(alike, len(notes) + 1)})"

    parts: tuple[tuple[Kind, tuple[Kind, ...]], ...] = (("store", ("selector", "reader")), ("reader", ("selector",)))
    made = ""
    for kind, rest in parts:
        columns, names = of_kind[kind], [(role, name) for role in rest for name in of_kind[role]]
        rows = [(role, f"`{name}`", *(cell(name, column) for column in columns)) for role, name in names]
        made += _markdown(("role", "policy", *(f"`{column}`" for column in columns)), rows)
    listed = "".join(f"{number}. {reason}\n" for reason, number in notes.items())
    return made + (f"{listed}\n" if listed else "")


def why_not(first: str, second: str) -> str | None:
    """What is said where two cache policies of these names do not go together; None: they do."""
    specs = [_with_stand_in(spec) for spec in parse_spec(f"{_spec(first)}+{_spec(second)}")]
    try:
        plan_of(_SMALL, Caching(context=4096, chunk=256), "a decoder", specs)
    except ConfigError as error:
        return error.message
    return None


def _with_stand_in(spec: CompressorSpec) -> CompressorSpec:
    """With an artifact of the right form, which no calibration has made, where a method takes one."""
    layers, heads, groups, width = len(_SMALL.layers), _SMALL.heads, _SMALL.kv_heads, _SMALL.head_dim
    ends, levels = torch.ones(layers, groups * width), torch.linspace(-1, 1, 16).repeat(layers, 1)
    tensors = {
        "compresskv": {"scores": torch.rand(layers, heads), "errors": torch.ones(layers)},
        "razorattention": {"echo": torch.rand(layers, groups), "induction": torch.rand(layers, groups)},
        "kvquant": {
            **{"upper": ends, "lower": -ends, "k_signposts": levels, "v_signposts": levels.clone()},
            **{f"{which}_moments": torch.tensor([[1.0, 0.0]]).repeat(layers, 1) for which in "kv"},
        },
    }.get(spec.name)
    if tensors is None:
        return spec
    (option,) = spec.method.artifacts
    file = ArtifactFile("an artifact", save(tensors))
    return dataclasses.replace(spec, config=dataclasses.replace(spec.config, **{option: file}))


def _spec(name: str) -> str:
    """The shortest spec string of a method, without an artifact."""
    fields = dataclasses.fields(METHODS[name].config)
    options = ["budget=256" for field in fields if field.name == "budget" and field.default is dataclasses.MISSING]
    options += ["reselect=3" for field in fields if field.name == "reselect"]
    return f"{name}:{','.join(options)}" if options else name


def _method_row(method: Method) -> tuple[str, str, str, str]:
    file = method.implementation.partition(":")[0].replace(".", "/") + ".py"
    return f"`{method.name}`", method.summary, method.source.split(";")[0], _linked(file)


def targets_table() -> str:
    """Targets with the form in which the operators reach them."""
    forms = {"function": "function bodies", "plugin": "plugin nodes, bodies stripped", "inline": "inlined"}
    rows = [(f"`{t.name}`", t.description, forms[t.lowering], str(t.max_opset)) for t in TARGETS.values()]
    return _markdown(("target", "is", "operators as", "newest opset"), rows)


def digits_table() -> str:
    """Accuracy on the held-out digits, dense and for every compressor at three levels."""
    model, split = build_digits_vit(), digits_split()
    total = len(split.test_labels)
    dense_flops = count_flops(attach(model, ()), _IMAGE)["total"]
    rows = []
    for spec in ["none", *(spec for level in DIGITS_SPECS.values() for spec in level)]:
        compressed = attach(model, parse_spec(spec), name="zoo:digits_vit").eval()
        correct = count_correct(compressed, split.test_images, split.test_labels)
        tokens = compressed.plan[-1].tokens_out if compressed.plan else compressed.info.num_tokens
        flops = dense_flops / count_flops(compressed, _IMAGE)["total"]
        rows.append((f"`{spec}`", f"{tokens} of 65", f"{flops:.2f}×", f"{correct / total:.1%} ({correct} of {total})"))
    return _markdown(("compressor", "tokens at the end", "fewer FLOPs", "accuracy"), rows)


def performance_table() -> str:
    """The last recorded run of the DeiT-S benchmark."""
    record = _deit_record()
    device, versions = record["device"], record["versions"]
    caption = (
        f"`{MODEL}`, `{SPEC}`, batch {BATCH}, random weights, {device['cpu']} ({device['cores']} cores), ONNX Runtime "
        f"{versions['onnxruntime']}, commit {record['commit']}, {record['date'][:10]}.\n\n"
    )
    return caption + _markdown(("figure", "measured", "wanted"), figure_rows(record))


def vit_methods_table() -> str:
    """The last recorded run of methods inside a ViT, for each model."""
    found = vit_methods.records()
    if not found:
        raise ConfigError("no run is on record; run python -m trt_compress.tools.bench.vit_methods first.")
    parts = []
    for record in found:
        device, rows = record["device"], vit_methods.rows_of(record)
        parts.append(
            f"{vit_methods.caption(record)}: {device['cpu']}, commit {record['commit']}, {record['date'][:10]}.\n"
            + _markdown(vit_methods.COLUMNS, [(f"`{spec}`", *others) for spec, *others in rows])
        )
    return "".join(parts)


def _deit_record() -> dict[str, Any]:
    if not RESULTS.is_file():
        raise ConfigError(f"{RESULTS} does not exist; run python -m trt_compress.tools.bench.deit_small first.")
    record: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8").splitlines()[-1])
    return record


def headline_table() -> str:
    """The main figure of DeiT-S, and the best setting of each streaming workload."""
    record = _deit_record()
    native, plain = (speedup_text(record[f"speedup_over_dense{form}"]).rpartition(",")[0] for form in ("_native", ""))
    rows = [
        (f"`{MODEL}`", f"`{SPEC}`", native, "random weights", "random weights"),
        ("the same as standard ONNX operators", f"`{SPEC}`", plain, "random weights", "random weights"),
        *workloads.best_rows(),
    ]
    return _markdown(workloads.BEST_COLUMNS, rows)


def costs_table() -> str:
    """Time and memory of the commands, as recorded last."""
    found = list(costs.rows())
    if not found:
        raise ConfigError("no costs are on record; run python -m trt_compress.tools.bench.costs first.")
    return _markdown(costs.COLUMNS, found)


def gpu_kernels_table() -> str:
    """The last measured line of each kernel on a GPU."""
    rows = list(gpu_report.kernel_rows())
    return _markdown(gpu_report.KERNEL_COLUMNS, rows) if rows else f"\n{gpu_report.NO_RECORD}\n"


def gpu_models_table() -> str:
    """The last measured line of each model on a GPU."""
    rows = list(gpu_report.model_rows())
    return _markdown(gpu_report.MODEL_COLUMNS, rows) if rows else f"\n{gpu_report.NO_RECORD}\n"


def cache_quality_table() -> str:
    """The last recorded figures of cache policies."""
    found = cache_figures.records()
    if not found:
        return f"\n{cache_figures.NO_RECORD}\n\n"
    table = _markdown(cache_figures.COLUMNS, [cache_figures.row_of(each) for each in found])
    listed = "".join(f"- {note}\n" for note in cache_figures.notes(found))
    return f"{cache_figures.caption(found)}\n\n{table}{listed}\n"


def workloads_table() -> str:
    """The last recorded run of each streaming workload."""
    rows = list(workloads.rows())
    if not rows:
        raise ConfigError("no streaming workload is on record; run python -m trt_compress.tools.bench.video_vit first.")
    return f"{'; '.join(workloads.captions())}. ONNX Runtime, one thread.\n\n" + _markdown(workloads.COLUMNS, rows)


def tokenizer_speed_table() -> str:
    """The last recorded run of encoders side by side."""
    record = tokenizers.last_record()
    return f"{tokenizers.caption(record)}\n\n" + _markdown(tokenizers.SPEED_COLUMNS, tokenizers.speed_rows(record))


def tokenizer_savings_table() -> str:
    """Tokens saved on parallel texts, as recorded last."""
    return _markdown(tokenizers.SAVED_COLUMNS, tokenizers.saved_rows(tokenizers.last_record()))


def tokenizer_trained_table() -> str:
    """Tokens saved by what is trained, as recorded last."""
    return _markdown(tokenizers.TRAINED_COLUMNS, tokenizers.trained_rows(tokenizers.last_record()))


TABLES: dict[str, Callable[[], str]] = {
    "operators": operators_table,
    "compressors": compressors_table,
    "towers": towers_table,
    "caches": caches_table,
    "cache_pairs": cache_pairs_table,
    "tokenizers": tokenizers_table,
    "tokenizer_speed": tokenizer_speed_table,
    "tokenizer_savings": tokenizer_savings_table,
    "tokenizer_trained": tokenizer_trained_table,
    "targets": targets_table,
    "digits": digits_table,
    "headline": headline_table,
    "performance": performance_table,
    "vit_methods": vit_methods_table,
    "costs": costs_table,
    "workloads": workloads_table,
    "cache_quality": cache_quality_table,
    "gpu_kernels": gpu_kernels_table,
    "gpu_models": gpu_models_table,
}


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
