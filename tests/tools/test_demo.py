"""The picture at the end of the demo shows what the model computed."""

import numpy as np

from trt_compress.models.zoo.data import moving_digits
from trt_compress.tools import demo_stream


def test_the_picture_dims_what_was_not_computed() -> None:
    first, third = demo_stream.replay(demo_stream.SHOWN_CLIP, (0, 2))
    clip = moving_digits.make_clip("test", demo_stream.SHOWN_CLIP, length=3)
    np.testing.assert_array_equal(third.frame, clip.frames[2])
    assert first.computed.sum() == third.computed.sum() == 36
    assert not (first.computed & third.computed).any(), "what no frame has computed yet comes first"
    picture = np.asarray(demo_stream.draw_replays([first, third]))
    assert picture.shape == (2 * (192 + 22) + 16, 2 * (192 + 8) + 8, 3)
    computed = int(np.flatnonzero(first.computed)[0])
    left_out = int(np.flatnonzero(~first.computed)[0])
    top = 8 + 192 + 22 + 8
    for patch, share in ((computed, 1.0), (left_out, 0.3)):
        row, column = divmod(patch, 12)
        tile = picture[top + 16 * row : top + 16 * row + 16, 8 + 16 * column : 24 + 16 * column]
        frame = first.frame[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(tile[::2, ::2], (frame * share).astype(np.uint8))
