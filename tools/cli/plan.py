"""The command that says what a language model takes before it is exported: plan."""

from typing import TYPE_CHECKING, Annotated

import typer

from trt_compress.memory import format_bytes
from trt_compress.tools.cli.habits import Json, target_names
from trt_compress.tools.console import print_json, print_pairs, print_table, print_text, progress

if TYPE_CHECKING:
    from trt_compress.export.plan import ModelPlan, WeightPlan


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="hf:DIR (config.json and safetensors) or gguf:FILE; ?lora=ADAPTER behind it merges one.",
        ),
    ],
    context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of a sequence (default: what the model was made for, up to 4096)."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="B", help="Sequences at once.")] = 1,
    chunk: Annotated[int | None, typer.Option(metavar="N", help="Tokens that one run reads (default: 256).")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="T", autocompletion=target_names, help="Say what T does not take; may be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a language model takes, in weights and caches of every form, and what fits in 8, 16 and 64 GiB.

    Only configuration and headers are read.
    """
    with progress("Reading headers"):
        from trt_compress.export import plan as planning

        found = planning.plan(model, context=context, batch=batch, chunk=chunk, targets=target or ())
    if json:
        print_json(found.to_json())
        return
    _show(found)


def _show(found: "ModelPlan") -> None:
    from trt_compress.export.plan import MEMORIES, USABLE

    sequences = f"{found.batch} of {found.context} tokens" if found.batch > 1 else f"one of {found.context} tokens"
    pairs: list[tuple[str, object]] = [
        ("family", f"{found.family} ({found.model_type})"),
        ("parameters", f"{found.parameters / 1e6:,.1f} M in {found.layers} layers"),
        ("stored", f"{format_bytes(found.stored_bytes)} as {found.stored_as}"),
        ("made for", f"sequences of {found.limit} tokens"),
        ("asked for", f"sequences: {sequences}, read {found.chunk} at a time"),
        ("targets", ", ".join(found.targets) or "none named: nothing is refused for one"),
        ("at work", f"about {format_bytes(found.work_bytes)} beside weights and caches"),
    ]
    print_pairs(found.model, pairs)
    weights = [(one.name, format_bytes(one.bytes), _quantized(one), one.refused or "") for one in found.weights]
    print_table("Weights", ("precision, bits:group", "size", "quantized", "refused"), weights)
    caches = [(one.name, format_bytes(one.bytes_per_token), format_bytes(one.bytes)) for one in found.caches]
    print_table("Caches", ("keys and values", "a token", "all"), caches)
    rows = []
    for weight in found.weights:
        if weight.refused:
            continue
        cells = []
        for memory in MEMORIES:
            fits = [fit for fit in found.fits if (fit.memory_gib, fit.weights) == (memory, weight.name)]
            whole = [fit.cache for fit in fits if fit.fits]
            longest = max(fits, key=lambda fit: fit.longest)
            cells.append(
                f"cache in {whole[0]}{' or smaller' * (len(whole) > 1)}"
                if whole
                else f"up to {longest.longest} tokens, cache in {longest.cache}"
                if longest.longest
                else "no"
            )
        rows.append((weight.name, *cells))
    print_table("What fits", ("weights", *(f"{memory} GiB" for memory in MEMORIES)), rows)
    if "desc_act" in found.stored_as:
        print_text(
            "Its groups of inputs are no neighbours (desc_act): its whole numbers are unpacked, and --weights-bits "
            "quantizes them anew; a checkpoint without desc_act stays as it is."
        )
    print_text(f"Counted on are {USABLE:.0%} of a memory; the rest is left to the system and the program.")


def _quantized(weights: "WeightPlan") -> str:
    """The share that is quantized, and its groups if they are not all as asked."""
    other = ", ".join(str(group) for group in weights.groups if not weights.name.endswith(f":{group}"))
    return f"{weights.whole_share:.0%}" + (f", in groups of {other}" if other else "")
