"""The command that writes a scene for a multi-view detector."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.errors import ConfigError
from trt_compress.paths import check_apart, check_new_file, check_new_folder
from trt_compress.tools.cli.habits import Json, RequireDigest
from trt_compress.tools.console import print_json, print_text, progress


def _read(source: str) -> list[Path]:
    """The folder that a scene is read from; its name may hold a `#`."""
    kind, _, text = source.partition(":")
    folder = Path(text.rpartition("#")[0] or text)
    return [folder] if kind == "nuscenes" and folder.is_dir() else []


def scene(
    source: Annotated[str, typer.Argument(metavar="SCENE", help="made:SEED or nuscenes:FOLDER#SCENE.")],
    bundle: Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="The detector that it is for.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.npz", help="The file to write.")],
    cameras: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Cameras of nuScenes, in the bundle's order (default: all).")
    ] = None,
    frames: Annotated[int | None, typer.Option(metavar="N", help="As many frames at most.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw each frame with its true boxes, as PNG.")
    ] = None,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Write a scene of several cameras as the scene.npz that `run --source` reads."""
    from trt_compress.format.bundle import Bundle
    from trt_compress.models.zoo.data.driving_scenes import Rig
    from trt_compress.runtime.camera_frames import SCENE_INPUTS, check_cameras, write_scene
    from trt_compress.runtime.draw3d import draw_frame, write_picture
    from trt_compress.tools.scenes import open_scene

    if output.suffix != ".npz":
        raise ConfigError(f"'{output}' does not end in .npz, by which a scene is known; name it {output.stem}.npz.")
    check_new_file(output, "--output")
    if pictures is not None:
        check_new_folder(pictures, "--pictures")
    drawn = None if pictures is None else pictures / "0000.png"
    check_apart({"--output": output, "--pictures": drawn}, {"a file of the scene": _read(source)}, [bundle])
    manifest = Bundle.open(bundle, require_digest=require_digest).manifest
    states = {state.input for state in manifest.states}
    inputs = {info.name: info for info in manifest.graphs[0].inputs if info.name not in states}
    shape = inputs["images"].shape if set(inputs) == set(SCENE_INPUTS) else ()
    numbers = [int(dim) for dim in shape[1:]] if len(shape) == 5 else [1, 3, 64, 128]
    rig = Rig(num_cameras=numbers[0], height=numbers[2], width=numbers[3])
    chosen = cameras.split(",") if cameras else None
    with progress("Reading the scene"):
        found = list(open_scene(source, rig=rig, cameras=chosen, num_frames=frames))
        count = write_scene(output, found, inputs)
    if pictures is not None:
        try:
            pictures.mkdir(parents=True, exist_ok=True)
            for number, frame in enumerate(found):
                fitted = frame.resized(*check_cameras(frame, inputs))
                picture = draw_frame(fitted, (), zoom=max(1, 384 // numbers[3]))
                write_picture(pictures / f"{number:04}.png", picture)
        except OSError as error:
            raise ConfigError(f"'{pictures}' cannot be written ({error.strerror or error}); give a folder.") from None
    facts = {"file": str(output), "frames": count, "cameras": list(found[0].cameras), "scene": found[0].scene}
    if json:
        print_json(facts)
    else:
        print_text(f"{output}: {count} frames of {', '.join(found[0].cameras)}")
