"""Several compressors in one host: who acts where, and how many tokens are left."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from trt_compress.errors import ConfigError
from trt_compress.methods import CompressorConfig, CompressorSpec
from trt_compress.models.compressors.base import Compressor, HostInfo
from trt_compress.models.compressors.registry import compressor_class

ENCODER_OUTPUT = "encoder_output"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """What happens at one site: `name` is `blocks.3` or `encoder_output`; `config` is the compressor's own.

    Counts include the prefix; one that varies with the inputs is a symbol. Behind the last layer `layer` is the number
    of layers.

    Attributes:
        tokens_in, tokens_out: Of one group of tokens.
        groups: Groups of one sample at this site: windows, images.
        padding: Tokens of all groups together that fill up windows.
        keeps_rest: The tokens that are not computed here are kept, none is removed.
    """

    name: str
    layer: int
    compressor: str
    config: CompressorConfig
    tokens_in: int | str
    tokens_out: int | str
    groups: int = 1
    padding: int = 0
    keeps_rest: bool = False


def place_compressors(specs: Sequence[CompressorSpec], host: HostInfo) -> tuple[nn.ModuleDict, tuple[SitePlan, ...]]:
    """Build a module for every site where a compressor removes tokens.

    Compressors that share a site act in the order of `specs`. A compressor that would remove nothing at a site is left
    out there.

    Returns:
        Modules by layer (`"3"` → the compressors after the attention of layer 3, `"encoder_output"` → those behind the
        last one), and the plan in order of execution.

    Raises:
        ConfigError: the host lacks a site or offers no signal that is asked for there, or a count does not fit.
    """
    classes = [compressor_class(spec.method) for spec in specs]
    for spec, compressor in zip(specs, classes, strict=True):
        site = compressor.site_of(spec.config)
        if site not in host.sites:
            raise ConfigError(
                f"{spec.name}: acts at {site}, but {host.name} offers only {', '.join(sorted(host.sites))}."
            )
    wanted = [(spec, cls, cls.layers(spec.config, host)) for spec, cls in zip(specs, classes, strict=True)]
    for spec, compressor in zip(specs, classes, strict=True):
        check_signals(spec, compressor, host)
    steps = nn.ModuleDict()
    plans: list[SitePlan] = []
    tokens = host.num_tokens
    for layer in range(host.depth + 1):
        key, name = (str(layer), f"blocks.{layer}") if layer < host.depth else (ENCODER_OUTPUT, ENCODER_OUTPUT)
        here: list[Compressor] = []
        for spec, compressor, layers in wanted:
            acts = layer in layers if layer < host.depth else compressor.site_of(spec.config) == ENCODER_OUTPUT
            if not acts:
                continue
            step = compressor(spec.config, host, layer, tokens)
            if step.tokens_out < tokens:
                if here and step.signals:
                    or_first = "" if any(other.signals for other in here) else f", or name {spec.name} first"
                    raise ConfigError(
                        f"{spec.name}: at {name} {here[-1].method.name} has already changed the tokens that its "
                        f"{' and '.join(sorted(step.signals))} belong to.",
                        hint=f"let them act at different layers ({spec.name}:{step.layer_option}){or_first}.",
                    )
                here.append(step)
                plans.append(
                    SitePlan(
                        name=name,
                        layer=layer,
                        compressor=spec.name,
                        config=spec.config,
                        tokens_in=tokens,
                        tokens_out=step.tokens_out,
                    )
                )
                tokens = step.tokens_out
                host = replace(
                    host,
                    width=step.width_out or host.width,
                    num_prefix=host.num_prefix if step.keeps_prefix else 0,
                    has_class_token=host.has_class_token and step.keeps_prefix,
                )
        if here:
            steps[key] = nn.ModuleList(here)
    return steps, tuple(plans)


def check_signals(spec: CompressorSpec, compressor: type[Compressor], host: HostInfo) -> None:
    """Refuse a compressor that asks for what the host does not compute at its site.

    Raises:
        ConfigError: it does; the message names what is missing, and where it would be.
    """
    site = compressor.site_of(spec.config)
    if missing := compressor.signals - host.signals.get(site, frozenset()):
        offered = [kind for kind in host.sites if compressor.signals <= host.signals.get(kind, frozenset())]
        raise ConfigError(
            f"{spec.name}: needs {' and '.join(sorted(missing))} at {site}, and {host.name} computes none there.",
            hint=f"{' and '.join(sorted(offered))} would have them." if offered else None,
        )
