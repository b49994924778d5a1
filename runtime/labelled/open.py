"""Open labelled data of any form for a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.format.bundle import Bundle
from trt_compress.format.kinds import ClassOutput, input_kind, output_kind
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.labelled.arrays import from_npz
from trt_compress.runtime.labelled.classes import ORDERS, ClassNames, names_of_bundle, read_names
from trt_compress.runtime.labelled.data import Array, LabelledData, LabelledSample, Runs
from trt_compress.runtime.labelled.files import SUFFIXES, FileReader
from trt_compress.runtime.labelled.folders import from_folder
from trt_compress.runtime.labelled.label_files import from_labels
from trt_compress.runtime.stream.preprocess import input_name, preprocess_from_manifest

HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What data the user wants.

    Attributes:
        data: A folder, or an .npz file; None: what `labels` names.
        labels: A file of labels.
        classes: A file of names, "sorted" or "numbers".
        resample: Make sound of another rate or number of channels fit.
    """

    data: Path | None
    labels: Path | None
    classes: str | None
    resample: bool = False

    def check(self) -> None:
        """Look at what can be seen without reading anything.

        Raises:
            ConfigError: Something is not there, or two things do not go together.
        """
        if self.data is None and self.labels is None:
            raise ConfigError(
                "No data is given; write --data DIR (a folder a class), --labels FILE, --data FILE.npz, or --data "
                f"{HELD_OUT} for a model of the zoo."
            )
        if self.labels is not None and not self.labels.is_file():
            raise ConfigError(f"--labels: '{self.labels}' is not there; give a JSONL or CSV file of labels.")
        if self.classes is not None and self.classes not in ORDERS and not Path(self.classes).is_file():
            raise ConfigError(
                f"--classes: '{self.classes}' is not there; give a file with the names of the classes, sorted, or "
                "numbers."
            )
        if self.data is None:
            return
        if not self.data.exists():
            raise ConfigError(
                f"--data: '{self.data}' is not there; give a folder, an .npz file, or {HELD_OUT} for a model of the "
                "zoo."
            )
        if not self.data.is_file() and not self.data.is_dir():
            raise ConfigError(f"--data: '{self.data}' is a pipe or a device; write it to a file first, and give that.")
        if self.data.is_file():
            if self.data.suffix.lower() != ".npz":
                raise ConfigError(f"--data: '{self.data}' is one file; give a folder, or an .npz file of arrays.")
            if self.labels is not None:
                raise ConfigError(
                    f"--data: '{self.data}' has its labels beside its pictures, as the array 'label'; leave --labels "
                    "out."
                )


def open_data(
    bundle: Bundle, inputs: Mapping[str, TensorInfo], request: Request, num_classes: int | None
) -> LabelledData:
    """Open the data.

    Args:
        bundle: Its manifest says how files become inputs.
        inputs: What the session takes.
        request: What the user wants.
        num_classes: Classes of the bundle; None where it has none.

    Raises:
        ConfigError: The data cannot be read, or are not for this bundle.
    """
    request.check()
    manifest = bundle.manifest
    settings, meaning = input_kind(manifest.preprocess), output_kind(manifest.postprocess)
    kind = settings.kind
    if request.resample and kind != "audio":
        raise ConfigError("--resample is for sound, and the bundle takes none; leave it out.")
    prepare = preprocess_from_manifest(bundle, inputs)
    name = input_name(settings, inputs)
    by_name = request.classes is not None and request.classes not in ORDERS
    names: ClassNames | None = (
        read_names(str(request.classes), num_classes)
        if by_name
        else names_of_bundle((meaning.labels if isinstance(meaning, ClassOutput) else None) or ())
    )
    order = request.classes if request.classes in ORDERS else None
    if request.data is not None and request.data.is_file():
        data = from_npz(
            request.data, name=name, inputs=inputs, kind=kind, prepare=prepare, names=names, num_classes=num_classes
        )
    else:
        if kind not in SUFFIXES:
            reason = f" ({settings.obstacle})" if settings.obstacle else ""
            raise ConfigError(
                f"'{bundle.path}' takes {', '.join(inputs)}, and its manifest does not say how a file becomes that"
                f"{reason}; give an .npz file of arrays by these names and 'label'."
            )
        reader = FileReader(kind, manifest.preprocess, inputs[name], prepare, resample=request.resample)
        if request.labels is not None:
            data = from_labels(request.labels, request.data, reader, names=names, num_classes=num_classes)
        else:
            assert request.data is not None
            data = from_folder(request.data, reader, names=names, num_classes=num_classes, order=order)
    return replace(data, answer="mean" if kind == "audio" else "last")


def from_arrays(
    source: str, runs: Mapping[str, Array], labels: Array | None, *, form: str, class_names: tuple[str, ...] = ()
) -> LabelledData:
    """Data that is in memory.

    Args:
        source: What it is called.
        runs: By input name, [N, runs, …]: what each sample feeds, run after run.
        labels: [N]; None: there are none.
        form: What it is, in words.
        class_names: Names by number.
    """

    def load(row: int) -> Runs:
        length = len(next(iter(runs.values()))[row])
        return tuple(
            {name: np.ascontiguousarray(array[row, run][np.newaxis]) for name, array in runs.items()}
            for run in range(length)
        )

    def of(row: int) -> LabelledSample:
        return LabelledSample(
            name=f"sample {row}", label=None if labels is None else int(labels[row]), load=lambda: load(row)
        )

    return LabelledData(
        source=source,
        form=form,
        samples=[of(row) for row in range(len(next(iter(runs.values()))))],
        labelled_by=None if labels is None else "its own",
        class_names=class_names,
    )
