"""A video with known answers: it decodes to the clips it was made of, and a bad request is one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest

from trt_compress.errors import ConfigError
from trt_compress.models.pretrained.moving_digits import make_clip
from trt_compress.tools.make_video import main, write_video

av = pytest.importorskip("av")


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mp4"), ("mpeg4", ".avi")])
def test_the_file_decodes_to_its_clips(codec: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"digits{suffix}"
    answers = write_video(path, clips=2, length=5, fps=25, codec=codec)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        assert (stream.width, stream.height, stream.average_rate) == (96, 96, 25)
        assert stream.codec_context.name == codec
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == len(lines) == 10
    for number in range(2):
        clip = make_clip("test", number, length=5)
        for step in range(5):
            line = lines[5 * number + step]
            assert (line["id"], line["clip"], line["label"]) == (5 * number + step, number, clip.digit)
            np.testing.assert_allclose([line["x"], line["y"]], clip.centres[step], atol=0.01)
            error = np.abs(frames[5 * number + step].astype(float) - clip.frames[step]).mean()
            assert error < 8, error


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, clips=1, length=4)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_a_bad_request_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"clips=0, .*the numbers must be at least 1, and the codec one of h264, mpeg4"
    ):
        write_video(tmp_path / "x.mp4", clips=0, length=4)
    assert main([str(tmp_path / "missing" / "x.mp4"), "--clips", "1", "--length", "1"]) == 2
    assert "cannot be written (No such file or directory); give another file" in capsys.readouterr().err
