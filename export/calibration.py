"""Calibration as a plain function: an artifact for a method is made from data, or from tensors trained elsewhere.

What can be known of names and files is checked here; torch is loaded behind that.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_compress.digest import sha256_of_file
from trt_compress.errors import ConfigError
from trt_compress.export.api import Progress, check_files, files_of
from trt_compress.export.needs import EXPORT_NEEDS, require_modules
from trt_compress.export.recipe import recipe_from_options
from trt_compress.export.trust import trusted
from trt_compress.files import open_regular, write_whole
from trt_compress.foreign import refusals_said, shown
from trt_compress.methods import METHODS, ArtifactCard, ArtifactFile, CompressorSpec, spec_string
from trt_compress.methods.artifact import read_artifact, with_card
from trt_compress.paths import check_apart, check_archive, check_new_file, check_readable
from trt_compress.version import __version__

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a calibration made.

    Attributes:
        path: The artifact.
        card: What it says of itself.
        held_out: Samples that the score was taken of.
        spec: Spec string of the method with the artifact.
    """

    path: Path
    card: ArtifactCard
    held_out: int
    spec: str

    def to_json(self) -> dict[str, Any]:
        """The main facts as plain JSON values."""
        card = self.card
        return {
            "artifact": str(self.path),
            "method": card.method,
            "option": card.option,
            "version": card.version,
            "settings": dict(card.settings),
            "weights": card.weights,
            "weights_sha256": card.weights_sha256,
            "data": card.data,
            "data_sha256": card.data_sha256,
            "samples": card.data_count,
            "held_out": self.held_out,
            "spec": self.spec,
            "score": dict(card.score),
            "license": card.license,
            "content_sha256": card.content_sha256,
        }


@refusals_said()
def calibrate(
    model: str,
    *,
    compress: str | None = None,
    output: str | Path,
    data: str | Path | None = None,
    tensors: str | Path | None = None,
    weights: str | Path | None = None,
    license: str | None = None,
    trust_paths: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Make the artifact that a method takes, from data or from tensors that were trained elsewhere.

    Args:
        model: As `export_model` takes it.
        compress: Spec string, as `export_model` takes it; one of its methods takes an artifact that is not given there.
        output: The file of the artifact; one that is there is replaced.
        data: .npz file with an array for each input, samples along the first axis (with states, steps along the
            second). For a model that reads tokens it holds `prompt`, int64 [samples, tokens], and may hold `steps`
            alike, which are read one by one behind it. Every fifth sample is held out, and the score is taken of these.
        tensors: In place of data, a .safetensors file or checkpoint with the tensors of the method. With neither a
            method that makes samples of its own, of tokens of the model, does so.
        weights: As `export_model` takes it.
        license: What the artifact may be used for, as text; it stands in its card.
        trust_paths: As `export_model` takes it.
        progress: Called with the name of each step.

    Raises:
        ConfigError: a name or a value is wrong, no method takes an artifact, or the data do not suit.
    """
    step = progress or (lambda text: None)
    output = Path(output)
    recipe = recipe_from_options(model, compress=compress, weights=None if weights is None else str(weights))
    if not trust_paths:
        given = {"weights": weights, "compressors": compress}
        recipe = trusted(model, recipe, named=[name for name, value in given.items() if value is not None])
    number, option = _missing(recipe.compressors)
    makes = not recipe.compressors[number].method.artifacts[option].needs_data
    if data is not None and tensors is not None or (data is tensors is None and not makes):
        raise ConfigError(
            "calibrate: give --data FILE.npz to calibrate with, or --tensors FILE with tensors that were trained "
            f"elsewhere{', not both' if data is not None else ''}."
        )
    source = None if data is tensors is None else Path(str(tensors if data is None else data))
    if data is not None:
        check_archive(Path(data))
    elif source is not None:
        check_readable(source, "give --tensors a .safetensors file or a checkpoint")
    read = {**files_of(recipe), "the data" if data is not None else "the tensors": source}
    check_apart({"-o": output}, {name: [file] for name, file in read.items() if file is not None})
    check_new_file(output, "-o")
    recipe = check_files(recipe)
    require_modules(*EXPORT_NEEDS)
    from trt_compress.export.calibration_data import ArchiveData
    from trt_compress.export.calibration_text import alphabet_of, made_samples, reads_of, text_inputs
    from trt_compress.models.calibrate.observe import WatchedHost
    from trt_compress.models.compressors.calibration import Calibrated
    from trt_compress.models.compressors.registry import compressor_class
    from trt_compress.models.hosts.registry import load_host
    from trt_compress.models.hosts.weights import read_tensors

    step("loading the model")
    host = load_host(recipe.model, weights=recipe.weights, model_sha256=recipe.model_sha256)
    spec = recipe.compressors[number]
    method = compressor_class(spec.method)
    count = held_out = 0
    if source is None:
        watched = WatchedHost(host, recipe.compressors, number, reads=reads_of(host))
        made_ = made_samples(method, alphabet_of(host, watched), spec.config)
        step(f"calibrating {spec.name} on samples of its own")
        found = method.calibrate(watched, made_.data, spec.config)
        said, sha256, count, held_out = made_.said, made_.sha256, made_.count, made_.num_held_out
    elif data is None:
        found = Calibrated(tensors=method.adopt(read_tensors(source), spec.config))
        with open_regular(source) as file:
            sha256 = sha256_of_file(file)
        said = source.name
    else:
        watched = WatchedHost(host, recipe.compressors, number, reads=reads_of(host))
        fed = [to for _, to in host.links]
        text = text_inputs(host, watched.graphs())
        with contextlib.closing(ArchiveData(source, watched.graphs(), fed, text)) as samples:
            step(f"calibrating {spec.name}")
            found = method.calibrate(watched, samples.parts(), spec.config)
            sha256, count, held_out = samples.sha256, samples.count, samples.num_held_out
        said = source.name
    card = ArtifactCard(
        method=spec.name,
        option=option,
        version=spec.method.artifacts[option].version,
        settings=spec.settings(option),
        weights=host.weights.source,
        weights_sha256=host.weights.sha256,
        data=said,
        data_sha256=sha256,
        data_count=count,
        score=found.score,
        license=license,
        made_with=__version__,
    )
    content = with_card(_stored(found.tensors), card)
    step("trying it")
    made, card = read_artifact(ArtifactFile(str(output), content), method=spec.name, option=option)
    config = replace(spec.config, **{option: made})
    spec = replace(spec, config=config)
    host.attach((*recipe.compressors[:number], spec, *recipe.compressors[number + 1 :]))
    try:
        write_whole(output, content)
    except OSError as error:
        raise ConfigError(f"-o: '{shown(str(output))}' cannot be written ({error.strerror}); give another.") from None
    return Calibration(path=output, card=card, held_out=held_out, spec=spec_string([spec]))


def _stored(tensors: Mapping[str, "Tensor"]) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(tensors)


def _missing(specs: Sequence[CompressorSpec]) -> tuple[int, str]:
    """The place of the one method that lacks an artifact, and the option that takes it."""
    lacking = [
        (number, option)
        for number, spec in enumerate(specs)
        for option in spec.method.artifacts
        if option not in spec.config.artifacts
    ]
    if len(lacking) == 1:
        return lacking[0]
    known = ", ".join(f"{name} ({', '.join(method.artifacts)})" for name, method in METHODS.items() if method.artifacts)
    if lacking:
        said = " and ".join(f"{specs[number].name} ({option})" for number, option in lacking)
        raise ConfigError(f"calibrate: {said} lack artifacts; make one after the other, and give the other's file.")
    if any(spec.config.artifacts for spec in specs):
        raise ConfigError("calibrate: every artifact is given already; leave out the one that is to be made.")
    named = " + ".join(spec.name for spec in specs) or "none"
    raise ConfigError(f"calibrate: {named} takes no artifact; methods that take one are {known}.")
