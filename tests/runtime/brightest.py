"""A bundle that knows four classes of 2 by 2 pictures: which pixel is the brightest."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, TensorInfo, Weights

Array = np.ndarray[Any, np.dtype[Any]]
GREY = {"kind": "image", "layout": "NCHW", "scale": 1 / 255, "mean": [0.5], "std": [0.5], "interpolation": "bilinear"}
CLASSIFIES = {"kind": "classification", "classes": 4}


def write_brightest(
    path: Path,
    *,
    order: Sequence[int] = (0, 1, 2, 3),
    name: str = "brightest",
    preprocess: dict[str, Any] | None = None,
    postprocess: dict[str, Any] | None = None,
    dtype: str = "float32",
    values: Array | None = None,
    source: str = "zoo:tiny",
) -> Path:
    """Write the bundle; pixel i is class `order[i]`, or the scores are the pixels times `values` [4, classes]."""
    weight = np.zeros((4, 4)) if values is None else values
    if values is None:
        weight[range(4), list(order)] = 1
    classes = weight.shape[1]
    kind = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["pixels"]), helper.make_node("MatMul", ["pixels", "w"], ["logits"])],
        "model",
        [helper.make_tensor_value_info("image", kind, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", kind, ["batch", classes])],
        [onnx.numpy_helper.from_array(weight.astype(dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    image = TensorInfo(name="image", dtype=dtype, shape=("batch", 1, 2, 2))
    logits = TensorInfo(name="logits", dtype=dtype, shape=("batch", classes))
    manifest = Manifest(
        name=name,
        created_with={"trt-compress": "0.1.0"},
        model=Model(source=source, family="test", weights=Weights(source="random (seed 0)")),
        recipe={"model": source},
        precision="fp16" if dtype == "float16" else "fp32",
        opset=20,
        batch=Batch(min=1, opt=4, max=8),
        graphs=(Graph(name="model", file="model.onnx", inputs=(image,), outputs=(logits,)),),
        preprocess=GREY if preprocess is None else preprocess,
        postprocess=CLASSIFIES if postprocess is None else postprocess,
    )
    write_bundle(path, manifest, {"model.onnx": model.SerializeToString()})
    return path


def picture(brightest: int, other: int = 40) -> Array:
    """A picture [2, 2] of bytes of one class."""
    pixels = np.full(4, other, np.uint8)
    pixels[brightest] = 200
    return pixels.reshape(2, 2)


def save_picture(path: Path, brightest: int, other: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(brightest, other)).save(path)
    return path


def save_classes(folder: Path, names: Sequence[str], *, each: int = 3, brightest: Callable[[int], int] = int) -> Path:
    """`folder/<name>/<n>.png`: class i of `names` shows the pixel `brightest(i)`."""
    for number, name in enumerate(names):
        for count in range(each):
            save_picture(folder / name / f"{count}.png", brightest(number), 40 + count)
    return folder
