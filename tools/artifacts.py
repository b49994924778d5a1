"""What artifacts say of themselves, for people: of a file that was just made, and of those in a bundle."""

import re
from pathlib import PurePosixPath

from trt_compress.format.bundle import Bundle
from trt_compress.methods import ArtifactCard, ArtifactFile
from trt_compress.methods.artifact import read_artifact

_FOLDER = "artifacts"  # of a bundle; a file in it is named METHOD.OPTION, with a number behind where there are several


def artifacts_of(bundle: Bundle) -> dict[str, ArtifactCard]:
    """The cards of the artifacts in a bundle, by their files.

    Raises:
        BundleError: A file is not as it was written.
        ConfigError: It is no artifact.
    """
    found = {}
    for name in bundle.manifest.files:
        path = PurePosixPath(name)
        if path.parts[:1] != (_FOLDER,) or path.suffix != ".safetensors":
            continue
        method, _, option = path.stem.partition(".")
        file = ArtifactFile(name, bundle.read(name))
        found[name] = read_artifact(file, method=method, option=re.sub(r"-\d+$", "", option))[1]
    return found


def card_pairs(card: ArtifactCard, *, held_out: int | None = None) -> list[tuple[str, object]]:
    """What a card says, as names and values; `held_out` are samples that the score was taken of, if it is known."""
    apart = "" if held_out is None else f", {held_out} of them held out"
    samples = f"{card.data_count} samples{apart}" if card.data_count else "trained elsewhere"
    score = ", ".join(f"{name} {value:.4g}" for name, value in card.score.items())
    return [
        (
            "for",
            f"{card.method}, option {card.option}, form {card.version}"
            + "".join(f", {name}={value}" for name, value in card.settings.items()),
        ),
        ("weights", f"{card.weights}, sha256 {card.weights_sha256[:12]}…"),
        ("data", f"{card.data} ({samples}), sha256 {card.data_sha256[:12]}…"),
        ("score", score or "none: nothing was held out"),
        ("license", card.license or "not stated"),
        ("sha256", card.content_sha256),
    ]
