"""`--require-digest`: no bundle is opened but the one that is meant."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from trt_compress.digest import as_digests
from trt_compress.errors import BundleError, ConfigError
from trt_compress.export.check import preflight
from trt_compress.export.engines import build
from trt_compress.export.prune import prune
from trt_compress.runtime import Bundle, Session
from trt_compress.tools.cli.main import app

MakeBundle = Callable[..., Path]

COMMANDS = {
    "run": ["--source", "nothing.mp4"],
    "bench": ["--pairs", "1", "--warmup", "0"],
    "inspect": [],
    "verify": [],
    "build": ["--target", "rtx", "--dry-run"],
    "preflight": ["--target", "cpu"],
    "evaluate": ["--data", "nothing.npz"],
    "prune": ["--target", "cpu", "--dry-run"],
    "doctor": [],
    "package": ["--for", "linux-x86_64", "-o", "package"],
}


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_opens_a_bundle_refuses_another(make_bundle: MakeBundle, command: str) -> None:
    path = make_bundle("small")
    if command == "evaluate":
        np.savez(path.parent / "data.npz", images=np.ones((2, 8), np.float32), label=np.zeros(2, np.int64))
    more = [str(path.parent / "data.npz") if word == "nothing.npz" else word for word in COMMANDS[command]]
    found = typed(command, path, *more, "--require-digest", "0" * 64)
    assert found.exit_code == 2, found.output
    digest = Bundle.open(path).manifest.digest
    said = " ".join((found.output + found.stderr).split())
    assert f"has the digest {digest}, and {'0' * 64} is required" in said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("digest", ["", "abc", "0" * 63, "0" * 65, "g" * 64, "sha256:" + "0" * 64, "０" * 64])
def test_what_is_no_digest_is_refused_before_anything_is_read(tmp_path: Path, command: str, digest: str) -> None:
    found = typed(command, tmp_path / "not there", *COMMANDS[command], "--require-digest", digest)
    assert found.exit_code == 2
    assert f"'{digest}' is no digest of a bundle; give all 64 hexadecimal digits" in " ".join(found.stderr.split())


def test_the_one_that_is_meant_is_opened_whatever_the_case_of_its_digits(make_bundle: MakeBundle) -> None:
    path = make_bundle("small")
    shown = json.loads(typed("inspect", path, "--json").stdout)["manifest"]["digest"]
    assert shown in typed("inspect", path).stdout
    for digest in (shown, shown.upper()):
        assert typed("inspect", path, "--require-digest", digest).exit_code == 0
        assert typed("bench", path, *COMMANDS["bench"], "--require-digest", digest).exit_code == 0
        Session.open(path, require_digest=digest).close()
        Session.open(Bundle.open(path, require_digest=digest), require_digest=digest).close()


def test_each_of_several_bundles_needs_its_digest(make_bundle: MakeBundle) -> None:
    ours, baseline = make_bundle("ours", compressor="tome"), make_bundle("baseline")
    digests = [Bundle.open(path).manifest.digest for path in (ours, baseline)]
    command = ["bench", ours, "--baseline", baseline, *COMMANDS["bench"], "--require-digest", digests[0]]
    refused = typed(*command)
    assert refused.exit_code == 2 and f"has the digest {digests[1]}" in " ".join(refused.stderr.split())
    assert typed(*command, "--require-digest", digests[1]).exit_code == 0


def test_a_changed_bundle_with_a_digest_made_right_again_is_another(make_bundle: MakeBundle) -> None:
    honest = Bundle.open(make_bundle("bundle")).manifest.digest
    changed = make_bundle("changed", scale=2.0)
    Session.open(changed).close()
    with pytest.raises(BundleError, match=f"{honest} is required"):
        Session.open(changed, require_digest=honest)
    with pytest.raises(BundleError, match="is required"):
        Session.open(Bundle.open(changed), require_digest=honest)


def test_functions_take_it_too(make_bundle: MakeBundle) -> None:
    path = make_bundle("small")
    for call in (
        lambda digest: build(path, target="rtx", dry_run=True, require_digest=digest),
        lambda digest: prune(path, target="cpu", dry_run=True, require_digest=digest),
        lambda digest: preflight(path, target="cpu", require_digest=digest),
    ):
        with pytest.raises(BundleError, match="is required"):
            call("f" * 64)
        with pytest.raises(ConfigError, match="is no digest"):
            call("f" * 16)
    with pytest.raises(ConfigError, match="has no digest"):
        preflight(path / "model.onnx", target="cpu", require_digest="f" * 64)
    assert as_digests(None) == as_digests([]) == ()
