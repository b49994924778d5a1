"""ONNX models that a stranger changed: preflight finds what is wrong, or refuses the file in a sentence of ours."""

import signal
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.attack.onnx_mutations import models, mutated_model
from trt_compress.errors import InternalError, TrtCompressError
from trt_compress.export import trial
from trt_compress.export.check import preflight_report

LONGEST_S = 20


class Hang(BaseException):
    """A case took too long."""


def test_a_changed_model_is_judged_or_refused(attack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = attack.random(21)
    seen: Counter[str] = Counter()
    foreign: list[str] = []
    file = tmp_path / "case.onnx"
    (tmp_path / "w.data").write_bytes(bytes(64))
    ask, library_asked = trial._ask, attack.long

    def asked(path: Path, model: Any, target: Any, ranges: Any) -> Any:
        if library_asked and number % 50 == 0:  # a child, which takes seconds
            return ask(path, model, target, ranges)
        trial._weight_bytes(path)
        trial._profiles(model, ranges)
        return trial._Answer("not tried")

    def stop(signum: int, frame: object) -> None:
        raise Hang

    number = -1
    monkeypatch.setattr(trial, "_ask", asked)
    signal.signal(signal.SIGALRM, stop)
    originals = models()
    for data in originals:
        file.write_bytes(data)
        assert not preflight_report(file, target="cpu").errors
    for number in range(attack.count(60, 2000)):
        file.write_bytes(mutated_model(originals[number % len(originals)], rng))
        for target in ("cpu", "rtx"):
            signal.alarm(LONGEST_S)
            try:
                report = preflight_report(file, target=target)
                seen["refused" if report.errors else "passed"] += 1
            except TrtCompressError as error:
                seen["no model"] += 1
                cause = error.__cause__  # what the door caught: a library's word on this file, and not a fault of ours
                ours = cause is not None and "trt_compress" in traceback.extract_tb(cause.__traceback__)[-1].filename
                if isinstance(error, InternalError) or ours and not isinstance(cause, TrtCompressError | OSError):
                    foreign.append(f"{number} {target}: {error} {cause!r}")
            except (Exception, Hang) as error:
                foreign.append(f"{number} {target}: {error!r}")
            finally:
                signal.alarm(0)
    attack.saw(foreign_errors=len(foreign), **seen)
    assert not foreign, "\n".join(foreign[:30])
