"""The command package: what is copied to a device."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.memory import format_bytes
from trt_compress.tools.cli.habits import BundlePath, Json, RequireDigest
from trt_compress.tools.console import print_json, print_text, progress


def device_names() -> list[str]:
    """What a shell completes after --for."""
    from trt_compress.tools.device.devices import DEVICES

    return list(DEVICES)


def package(
    bundle: BundlePath,
    device: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="DEVICE",
            autocompletion=device_names,
            help="jetson-orin-jp6, jetson-orin-jp7, jetson-thor or linux-x86_64.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the package goes.")],
    onnxruntime: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Unpacked ONNX Runtime release with headers (default: fetched with apt)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the package in DIR.")] = False,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Write what is copied to a device: bundle, sources, a script that builds them there, a unit and a README."""
    from trt_compress.tools.device.package import write_package

    with progress(f"Packing for {device}"):
        result = write_package(
            bundle,
            device=device,
            output=output,
            onnxruntime=onnxruntime,
            force=force,
            require_digest=require_digest,
        )
    if json:
        print_json(result.to_json())
        return
    print_text(
        f"Wrote {result.path}: {result.files} files, {format_bytes(result.bytes)}, for {result.device}. Copy it there "
        "and follow its README.md."
    )
