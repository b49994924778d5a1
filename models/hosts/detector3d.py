"""Multi-view 3D detection: a ViT over several calibrated cameras, object queries, and a history of them as state.

The backbone is a Vision Transformer with windows, some blocks attending to whole images. Each token knows the points of
space that it may show (PETR) and says what it shows and where that stands on the ground. The tokens that look most like
the middle of an object, more so than those beside them, propose queries there, and the best queries of the last frame,
moved by their velocities and the vehicle's own motion, come along (StreamPETR). A decoder, whose attention fades with
the distance in metres, corrects both into boxes. All states have a constant shape, so one graph with states does a
whole stream.

Source: ViTDet, arXiv:2203.16527 (windows); PETR, arXiv:2203.05625 (3D positions); StreamPETR, arXiv:2303.11926
(history); Far3D, arXiv:2308.09616 (queries from image tokens); CenterNet, arXiv:1904.07850 (peaks).
Differs: the history is one frame deep; queries come from tokens only, there are no learned anchors; depth follows from
the ground plane, so the ground has to be about z = 0 of the ego frame.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.format.graphs import BATCH_SYMBOL, StateSpec
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.motion_queries import (
    EncodedHistory,
    History,
    MotionAwareQueries,
    MotionQueryScorer,
    sine_positions,
    transform_points,
)
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import place_one
from trt_compress.models.compressors.sites import HostInfo, Site
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, Steps, TensorSpec
from trt_compress.models.hosts.detector3d_layers import Block, DecoderBlock, Stem, distances
from trt_compress.models.layers.partial import Route
from trt_compress.models.layers.windows import from_windows, to_windows
from trt_compress.plugins.operator import at_site
from trt_compress.plugins.token_select.op import token_select

FAMILY = "detector3d"
BOX_COLUMNS = ("x", "y", "z", "length", "width", "height", "sin_yaw", "cos_yaw", "velocity_x", "velocity_y")
INPUTS = ("images", "img2lidar", "ego_pose", "timestamp")
STATES = ("history_query", "history_motion", "history_pose", "history_time")
LONGEST_AGE_S = 2.0
"""A history older than this counts as this old."""

_MEAN_SIZE = (4.0, 1.6, 1.8)
_PIXEL_SCALE = 127.5
_ABSENT_M = 1e4  # how far away a query of a history that is not there seems
_FARTHEST_M = 60.0  # a token that shows nothing on the ground shows something about this far away
_NOT_A_PEAK = 2.0  # taken off the logit of a token whose neighbour has a higher one
_RARE = -math.log((1 - 0.02) / 0.02)  # logit of a class before training


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector3DConfig:
    """Form of a detector.

    Attributes:
        num_cameras: Cameras V.
        image_size: Height and width of an image, multiples of `patch_size`.
        patch_size: Pixels along a token's side.
        stem_channels: Channels after each of the convolutions that halve the image before it is cut into patches.
        embed_dim: Width C of tokens and queries.
        depth: Blocks of the backbone.
        num_heads: Attention heads.
        mlp_ratio: Width of the hidden layer of a block, over C.
        window: Tokens along a window's side.
        global_layers: Blocks that attend to the whole image.
        scored_layers: Blocks before which tokens can be scored by the history.
        num_proposals: Queries from tokens.
        num_history: Queries kept for the next frame.
        decoder_depth: Blocks of the decoder.
        num_depths: Points along a token's ray in its 3D position.
        range_m: Boxes lie within this distance along x and y.
        height_range_m: And between these heights.
        classes: Names of the classes.
    """

    num_cameras: int = 4
    image_size: tuple[int, int] = (64, 128)
    patch_size: int = 8
    stem_channels: tuple[int, ...] = (24, 48)
    embed_dim: int = 80
    depth: int = 8
    num_heads: int = 5
    mlp_ratio: float = 4.0
    window: int = 8
    global_layers: tuple[int, ...] = (3, 7)
    scored_layers: tuple[int, ...] = (1, 4, 6)
    num_proposals: int = 32
    num_history: int = 32
    decoder_depth: int = 2
    num_depths: int = 16
    range_m: float = 20.0
    height_range_m: tuple[float, float] = (-2.0, 6.0)
    classes: tuple[str, ...] = ("car", "truck", "pedestrian")

    def __post_init__(self) -> None:
        if any(side % self.patch_size for side in self.image_size):
            raise ConfigError(
                f"detector3d: image_size={list(self.image_size)} is no multiple of patch_size={self.patch_size}; "
                "choose both so that whole patches fit."
            )
        if self.patch_size % 2 ** len(self.stem_channels):
            raise ConfigError(
                f"detector3d: patch_size={self.patch_size} cannot be halved {len(self.stem_channels)} times, once for "
                f"each of stem_channels={list(self.stem_channels)}; shorten these."
            )
        for name, layers in (("global_layers", self.global_layers), ("scored_layers", self.scored_layers)):
            if any(not 0 <= layer < self.depth for layer in layers):
                raise ConfigError(f"detector3d: {name}={list(layers)} names a layer outside of 0..{self.depth - 1}.")
        if both := set(self.global_layers) & set(self.scored_layers):
            raise ConfigError(
                f"detector3d: layer {min(both)} is in global_layers and in scored_layers; tokens are scored before "
                "blocks with windows only."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of an image."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def windows(self) -> int:
        """Windows of an image, those that are padded among them."""
        return math.prod(-(-side // self.window) for side in self.grid)

    @property
    def point_range(self) -> tuple[float, ...]:
        """Least x, y, z and largest x, y, z, metres."""
        low, high = self.height_range_m
        return (-self.range_m, -self.range_m, low, self.range_m, self.range_m, high)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each state without the batch axis; all start as zeros."""
        kept = self.num_history
        return dict(zip(STATES, ((kept, self.embed_dim), (kept, 5), (4, 4), (1,)), strict=True))


class Detections(NamedTuple):
    """What a frame gives, and what training looks at besides.

    Attributes:
        boxes: In the ego frame, [B, Q, 10]: BOX_COLUMNS.
        scores: [B, Q, classes], 0 to 1.
        states: For the next frame, in the order of STATES.
        layers: Class logits [B, Q, classes] and boxes with log-sizes [B, Q, 10], of each decoder block.
        token_logits: Class logits of every token, [B, V * N, classes].
        token_places: Column and row of the box centre, pixels, and log of its depth, of every token, [B, V * N, 3].
        token_scores: Log-probability of being needed, of every token before each scored layer, [B, V * N] each.
        references: Where the queries start, [B, Q, 3].
    """

    boxes: Tensor
    scores: Tensor
    states: tuple[Tensor, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    token_logits: Tensor
    token_places: Tensor
    token_scores: tuple[Tensor, ...]
    references: Tensor


class Detector3D(nn.Module):
    """The dense detector; `attach` puts compressors in.

    Args:
        config: Its form.
    """

    token_centers: Tensor
    depths: Tensor

    def __init__(self, config: Detector3DConfig) -> None:
        super().__init__()
        self.config = config
        channels, classes = config.embed_dim, len(config.classes)
        self.patch_embed = Stem(config.stem_channels, channels, config.patch_size)
        self.pos_embed = nn.Parameter(_grid_positions(config))
        self.blocks = nn.ModuleList(Block(channels, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.position = nn.Sequential(
            nn.Linear(3 * config.num_depths, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.token_head = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, classes + 3))
        self.proposal = nn.Linear(channels, channels)
        self.motion = MotionAwareQueries(channels, config.point_range)
        self.decoder = nn.ModuleList(DecoderBlock(channels, config.num_heads) for _ in range(config.decoder_depth))
        self.query_norm = nn.LayerNorm(channels)
        self.class_head = nn.Linear(channels, classes)
        self.box_head = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, len(BOX_COLUMNS)))
        self.scorers = nn.ModuleDict(
            {
                str(layer): MotionQueryScorer(channels, channels, config.num_history, config.point_range)
                for layer in config.scored_layers
            }
        )
        self.register_buffer("token_centers", _token_centers(config), persistent=False)
        self.register_buffer("depths", _ray_depths(config), persistent=False)
        self.history_logits = nn.Parameter(torch.full((classes,), _RARE))
        nn.init.zeros_(self.class_head.bias)
        with torch.no_grad():
            self.class_head.weight.mul_(0.1)
            bias = torch.tensor([_RARE] * classes + [0.0, 0.0, 1.0])
            token_last, box_last = self.token_head[-1], self.box_head[-1]
            assert isinstance(token_last, nn.Linear) and isinstance(box_last, nn.Linear)
            token_last.bias.copy_(bias)
            token_last.weight.mul_(0.1)
            box_last.weight.mul_(0.1)
            box_last.bias.copy_(torch.tensor([0.0] * 7 + [1.0, 0.0, 0.0]))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Images and states of one frame to boxes, scores and new states; see `attach`."""
        found: tuple[Tensor, ...] = attach(self, ())(*inputs)
        return found


def _token_centers(config: Detector3DConfig) -> Tensor:
    """Column and row of the middle of every token of an image, pixels, [N, 2]."""
    rows, columns = (torch.arange(count) * config.patch_size + config.patch_size / 2 for count in config.grid)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2).float()


def _grid_positions(config: Detector3DConfig) -> Tensor:
    """Sines and cosines of row and column of the tokens of an image, [1, rows, columns, C]."""
    rows, columns = config.grid
    place = torch.stack(torch.meshgrid(torch.arange(rows) / 4, torch.arange(columns) / 4, indexing="ij"), dim=-1)
    return 0.3 * sine_positions(place, config.embed_dim // 2)[None]


def _ray_depths(config: Detector3DConfig) -> Tensor:
    """Depths along a ray, denser nearby, metres, [D]."""
    steps = torch.arange(config.num_depths) / (config.num_depths - 1)
    return 1.0 + (config.range_m - 1.0) * steps * (steps + 1) / 2


def host_info(config: Detector3DConfig, name: str) -> HostInfo:
    """What compressors may know of a detector; tokens are those of one window."""
    image = config.grid[0] * config.grid[1]

    def site(layer: int) -> Site:
        whole = layer in config.global_layers
        tokens, groups = (image, 1) if whole else (config.window**2, config.windows)
        return Site(
            kind="block_routing",
            layer=layer,
            taps=frozenset({"history_queries"}) if layer in config.scored_layers else frozenset(),
            tokens=tokens,
            width=config.embed_dim,
            groups=config.num_cameras * groups,
            padding=config.num_cameras * (groups * tokens - image),
        )

    return HostInfo(
        name=name,
        sites=tuple(map(site, range(config.depth))),
        depth=config.depth,
        num_tokens=config.window**2,
        width=config.embed_dim,
        grid=config.grid,
    )


def attach(module: Detector3D, specs: Sequence[CompressorSpec], *, name: str = "the model") -> "CompressedDetector3D":
    """Put compressors into a detector.

    Raises:
        ConfigError: a compressor does not fit the model.
    """
    return CompressedDetector3D(module, specs, name=name)


def detector_graph(
    module: Detector3D,
    specs: Sequence[CompressorSpec],
    *,
    name: str,
    examples: Callable[[int], Steps] | None = None,
) -> GraphSpec:
    """The graph of a detector with compressors: one frame of a stream, with its history as states."""
    config = module.config
    views, (height, width) = config.num_cameras, config.image_size
    queries = config.num_proposals + config.num_history
    shapes = ((views, 3, height, width), (views, 4, 4), (4, 4), (1,))
    return GraphSpec(
        module=attach(module, specs, name=name),
        inputs=tuple(
            TensorSpec(name=each, shape=(BATCH_SYMBOL, *shape)) for each, shape in zip(INPUTS, shapes, strict=True)
        ),
        outputs=(
            TensorSpec(name="boxes", shape=(BATCH_SYMBOL, queries, len(BOX_COLUMNS))),
            TensorSpec(name="scores", shape=(BATCH_SYMBOL, queries, len(config.classes))),
        ),
        states=tuple(
            StateSpec(input=each, output=f"new_{each}", shape=(BATCH_SYMBOL, *shape))
            for each, shape in config.state_shapes().items()
        ),
        examples=examples,
    )


def postprocess_of(config: Detector3DConfig) -> dict[str, Any]:
    """What the outputs mean; for the manifest."""
    return {
        "kind": "detection3d",
        "boxes": "boxes",
        "scores": "scores",
        "columns": list(BOX_COLUMNS),
        "classes": list(config.classes),
        "threshold": 0.3,
    }


class CompressedDetector3D(CompressedModule):
    """A detector whose image tokens are routed around its blocks.

    Args:
        module: The detector; it is called, never changed.
        specs: At most one compressor, `toc3d`.
        name: The model's name, for messages.
    """

    def __init__(self, module: Detector3D, specs: Sequence[CompressorSpec], *, name: str = "the model") -> None:
        super().__init__()
        self.detector = module
        self.info = host_info(module.config, name)
        self.placed = place_one(specs, self.info)
        self.plan = self.placed.sites
        self.training = module.training

    def detach(self) -> nn.Module:
        """The model itself, as it was before."""
        return self.detector

    def forward(
        self,
        images: Tensor,
        img2lidar: Tensor,
        ego_pose: Tensor,
        timestamp: Tensor,
        history_query: Tensor,
        history_motion: Tensor,
        history_pose: Tensor,
        history_time: Tensor,
    ) -> tuple[Tensor, ...]:
        """Detect the objects of one frame.

        Args:
            images: RGB, 0 to 255, [B, V, 3, height, width].
            img2lidar: From (column · depth, row · depth, depth, 1) to the ego frame, [B, V, 4, 4].
            ego_pose: Ego to global, rigid, [B, 4, 4].
            timestamp: Seconds, [B, 1].
            history_query: The best queries of the frame before, [B, Q, C].
            history_motion: Their centres and velocities in the ego frame of then, [B, Q, 5].
            history_pose: Ego to global of then, [B, 4, 4]; zeros: there is no history.
            history_time: Its timestamp, [B, 1].

        Returns:
            Boxes [B, proposals + history, 10] of BOX_COLUMNS in the ego frame, scores [B, proposals + history,
            classes], and the four states for the next frame.
        """
        found = self.detect(images, img2lidar, ego_pose, timestamp, history_query, history_motion, history_pose,
                            history_time)  # fmt: skip
        return (found.boxes, found.scores, *found.states)

    def detect(
        self, images: Tensor, img2lidar: Tensor, ego_pose: Tensor, timestamp: Tensor, *states: Tensor
    ) -> Detections:
        """As `forward`, with everything that training looks at."""
        detector, config = self.detector, self.detector.config
        history = _history(ego_pose, timestamp, *states)
        encoded = detector.motion.encode(history)
        features, token_scores = self._backbone(images, encoded)
        place = detector.position(self._ray_points(img2lidar).flatten(-2)).flatten(1, 2)
        memory = features.reshape(place.shape) + place

        token_logits, places = self._tokens_say(memory, img2lidar)
        shown = self._lift(places, img2lidar)
        wanted = self._peaks(token_logits)
        with at_site("proposals"):
            chosen, _, _ = token_select(
                torch.cat([memory, shown, wanted], dim=-1), wanted.amax(dim=-1), num_kept=config.num_proposals
            )
        content, start, prior = torch.split(chosen, [config.embed_dim, 3, len(config.classes)], dim=-1)
        old, where_old = detector.motion.parts(encoded)
        moved = transform_points(history.reference, history.to_ego)
        query = torch.cat([detector.proposal(content), old], dim=1)
        reference = torch.cat([start, moved], dim=1)
        where = torch.cat([detector.motion.place(start), where_old], dim=1)
        prior = torch.cat([prior, detector.history_logits.expand_as(old[..., : len(config.classes)])], dim=1)

        absent = torch.cat([torch.zeros_like(start[..., 0]), (1 - history.exists).expand_as(moved[..., 0])], dim=1)
        velocity = torch.cat([torch.zeros_like(start[..., :2]), _turn(history.velocity, history.to_ego)], dim=1)
        apart = distances(reference.detach(), reference.detach()) + (absent * _ABSENT_M)[:, None]
        away = distances(reference.detach(), shown.detach())
        layers = []
        for block in detector.decoder:
            query = block(query, where, memory, apart, away)
            normed = detector.query_norm(query)
            logits = prior + detector.class_head(normed) - 20.0 * absent[..., None]
            layers.append((logits, _decode(detector.box_head(normed), reference, velocity)))
        logits, coded = layers[-1]
        boxes = torch.cat([coded[..., :3], coded[..., 3:6].exp(), coded[..., 6:]], dim=-1)
        with at_site("history"):
            kept, _, _ = token_select(
                torch.cat([query, coded[..., :3], coded[..., 8:]], dim=-1), logits.amax(dim=-1),
                num_kept=config.num_history,
            )  # fmt: skip
        new_query, new_motion = torch.split(kept, [config.embed_dim, 5], dim=-1)
        return Detections(
            boxes=boxes,
            scores=logits.sigmoid(),
            states=(new_query, new_motion, ego_pose, timestamp),
            layers=tuple(layers),
            token_logits=token_logits,
            token_places=places,
            token_scores=tuple(token_scores),
            references=reference,
        )

    def _tokens_say(self, memory: Tensor, img2lidar: Tensor) -> tuple[Tensor, Tensor]:
        """What tokens [B, V * N, C] show: class logits, and column, row and log-depth of the box centre.

        The head gives the row in which the box stands on the ground, z = 0 of the ego frame, and the depth follows: on
        the ground the inverse of the depth is linear in column and row, so there is no horizon to jump over. It is kept
        positive smoothly.
        """
        detector, config = self.detector, self.detector.config
        said = detector.token_head(memory)
        logits, shift, below = torch.split(said, [len(config.classes), 2, 1], dim=-1)
        pixel = detector.token_centers.repeat(config.num_cameras, 1) + shift * config.patch_size
        column, row = detector.token_centers.unbind(dim=1)
        foot = row + below.reshape(*img2lidar.shape[:2], -1) * config.patch_size
        height = img2lidar[..., 2, :]  # of a pixel's point above the ground, by its depth; last the camera's own
        across, down, ahead = (-height[..., each, None] / height[..., 3:] for each in range(3))
        inverse = (across * column + down * foot + ahead).flatten(1)[..., None]
        positive = 0.5 * (inverse + (inverse.square() + 4 / _FARTHEST_M**2).sqrt())
        return logits, torch.cat([pixel, -positive.log()], dim=-1)

    def _peaks(self, logits: Tensor) -> Tensor:
        """Class logits [B, V * N, classes], less where a token beside has a higher one, so that objects count once."""
        rows, columns = self.detector.config.grid
        image = logits.reshape(-1, rows, columns, logits.shape[-1]).permute(0, 3, 1, 2)
        highest = functional.max_pool2d(image, 3, 1, 1)
        image = image - _NOT_A_PEAK * (image < highest).to(image)
        return image.permute(0, 2, 3, 1).reshape(logits.shape)

    def _backbone(self, images: Tensor, history: EncodedHistory) -> tuple[Tensor, list[Tensor]]:
        """Features [B * V, N, C] of images [B, V, 3, height, width], and the scores before each scored layer."""
        detector, config = self.detector, self.detector.config
        rows, columns = config.grid
        x = detector.patch_embed(images.flatten(0, 1) / _PIXEL_SCALE - 1.0) + detector.pos_embed
        x = x.reshape(-1, rows * columns, config.embed_dim)
        scored_at, scores, all_scores = 0, None, []
        routes: dict[int, Route | None] = {}
        window = 0  # of x as it is laid out now: 0 for whole images
        for layer, block in enumerate(detector.blocks):
            asked = "history_queries" in self.placed.wanted(layer)
            if asked or (self.training and layer in config.scored_layers):
                x, window = self._layout(x, window, 0), 0
                scored = detector.scorers[str(layer)](x.detach(), history)
                all_scores.append(scored.reshape(images.shape[0], -1))
                if asked:
                    scored_at, scores, routes = layer, scored, {}
            wanted = 0 if layer in config.global_layers else config.window
            x, window = self._layout(x, window, wanted), wanted
            taps = Taps()
            if scores is not None:
                taps.put(scored_at, {"history_queries": self._layout(scores[..., None], 0, window, fill=-1e6)[..., 0]})
            site = f"blocks.{layer}"
            passing = self.placed(site, Tokens(x=x, route=routes.get(window)), taps)
            routes[window] = passing.route
            if passing.route is None:
                x = x + block(x)
                continue
            with at_site(site):
                x = passing.route.give_back(x, block(passing.x))
        return detector.norm(self._layout(x, window, 0)), all_scores

    def _layout(self, x: Tensor, window: int, wanted: int, *, fill: float = 0.0) -> Tensor:
        """Tokens laid out in windows of side `window` (0: whole images), in windows of side `wanted`."""
        rows, columns = self.detector.config.grid
        if window == wanted and (not window or (rows % window, columns % window) == (0, 0)):
            return x  # padding starts as zeros in every block
        if window:
            x = from_windows(x, window, rows, columns).reshape(-1, rows * columns, x.shape[2])
        return to_windows(x.reshape(-1, rows, columns, x.shape[2]), wanted, fill=fill) if wanted else x

    def _ray_points(self, img2lidar: Tensor) -> Tensor:
        """Points along the ray of every token, shares of the space, [B, V, N, D, 3]."""
        detector = self.detector
        pixel = torch.cat([detector.token_centers, torch.ones_like(detector.token_centers[:, :1])], dim=1)
        ray = pixel @ img2lidar[..., :3, :3].transpose(-2, -1)
        points = ray[..., None, :] * detector.depths[:, None] + img2lidar[..., None, None, :3, 3]
        return detector.motion.normalize(points)

    def _lift(self, places: Tensor, img2lidar: Tensor) -> Tensor:
        """Points [B, V * N, 3] of pixels and log-depths [B, V * N, 3]."""
        batch, views = img2lidar.shape[:2]
        depth = places[..., 2:].clamp(-1.0, 5.0).exp()
        pixel = torch.cat([places[..., :2] * depth, depth], dim=-1).reshape(batch, views, -1, 3)
        points = pixel @ img2lidar[..., :3, :3].transpose(-2, -1) + img2lidar[..., None, :3, 3]
        return points.reshape(batch, -1, 3)


def _history(ego_pose: Tensor, timestamp: Tensor, query: Tensor, motion: Tensor, pose: Tensor, time: Tensor) -> History:
    """The queries of the frame before, moved by their velocities; their frame is the ego frame of then."""
    exists = pose[:, 3, 3:]
    age = (timestamp - time).clamp(0.0, LONGEST_AGE_S) * exists
    turn = ego_pose[:, :3, :3].transpose(1, 2)
    here = torch.eye(3, dtype=pose.dtype, device=pose.device) * (
        1 - exists[..., None]
    )  # with no history the frames are the same
    rotation = turn @ pose[:, :3, :3] + here
    shift = turn @ (pose[:, :3, 3:] - ego_pose[:, :3, 3:]) * exists[..., None]
    last = pose.new_tensor([[[0.0, 0.0, 0.0, 1.0]]]).expand(pose.shape[0], -1, -1)
    to_ego = torch.cat([torch.cat([rotation, shift], dim=2), last], dim=1)
    ages = age[:, None].expand(-1, query.shape[1], -1)
    velocity = motion[..., 3:]
    travelled = torch.cat([velocity * ages, torch.zeros_like(ages)], dim=-1)
    return History(
        query=query,
        reference=motion[..., :3] + travelled,
        velocity=velocity,
        age=ages,
        pose=to_ego[:, None].expand(-1, query.shape[1], -1, -1),
        to_ego=to_ego,
        exists=exists,
    )


def _turn(vectors: Tensor, pose: Tensor) -> Tensor:
    """Vectors [B, Q, 2] by the rotation of poses [B, 4, 4]."""
    return vectors @ pose[:, :2, :2].transpose(1, 2)


def _decode(raw: Tensor, reference: Tensor, velocity: Tensor) -> Tensor:
    """The box head's numbers to centre, log-size, sine and cosine of yaw, velocity: [B, Q, 10]."""
    size = torch.tensor(_MEAN_SIZE, device=raw.device).log().to(raw.dtype)
    return torch.cat([reference + raw[..., :3], size + raw[..., 3:6], raw[..., 6:8], velocity + raw[..., 8:]], dim=-1)
