"""Write a video file whose every frame has a known answer, and the answers beside it.

    python -m trt_compress.tools.make_video digits.mp4

makes `digits.mp4` and `digits.jsonl`: clips of the test part of `zoo:video_vit`'s data, one after the other, the same
each time. A line has `id` (the frame, from 0) and `label` (the digit), as `trt-compress run --labels` reads them, and
`clip` and the centre `x`, `y` in pixels.
"""

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trt_compress.errors import ConfigError, TrtCompressError, UnsupportedError
from trt_compress.models.pretrained.moving_digits import FRAME_SIZE, make_clip

if TYPE_CHECKING:
    from av import VideoStream

CODECS = {"h264": ("libx264", {"crf": "18", "preset": "medium", "threads": "1"}), "mpeg4": ("mpeg4", {"qscale": "2"})}


def write_video(path: Path, *, clips: int, length: int, fps: int = 30, codec: str = "h264") -> Path:
    """Write a video of test clips.

    Args:
        path: The file; its suffix chooses the container (.mp4, .mkv, .avi).
        clips: Clips, one after the other: a cut between two changes every patch.
        length: Frames of a clip.
        fps: Frames a second.
        codec: h264 or mpeg4.

    Returns:
        The file of answers, `path` with the suffix .jsonl.

    Raises:
        ConfigError: A number or name is out of range, or the file cannot be written.
        UnsupportedError: PyAV is not installed, or has no such encoder.
    """
    if min(clips, length, fps) < 1 or codec not in CODECS:
        raise ConfigError(
            f"clips={clips}, length={length}, fps={fps}, codec={codec}; the numbers must be at least 1, and the codec "
            f"one of {', '.join(CODECS)}."
        )
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise UnsupportedError(
            f"Writing a video needs PyAV, and {error}.", hint="pip install 'trt-compress[video]'"
        ) from error
    encoder, options = CODECS[codec]
    lines: list[str] = []
    try:
        with av.open(str(path), "w") as container:
            stream = cast("VideoStream", container.add_stream(encoder, rate=Fraction(fps), options=dict(options)))
            stream.width = stream.height = FRAME_SIZE
            stream.pix_fmt = "yuv420p"
            for number in range(clips):
                clip = make_clip("test", number, length=length)
                for pixels, (x, y) in zip(clip.frames, clip.centres.tolist(), strict=True):
                    answer = {"id": len(lines), "label": clip.digit, "clip": number}
                    lines.append(json.dumps({**answer, "x": round(x, 2), "y": round(y, 2)}))
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        answers = path.with_suffix(".jsonl")
        answers.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except FFmpegError as error:
        raise ConfigError(
            f"'{path}' cannot be written ({error.strerror}); give another file, such as digits.mp4."
        ) from error
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}); give another file.") from error
    return answers


def main(arguments: list[str] | None = None) -> int:
    """Write the files; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the video; its answers go beside it")
    parser.add_argument("--clips", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--length", type=int, default=30, metavar="N", help="frames of a clip; default: 30")
    parser.add_argument("--fps", type=int, default=30, metavar="N", help="default: 30")
    parser.add_argument("--codec", choices=list(CODECS), default="h264", help="default: h264")
    given = parser.parse_args(arguments)
    try:
        answers = write_video(given.file, clips=given.clips, length=given.length, fps=given.fps, codec=given.codec)
    except TrtCompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Wrote {given.file} and {answers}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
