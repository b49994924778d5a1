"""Towers of images: patches go in, features of each and one pooled vector come out; compressors act between attention
and feed-forward part of the layers, and behind the tower.

What all families share. A family is a file beside this one: CLIP, SigLIP, DINOv2, ViT. `hf:PATH?feature_layer=-2` ends
the tower behind a layer, as language models take their features: nothing behind it is computed, and no last norm.

Source: the layout of transformers' save_pretrained: config.json, preprocessor_config.json, model.safetensors.
Differs: attention is written out (`models/layers/attention.py`); dropout is left out; positions of another image size
are resampled once, when the model is loaded; merged tokens count in a pooling as often as patches are in them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import GraphPlan, place_first, place_one
from trt_compress.models.compressors.sites import (
    BESIDE,
    ENCODER_OUTPUT,
    Asked,
    AttentionFacts,
    HostInfo,
    Site,
    SpanKind,
    TapKind,
    as_tap,
    leading_spans,
    sites_of_layers,
)
from trt_compress.models.hosts.audio_encoder import EncoderLayer
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, Layers, TensorSpec
from trt_compress.models.layers.attention import ATTENTION_TAPS, attention_taps, split_heads
from trt_compress.models.layers.first import first_layers
from trt_compress.models.layers.patch_resize import resize_patches
from trt_compress.plugins.operator import cast as to_dtype

FAMILY = "vision_tower"
Size = tuple[int, int]


class Resampling(NamedTuple):
    """How a table of positions is made for another grid of patches."""

    mode: Literal["bicubic", "bilinear"]
    antialias: bool = False


class VisionTower(nn.Module, ABC):
    """A tower without compressors.

    Args:
        size: Height and width of the image, in pixels.
        patch: Height and width of a patch; what is left at the right and below is not seen.
        channels: Of the image.
        width: Of a token.

    Attributes:
        family: What transformers calls it, for messages.
        row: Where the layers are.
        patches: Where the layer is that makes tokens of patches.
        table: Where the positions are, and of how many tokens in front of the patches there are some.
        prefix: Tokens in front of the patches, by kind.
        num_labels: Classes; 0: features are the output.
        ahead: Layers at the end that are not run, and only give taps of the tokens that would come to them.
        cut: It ends behind a layer, without its last norm.
        taken: Layers before that, of which features are given too.
    """

    family: ClassVar[str]
    row: ClassVar[str]
    patches: ClassVar[str]
    table: ClassVar[tuple[str, int]]
    resampling: ClassVar[Resampling] = Resampling(mode="bicubic")
    prefix: tuple[tuple[SpanKind, int], ...] = ()
    num_labels: int = 0
    ahead: int = 0
    cut: bool = False
    taken: tuple[int, ...] = ()

    def __init__(self, *, size: Size, patch: Size, channels: int, width: int) -> None:
        super().__init__()
        self._check_size(size, patch)
        self.size, self.patch, self.channels, self.width = size, patch, channels, width

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        return self.size[0] // self.patch[0], self.size[1] // self.patch[1]

    @property
    def num_prefix(self) -> int:
        """Tokens in front of the patches."""
        return sum(count for _, count in self.prefix)

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the first layer."""
        return self.num_prefix + self.grid[0] * self.grid[1]

    @property
    def all_layers(self) -> list[EncoderLayer]:
        """The layers, those that are ahead included."""
        return cast(list[EncoderLayer], list(cast(nn.ModuleList, self.get_submodule(self.row))))

    @property
    def stack(self) -> list[EncoderLayer]:
        """The layers that are run."""
        return self.all_layers[: len(self.all_layers) - self.ahead]

    @abstractmethod
    def embed(self, image: Tensor) -> Tensor:
        """Tokens [B, N, C] of images [B, channels, height, width]."""

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """What the model calls its last hidden state, of tokens that leave the last layer."""

    @abstractmethod
    def pooled(self, tokens: Tokens) -> Tensor | None:
        """One vector [B, P] of each image, of finished tokens; None: this model has none."""

    def logits(self, tokens: Tokens) -> Tensor:
        """Classes [B, classes] of finished tokens, where there is a classifier."""
        raise NotImplementedError

    @property
    def pooled_width(self) -> int:
        """Channels of `pooled`; 0: there is none."""
        return self.width

    def in_text_space(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] behind the tower in the space of texts, [B, N, P], where there is one."""
        raise NotImplementedError

    @property
    def text_width(self) -> int:
        """Channels of that space; 0: there is none."""
        return 0

    def fit(self, size: Size, patch: Size, *, resample: bool) -> None:
        """Take images of another size, or patches of them.

        Args:
            size: Height and width in pixels.
            patch: Height and width of a patch.
            resample: Positions may be resampled.

        Raises:
            ConfigError: The positions are for another grid of patches.
        """
        before = self.grid
        self._check_size(size, patch)
        if patch != self.patch:
            resize_patches(cast(nn.Conv2d, self.get_submodule(self.patches)), patch)
        self.size, self.patch = size, patch
        if self.grid == before:
            return
        if not resample:
            raise ConfigError(
                f"{self.family}: the position table is for {before[0]} x {before[1]} patches, and images of "
                f"{size[0]}x{size[1]} pixels have {self.grid[0]} x {self.grid[1]}; add resample_pos=true to have it "
                "resampled."
            )
        path, front = self.table
        parent, _, name = path.rpartition(".")
        table = self.get_parameter(path)
        rows = table.detach().reshape(-1, self.width)
        new = torch.cat([rows[:front], resampled(rows[front:], before, self.grid, self.resampling)])
        setattr(self.get_submodule(parent), name, nn.Parameter(new.reshape(*table.shape[:-2], *new.shape)))

    def _check_size(self, size: Size, patch: Size) -> None:
        if min(*patch) < 1 or size[0] < patch[0] or size[1] < patch[1]:
            raise ConfigError(
                f"{self.family}: an image of {size[0]}x{size[1]} pixels is smaller than a patch of "
                f"{patch[0]}x{patch[1]}; give a larger one."
            )

    def stop_behind(self, *layers: int) -> None:
        """End the tower behind a layer; the next one stays for taps.

        Args:
            layers: From 0; a negative one counts from the end, -1 is the last. Of several the tower ends behind the
                last, and gives the features of the others too.

        Raises:
            ConfigError: There is no such layer, they do not ascend, or the model is a classifier.
        """
        depth, said = len(self.all_layers), ",".join(map(str, layers))
        if wrong := [layer for layer in layers if not -depth <= layer < depth]:
            raise ConfigError(
                f"{self.family}: feature_layer={wrong[0]} is out of range; this tower has layers 0..{depth - 1}, and "
                "-1 is the last."
            )
        if self.num_labels:
            raise ConfigError(
                f"{self.family}: feature_layer={said} is for towers that give features, and this model is a "
                "classifier; leave it out."
            )
        numbers = [layer % depth for layer in layers]
        if numbers != sorted(set(numbers)):
            ascending = ",".join(map(str, sorted(set(numbers))))
            raise ConfigError(
                f"{self.family}: feature_layer={said} does not ascend, or names a layer twice; write "
                f"feature_layer={ascending}."
            )
        *before, number = numbers
        self.taken = tuple(before)
        owner, _, name = self.row.rpartition(".")
        kept = cast(nn.ModuleList, self.get_submodule(self.row))[: number + 2]
        setattr(self.get_submodule(owner), name, kept)
        self.ahead, self.cut = len(kept) - number - 1, True

    def forward(self, image: Tensor) -> Any:
        """As `CompressedTower`, without compressors."""
        tokens = Tokens(x=self.embed(image))
        found: tuple[Tensor, ...] = ()
        for number, layer in enumerate(self.stack):
            tokens = tokens.with_x(tokens.x + layer.attend(tokens.x)[0])
            tokens = tokens.with_x(tokens.x + layer.feed(tokens.x))
            if number in self.taken:
                found += self.leaving(tokens, None, self.num_prefix)
        tokens = self._finished(tokens)
        if self.num_labels:
            return self.logits(tokens)
        return (*self.leaving(tokens, self._pooled(tokens), self.num_prefix), *found)

    def _finished(self, tokens: Tokens) -> Tokens:
        return tokens if self.cut else tokens.with_x(self.finish(tokens.x))

    def _pooled(self, tokens: Tokens) -> Tensor | None:
        return None if self.cut else self.pooled(tokens)

    def leaving(self, tokens: Tokens, pooled: Tensor | None, dropped: int) -> tuple[Tensor, ...]:
        """Features [B, M, C], the patches in each (0: padding) [B, M], and the pooled vector [B, P] if there is one."""
        size = tokens.sizes[:, dropped:, 0]
        if tokens.valid is not None:
            size = torch.where(tokens.valid[:, dropped:], size, 0.0)
        x = tokens.x[:, dropped:]
        found = (x, to_dtype(size, x.dtype))
        return found if pooled is None else (*found, pooled)


def resampled(rows: Tensor, before: Size, after: Size, how: Resampling) -> Tensor:
    """A table of positions [rows * columns, C] for another grid of patches, in float32."""
    square = rows.float().reshape(1, *before, -1).permute(0, 3, 1, 2)
    found = nn.functional.interpolate(square, size=after, mode=how.mode, align_corners=False, antialias=how.antialias)
    return found.permute(0, 2, 3, 1).reshape(after[0] * after[1], -1).to(rows.dtype)


def host_info(model: VisionTower, name: str) -> HostInfo:
    """What compressors may know of `model`."""
    depth, layer = len(model.stack), model.all_layers[0]
    has_class = any(kind == "class" for kind, _ in model.prefix)
    taps = ATTENTION_TAPS if has_class else ATTENTION_TAPS - {"class_attention"}
    asked = frozenset[TapKind]({"question", *(("text_space", "texts") if model.text_width else ())})
    behind = Site(kind=ENCODER_OUTPUT, taps=asked)
    if model.ahead:
        behind = Site(kind=ENCODER_OUTPUT, layer=depth, taps=asked | frozenset[TapKind]({"keys", "queries", "values"}))
    return HostInfo(
        name=name,
        sites=(*sites_of_layers(depth, taps=taps), *(() if model.num_labels else (behind,))),
        depth=depth,
        num_tokens=model.num_tokens,
        protected=leading_spans(model.prefix),
        width=model.width,
        attention=AttentionFacts(num_heads=layer.heads, head_size=model.width // layer.heads),
        grid=model.grid,
    )


class CompressedTower(CompressedModule):
    """A tower with compressors after the attention of its layers, and behind it.

    Args:
        model: The model; it is called, never changed.
        specs: Compressors, in order.
        name: The model's name, for messages.

    Attributes:
        beside: Shapes of what it reads beside the image, for one image, by name: `text`, vectors of a text [S, P]; or
            `question`, what a language model makes of the last token of a question [T].

    Raises:
        ConfigError: a compressor does not fit the model.
    """

    def __init__(self, model: VisionTower, specs: Sequence[CompressorSpec], *, name: str) -> None:
        super().__init__()
        self.model = model
        self.info, self.specs = host_info(model, name), tuple(specs)
        self._take(place_one(specs, self.info))
        self.training = model.training

    def _take(self, placed: GraphPlan) -> None:
        self.placed, self.plan = placed, placed.sites
        kept = all(step.keeps_prefix for step in placed.steps(ENCODER_OUTPUT))
        self.dropped = self.model.num_prefix if kept else 0
        self.tokens_out = placed.tokens_out - self.dropped
        self.width_out = placed.width_out or self.model.width
        behind = [as_tap(asked) for asked in placed.wanted(self.info.depth)]
        texts = max((tap.rows for tap in behind if tap.kind == "texts"), default=0)
        self.beside: dict[str, tuple[int, ...]] = {"text": (texts, self.model.text_width)} if texts else {}
        for tap in behind:
            if tap.kind == "question":
                self.beside["question"] = (tap.channels,)

    def patches_behind(self, layer: int) -> int:
        """How many tokens besides those in front leave a layer."""
        left = [site.tokens_out for site in self.plan if site.layer <= layer]
        return int(left[-1] if left else self.model.num_tokens) - self.model.num_prefix

    def first_layers(self, count: int) -> "CompressedTower":
        """The same without its last layers, and with what acts at those that are left."""
        short = first_layers(self, [f"model.{self.model.row}"], count)
        short.model.ahead, short.model.taken = 0, tuple(layer for layer in self.model.taken if layer < count)
        short._take(place_first(self.specs, self.info, self.placed, count))
        return short

    def detach(self) -> VisionTower:
        """The model itself, as it was before."""
        return self.model

    def forward(self, image: Tensor, *beside: Tensor) -> Any:
        """Logits [B, classes] of images; without a classifier features [B, M, C], their sizes [B, M], and the pooled
        vector [B, P] if the model has one; then features and sizes of each layer of `taken`.

        Args:
            image: [B, channels, height, width].
            beside: What `self.beside` names, in its order, each [B, …]; of vectors of a text a row of zeros is none.

        Raises:
            ShapeError: One of them has another shape, or is missing.
        """
        model = self.model
        if tuple(image.shape[1:]) != (model.channels, *model.size):
            raise ShapeError(
                f"image: {list(image.shape[1:])} was given; {self.info.name} takes "
                f"{[model.channels, *model.size]} (channels, height, width)."
            )
        self._check_beside(beside)
        tokens, taps = Tokens(x=model.embed(image)), Taps()
        found: tuple[Tensor, ...] = ()
        for number, layer in enumerate(model.stack):
            tokens = self.placed.layer(number, tokens, taps, partial(_attend, layer), layer.feed)
            if number in model.taken:
                found += model.leaving(tokens, None, model.num_prefix)
        wanted = self.placed.wanted(self.info.depth)
        asked = frozenset[Asked](each for each in wanted if as_tap(each).kind in {*BESIDE, "text_space"})
        if wanted - asked:
            taps.put(self.info.depth, _look_ahead(model.all_layers[-1], tokens.x, wanted - asked))
        tokens = model._finished(tokens)
        given = dict(zip(self.beside, beside, strict=True))
        taps.put(self.info.depth, {each: self._asked(as_tap(each).kind, tokens.x, given) for each in asked})
        if model.num_labels:
            return model.logits(tokens)
        pooled = model._pooled(tokens)
        return (*model.leaving(self.placed(ENCODER_OUTPUT, tokens, taps), pooled, self.dropped), *found)

    def _check_beside(self, beside: Sequence[Tensor]) -> None:
        """Raise ShapeError if what is given beside an image is not what is read."""
        for place, (name, shape) in enumerate(self.beside.items()):
            given = list(beside[place].shape[1:]) if place < len(beside) else "none"
            if given != list(shape):
                raise ShapeError(
                    f"{name}: {given} was given; {self.info.name} takes {list(shape)} "
                    f"({'vectors, channels' if len(shape) > 1 else 'channels'})."
                )
        if len(beside) > len(self.beside):
            raise ShapeError(
                f"image: {len(beside)} tensors were given beside it; {self.info.name} takes {len(self.beside)}."
            )

    def _asked(self, kind: TapKind, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The tokens in the space of texts, or what is given beside the image."""
        if kind == "text_space":
            return self.model.in_text_space(x)
        return given["text" if kind == "texts" else kind]


def _attend(layer: EncoderLayer, tokens: Tokens, wanted: frozenset[Asked]) -> tuple[Tensor, Mapping[Asked, Tensor]]:
    """A layer's attention."""
    update, found, _ = layer.attend(tokens.x, size=tokens.key_size, wanted=wanted)
    return update, found


def _look_ahead(layer: EncoderLayer, x: Tensor, wanted: frozenset[Asked]) -> Mapping[Asked, Tensor]:
    """Queries, keys and values of a layer that is not run."""
    query, key, value = (split_heads(part, layer.heads) for part in layer.queries_keys_values(x))
    return attention_taps(wanted, query, key, value)


def tower_graph(model: VisionTower, specs: Sequence[CompressorSpec], *, name: str) -> GraphSpec:
    """The one graph of a tower.

    Args:
        model: In eval mode.
        specs: Compressors, in order.
        name: The model's name, for messages.

    Raises:
        ConfigError: a compressor does not fit.
    """
    return _graph_of(CompressedTower(model, specs, name=name).eval())


def _graph_of(module: CompressedTower) -> GraphSpec:
    model = module.model
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="image", shape=(BATCH_SYMBOL, model.channels, *model.size)),)
    inputs += tuple(TensorSpec(name=name, shape=(BATCH_SYMBOL, *shape)) for name, shape in module.beside.items())
    outputs: tuple[TensorSpec, ...]
    if model.num_labels:
        outputs = (TensorSpec(name="logits", shape=(BATCH_SYMBOL, model.num_labels)),)
    else:
        outputs = (
            TensorSpec(name="features", shape=(BATCH_SYMBOL, module.tokens_out, module.width_out)),
            TensorSpec(name="feature_size", shape=(BATCH_SYMBOL, module.tokens_out)),
        )
        if model.pooled_width and not model.cut:
            outputs += (TensorSpec(name="pooled", shape=(BATCH_SYMBOL, model.pooled_width)),)
        for layer in model.taken:
            left = module.patches_behind(layer)
            outputs += (
                TensorSpec(name=f"features_{layer}", shape=(BATCH_SYMBOL, left, model.width)),
                TensorSpec(name=f"feature_size_{layer}", shape=(BATCH_SYMBOL, left)),
            )
    return GraphSpec(
        module=module,
        inputs=inputs,
        outputs=outputs,
        layers=Layers(count=len(model.stack), first=lambda count: _graph_of(module.first_layers(count).eval())),
    )
