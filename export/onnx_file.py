"""Writing ONNX files, small and large."""

from pathlib import Path

import onnx

EXTERNAL_OVER_BYTES = 1_900_000_000  # protobuf cannot hold 2 GiB in one message


def save_onnx(model: onnx.ModelProto, path: Path, *, external_over: int | None = None) -> list[Path]:
    """Write `model`; weights of more than `external_over` bytes in all (`EXTERNAL_OVER_BYTES`) go to `<path>.data`.

    Returns:
        The files written, the model first.
    """
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights <= (EXTERNAL_OVER_BYTES if external_over is None else external_over):
        onnx.save_model(model, path)
        return [path]
    data = path.with_name(path.name + ".data")
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    onnx.save_model(copied, path, save_as_external_data=True, location=data.name, size_threshold=1024)
    return [path, data]
