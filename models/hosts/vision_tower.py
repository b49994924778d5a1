"""Towers of images: patches go in, features of each and one pooled vector come out; compressors act between attention
and feed-forward part of the layers, and behind the tower.

What all families share. A family is a file beside this one: CLIP, SigLIP, DINOv2, ViT. `hf:PATH?feature_layer=-2` ends
the tower behind a layer, as language models take their features: nothing behind it is computed, and no last norm.
`hf:PATH?crops=2x2` makes a sample of a thumbnail and crops: each is a picture of its own to the layers.

Source: the layout of transformers' save_pretrained: config.json, preprocessor_config.json, model.safetensors.
Differs: attention is written out (`models/layers/attention.py`); dropout is left out; positions of another image size
are resampled once, when the model is loaded; merged tokens count in a pooling as often as patches are in them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.padding import packed
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import GraphPlan, place_first, place_one
from trt_compress.models.compressors.sites import (
    BESIDE,
    ENCODER_OUTPUT,
    PICTURES,
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
        crops: Rows and columns of the crops that each sample has behind a thumbnail; None: a sample is one picture.
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
    crops: Size | None = None

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

    def take_crops(self, crops: Size) -> None:
        """Take samples of a thumbnail and of rows and columns of crops.

        Raises:
            ConfigError: The model is a classifier.
        """
        if self.num_labels:
            raise ConfigError(
                f"{self.family}: crops={crops[0]}x{crops[1]} is for towers that give features, and this model is a "
                "classifier; leave it out."
            )
        self.crops = crops

    @property
    def pictures(self) -> int:
        """Pictures of one sample."""
        return 1 if self.crops is None else 1 + self.crops[0] * self.crops[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample: channels, height and width, in front of them the pictures where there are several."""
        one = (self.channels, *self.size)
        return one if self.crops is None else (self.pictures, *one)

    def forward(self, image: Tensor) -> Any:
        """As `CompressedTower`, without compressors."""
        tokens = Tokens(x=self.embed(as_pictures(image, self.crops)), position=self.places(image))
        found: tuple[Tensor, ...] = ()
        for number, layer in enumerate(self.stack):
            tokens = tokens.with_x(tokens.x + layer.attend(tokens.x)[0])
            tokens = tokens.with_x(tokens.x + layer.feed(tokens.x))
            if number in self.taken:
                found += self.features(self.of_sample(tokens, self.num_prefix))
        tokens = self._finished(tokens)
        if self.num_labels:
            return self.logits(tokens)
        return (*self.leaving(self.of_sample(tokens, self.num_prefix), self._pooled(tokens)), *found)

    def _finished(self, tokens: Tokens) -> Tokens:
        return tokens if self.cut else tokens.with_x(self.finish(tokens.x))

    def _pooled(self, tokens: Tokens) -> Tensor | None:
        return None if self.cut else self.pooled(tokens)

    def places(self, image: Tensor) -> Tensor | None:
        """Where each token stands in its sample, [B * pictures, N], of samples with crops.

        Patches of the thumbnail are numbered row by row, and behind them those of the grid that all crops together
        make; the tokens in front of patches have -1.
        """
        if self.crops is None:
            return None
        (down, across), (rows, columns) = self.crops, self.grid
        count = rows * columns
        first, whole = (torch.arange(each, device=image.device) for each in (count, down * across * count))
        of_crops = whole.reshape(down, rows, across, columns).transpose(1, 2).reshape(-1, count) + count
        patches = torch.cat([first[None], of_crops])
        places = nn.functional.pad(patches, (self.num_prefix, 0), value=-1)
        return places.expand(image.shape[0], -1, -1).flatten(0, 1)

    def of_sample(self, tokens: Tokens, dropped: int) -> Tokens:
        """The tokens behind those that are dropped; of several pictures one behind the other, with all padding last."""
        valid, position = tokens.valid, tokens.position
        tokens = replace(
            tokens,
            x=tokens.x[:, dropped:],
            size=None if tokens.size is None else tokens.size[:, dropped:],
            valid=None if valid is None else valid[:, dropped:],
            position=None if position is None else position[:, dropped:],
        )
        if self.crops is None:
            return tokens

        def joined(each: Tensor | None) -> Tensor | None:
            if each is None:
                return None
            return each.reshape(-1, self.pictures * each.shape[1], *each.shape[2:])

        whole = replace(
            tokens,
            x=cast(Tensor, joined(tokens.x)),
            size=joined(tokens.size),
            valid=joined(tokens.valid),
            position=joined(tokens.position),
        )
        return packed(whole)

    def features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """Features [B, M, C], and the patches in each (0: padding), [B, M]."""
        size = tokens.sizes[..., 0]
        if tokens.valid is not None:
            size = torch.where(tokens.valid, size, 0.0)
        return tokens.x, to_dtype(size, tokens.x.dtype)

    def leaving(self, tokens: Tokens, pooled: Tensor | None) -> tuple[Tensor, ...]:
        """Features and sizes; of samples with crops their places (-1: padding), [B, M]; and the pooled vector [B, P],
        of these [B, pictures, P], if there is one."""
        found = self.features(tokens)
        if self.crops is not None:
            place = cast(Tensor, tokens.position)
            found += (place if tokens.valid is None else torch.where(tokens.valid, place, -1),)
            pooled = None if pooled is None else pooled.reshape(-1, self.pictures, pooled.shape[1])
        return found if pooled is None else (*found, pooled)


def as_pictures(each: Tensor, crops: Size | None) -> Tensor:
    """What samples [B, pictures, …] are made of, as pictures, [B * pictures, …]; without crops they are pictures."""
    return each if crops is None else each.flatten(0, 1)


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
    patches = model.grid[0] * model.grid[1]
    together = Site(
        kind=PICTURES,
        tokens=model.pictures * patches,
        width=model.width,
        taps=frozenset[TapKind]({"picture_size"}),
    )
    output = () if model.num_labels else (behind,) if model.crops is None else (behind, together)
    return HostInfo(
        name=name,
        sites=(*sites_of_layers(depth, taps=taps), *output),
        depth=depth,
        num_tokens=model.num_tokens,
        protected=leading_spans(model.prefix),
        width=model.width,
        attention=AttentionFacts(num_heads=layer.heads, head_size=model.width // layer.heads),
        grid=model.grid,
        crops=model.crops,
    )


class CompressedTower(CompressedModule):
    """A tower with compressors after the attention of its layers, and behind it.

    Args:
        model: The model; it is called, never changed.
        specs: Compressors, in order.
        name: The model's name, for messages.

    Attributes:
        beside: Shapes of what it reads beside the image, for one sample, by name: `text`, vectors of a text [S, P];
            `question`, what a language model makes of the last token of a question [T]; `picture_size`, height and
            width of the picture that crops were cut out of [2].

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
        self.tokens_out = (placed.tokens_out - self.dropped) * self.model.pictures
        if placed.steps(PICTURES):
            self.tokens_out = placed.tokens_out
        self.width_out = placed.width_out or self.model.width
        behind = [as_tap(asked) for asked in placed.wanted(self.info.depth)]
        texts = max((tap.rows for tap in behind if tap.kind == "texts"), default=0)
        self.beside: dict[str, tuple[int, ...]] = {"text": (texts, self.model.text_width)} if texts else {}
        for tap in behind:
            if tap.kind == "question":
                self.beside["question"] = (tap.channels,)
        if any(tap.kind == "picture_size" for tap in behind):
            self.beside["picture_size"] = (2,)

    def patches_behind(self, layer: int) -> int:
        """How many tokens besides those in front leave a layer, in all pictures of a sample."""
        left = [site.tokens_out for site in self.plan if site.layer <= layer]
        return (int(left[-1] if left else self.model.num_tokens) - self.model.num_prefix) * self.model.pictures

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
        """Logits [B, classes] of images; without a classifier features [B, M, C], their sizes [B, M], of samples with
        crops their places [B, M], and the pooled vector [B, P] if the model has one; then features and sizes of each
        layer of `taken`.

        Args:
            image: [B, channels, height, width], of samples with crops [B, pictures, channels, height, width].
            beside: What `self.beside` names, in its order, each [B, …]; of vectors of a text a row of zeros is none.

        Raises:
            ShapeError: One of them has another shape, or is missing.
        """
        model = self.model
        if tuple(image.shape[1:]) != model.input_shape:
            raise ShapeError(
                f"image: {list(image.shape[1:])} was given; {self.info.name} takes {list(model.input_shape)} "
                f"({'' if model.crops is None else 'pictures, '}channels, height, width)."
            )
        self._check_beside(beside)
        tokens = Tokens(x=model.embed(as_pictures(image, model.crops)), position=model.places(image))
        taps = Taps()
        found: tuple[Tensor, ...] = ()
        for number, layer in enumerate(model.stack):
            tokens = self.placed.layer(number, tokens, taps, partial(_attend, layer), layer.feed)
            if number in model.taken:
                found += model.features(model.of_sample(tokens, model.num_prefix))
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
        tokens = model.of_sample(self.placed(ENCODER_OUTPUT, tokens, taps), self.dropped)
        return (*model.leaving(self.placed(PICTURES, tokens, taps), pooled), *found)

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
        """The tokens in the space of texts, or what is given beside the image, for each of its pictures."""
        if kind == "text_space":
            return self.model.in_text_space(x)
        found = given["text" if kind == "texts" else kind]
        if kind == "picture_size" or self.model.crops is None:
            return found
        shape = (-1, self.model.pictures, *(-1 for _ in found.shape[1:]))
        return found[:, None].expand(*shape).flatten(0, 1)


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


def _beside(name: str, shape: tuple[int, ...], model: VisionTower) -> TensorSpec:
    """What is read beside an image; sizes of pictures are those of any that could be cut into crops."""
    if name != "picture_size":
        return TensorSpec(name=name, shape=(BATCH_SYMBOL, *shape))
    sides = (side * (number + 1) for side, number in zip(model.size, model.crops or (1, 1), strict=True))
    return TensorSpec(name=name, shape=(BATCH_SYMBOL, *shape), dtype="int64", values=(min(model.size), max(sides)))


def _graph_of(module: CompressedTower) -> GraphSpec:
    model = module.model
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="image", shape=(BATCH_SYMBOL, *model.input_shape)),)
    inputs += tuple(_beside(name, shape, model) for name, shape in module.beside.items())
    outputs: tuple[TensorSpec, ...]
    if model.num_labels:
        outputs = (TensorSpec(name="logits", shape=(BATCH_SYMBOL, model.num_labels)),)
    else:
        outputs = (
            TensorSpec(name="features", shape=(BATCH_SYMBOL, module.tokens_out, module.width_out)),
            TensorSpec(name="feature_size", shape=(BATCH_SYMBOL, module.tokens_out)),
        )
        if model.crops is not None:
            outputs += (TensorSpec(name="feature_place", shape=(BATCH_SYMBOL, module.tokens_out), dtype="int64"),)
        if model.pooled_width and not model.cut:
            several = () if model.crops is None else (model.pictures,)
            outputs += (TensorSpec(name="pooled", shape=(BATCH_SYMBOL, *several, model.pooled_width)),)
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
