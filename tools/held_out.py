"""The held-out data of the zoo's own models, as labelled data: what `--data held-out` names."""

from collections.abc import Callable, Mapping

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.runtime.evaluate import refuse_detector
from trt_compress.runtime.labelled.data import Array, LabelledData, LabelledSample, Runs
from trt_compress.runtime.labelled.open import HELD_OUT, from_arrays

_DETECTORS = ("zoo:surround_detector",)
CLIPS = 200
"""Clips of moving digits; the model cards' figures are from every frame of the first 100."""


def held_out(model: str, input_name: str) -> LabelledData:
    """The held-out data of a model of the zoo.

    Args:
        model: `zoo:NAME`, as a manifest names it.
        input_name: What the data feed.

    Raises:
        ConfigError: The model has no held-out data with answers.
    """
    check_held_out(model)
    return _MAKERS[model](model, input_name)


def check_held_out(model: str) -> None:
    """Refuse a model without held-out data, before anything is loaded.

    Raises:
        ConfigError: It has none.
    """
    if model in _DETECTORS:
        refuse_detector(model, {"kind": "detection3d"})
    if model not in _MAKERS:
        raise ConfigError(
            f"'{model}' has no held-out data with labels; {HELD_OUT} goes with {', '.join(_MAKERS)}. Give --data DIR "
            "or --labels FILE."
        )


def _digits(model: str, input_name: str) -> LabelledData:
    from trt_compress.models.zoo.data.digits import digits_split

    split = digits_split()
    return from_arrays(
        HELD_OUT, {input_name: split.test_images[:, np.newaxis]}, split.test_labels, form=f"{model}'s held-out digits"
    )


def _words(model: str, input_name: str) -> LabelledData:
    from trt_compress.models.zoo.data import speech

    clips, labels = speech.heldout_clips()
    chunks = clips.reshape(len(clips), *((-1, 3200) if model == "zoo:keyword_stream" else (1, clips.shape[1])))
    return from_arrays(
        HELD_OUT,
        {input_name: chunks},
        labels,
        form=f"{model}'s held-out clips of voices it has not heard",
        class_names=tuple(speech.CLASSES),
    )


def _moving_digits(model: str, input_name: str) -> LabelledData:
    from trt_compress.models.zoo.data.moving_digits import as_input, make_clip
    from trt_compress.models.zoo.video_vit.score import CLIP_LENGTH

    clips = [make_clip("test", index, length=CLIP_LENGTH) for index in range(CLIPS)]

    def sample(number: int, frames: Array, digit: int) -> LabelledSample:
        def load() -> Runs:
            return tuple({input_name: frame[np.newaxis]} for frame in as_input(frames))

        return LabelledSample(name=f"clip {number}", label=digit, load=load)

    return LabelledData(
        source=HELD_OUT,
        form=f"{model}'s held-out clips, the answer at the last of {CLIP_LENGTH} frames",
        samples=[sample(number, clip.frames, clip.digit) for number, clip in enumerate(clips)],
        labelled_by="its own",
    )


def _speech(model: str, input_name: str) -> LabelledData:
    from trt_compress.models.zoo.speech_codec.model import heldout_clips

    return from_arrays(HELD_OUT, {input_name: heldout_clips()[:, np.newaxis]}, None, form=f"{model}'s held-out speech")


_MAKERS: Mapping[str, Callable[[str, str], LabelledData]] = {
    "zoo:digits_vit": _digits,
    "zoo:keyword_spotter": _words,
    "zoo:keyword_mome": _words,
    "zoo:keyword_stream": _words,
    "zoo:video_vit": _moving_digits,
    "zoo:video_pvc": _moving_digits,
    "zoo:speech_codec": _speech,
}
