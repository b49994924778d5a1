"""Object queries of the last frame, made aware of motion, as ToC3D and StreamPETR make them.

Source: ToC3D, arXiv:2409.00633, code DYZhang09/ToC3D 32ae961, backbones/toc3d_utils.py; StreamPETR, arXiv:2303.11926,
its motion-aware layer normalisation; sine and cosine positions of DETR, arXiv:2005.12872, and NeRF, arXiv:2003.08934.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

MOTION_CHANNELS = 180  # sines and cosines of six octaves of velocity (2), age (1) and the pose's upper rows (12)
_OCTAVES = 6
_TEMPERATURE = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is left of the frame before: its best object queries. Q queries, E their width.

    Attributes:
        query: Content, [B, Q, E].
        reference: Centres in the frame `to_ego` starts from, metres, [B, Q, 3].
        velocity: Velocities, metres a second, [B, Q, 2].
        age: Seconds since then, [B, Q, 1].
        pose: Pose of the vehicle then, as the method conditions on it, [B, Q, 4, 4].
        to_ego: From the frame of `reference` to the present ego frame, [B, 4, 4].
        exists: 1 if there is a history, else 0, [B, 1].
    """

    query: Tensor
    reference: Tensor
    velocity: Tensor
    age: Tensor
    pose: Tensor
    to_ego: Tensor
    exists: Tensor


class EncodedHistory(NamedTuple):
    """A history as sines and cosines, which several modules share.

    Attributes:
        query: Content, [B, Q, E].
        motion: Velocity, age and pose, [B, Q, 180].
        place: Where the queries are now, [B, Q, 3 E / 2].
        age: Seconds since then, [B, Q, E].
        exists: 1 if there is a history, else 0, [B, 1].
    """

    query: Tensor
    motion: Tensor
    place: Tensor
    age: Tensor
    exists: Tensor


def transform_points(points: Tensor, pose: Tensor) -> Tensor:
    """Points [B, Q, 3] by rigid transforms [B, 4, 4]."""
    return points @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]


def sine_positions(values: Tensor, channels: int) -> Tensor:
    """Sines and cosines of values […, A] over a period of 1 at most, `channels` for each of them: […, A * channels].

    The channels of one value alternate: sine and cosine of one frequency, then those of the next lower one.
    """
    steps = torch.arange(channels // 2, dtype=torch.float32, device=values.device)
    frequencies = 2 * math.pi / _TEMPERATURE ** (2 * steps / channels)
    angles = values[..., None] * frequencies.to(values)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


def point_positions(points: Tensor, channels: int) -> Tensor:
    """Positions of points [B, Q, 3] in the order y, x, z: [B, Q, 3 * channels]."""
    return sine_positions(points[..., (1, 0, 2)], channels)


def motion_code(velocity: Tensor, age: Tensor, pose: Tensor) -> Tensor:
    """Sines and cosines of the motion, octave by octave: [B, Q, 180]."""
    motion = torch.cat([velocity, age, pose[..., :3, :].flatten(-2)], dim=-1)
    waves = [wave(motion * 2.0**octave) for octave in range(_OCTAVES) for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=-1)


class MotionLayerNorm(nn.Module):
    """Layer normalisation whose scale and shift come from the motion.

    Args:
        channels: Width of what is normalised.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(MOTION_CHANNELS, channels), nn.ReLU())
        self.gamma = nn.Linear(channels, channels)
        self.beta = nn.Linear(channels, channels)
        nn.init.zeros_(self.gamma.weight)
        nn.init.ones_(self.gamma.bias)
        nn.init.zeros_(self.beta.weight)
        nn.init.zeros_(self.beta.bias)

    def forward(self, x: Tensor, motion: Tensor) -> Tensor:
        """Normalise x [B, Q, channels] by motion [B, Q, 180]."""
        condition = self.reduce(motion)
        normed = functional.layer_norm(x, x.shape[-1:])
        out: Tensor = self.gamma(condition) * normed + self.beta(condition)
        return out


class MotionAwareQueries(nn.Module):
    """Queries of the last frame, with place and motion as seen from here.

    Args:
        channels: Width E of the queries, even.
        point_range: Least x, y, z and largest x, y, z of the space, metres.
    """

    def __init__(self, channels: int, point_range: Sequence[float]) -> None:
        super().__init__()
        self.channels = channels
        self.pc_range = nn.Parameter(torch.tensor(point_range, dtype=torch.float32), requires_grad=False)
        self.query_embedding = nn.Sequential(
            nn.Linear(channels * 3 // 2, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.ego_pose_pe = MotionLayerNorm(channels)
        self.ego_pose_queries = MotionLayerNorm(channels)
        self.time_embedding = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))

    def normalize(self, points: Tensor) -> Tensor:
        """Points in metres as shares of the space: 0 to 1 inside it."""
        return (points - self.pc_range[:3]) / (self.pc_range[3:] - self.pc_range[:3])

    def place(self, points: Tensor) -> Tensor:
        """Embedding of points [B, Q, 3] of the present ego frame: [B, Q, E]."""
        embedding: Tensor = self.query_embedding(point_positions(self.normalize(points), self.channels // 2))
        return embedding

    def encode(self, history: History) -> EncodedHistory:
        """What every module of these channels and this space takes of a history."""
        here = self.normalize(transform_points(history.reference, history.to_ego))
        return EncodedHistory(
            query=history.query,
            motion=motion_code(history.velocity, history.age, history.pose),
            place=point_positions(here, self.channels // 2),
            age=sine_positions(history.age, self.channels),
            exists=history.exists,
        )

    def parts(self, history: EncodedHistory) -> tuple[Tensor, Tensor]:
        """The moved queries' content and the embedding of where they are now, [B, Q, E] each."""
        where = self.ego_pose_pe(self.query_embedding(history.place), history.motion) + self.time_embedding(history.age)
        return self.ego_pose_queries(history.query, history.motion), where

    def forward(self, history: EncodedHistory) -> Tensor:
        """Motion-aware queries, [B, Q, E]."""
        content, where = self.parts(history)
        return content + where


class MotionQueryScorer(nn.Module):
    """How much each image token is needed: by the last frame's queries, or by itself in the first frame.

    Args:
        tokens: Width C of the tokens.
        queries: Width E of the queries.
        num_queries: Queries Q of the last frame.
        point_range: Least x, y, z and largest x, y, z of the space, metres.
    """

    def __init__(self, tokens: int, queries: int, num_queries: int, point_range: Sequence[float]) -> None:
        super().__init__()
        self.motion = MotionAwareQueries(queries, point_range)
        self.in_conv = nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, tokens), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(tokens, tokens // 2),
            nn.GELU(),
            nn.Linear(tokens // 2, tokens // 4),
            nn.GELU(),
            nn.Linear(tokens // 4, 2),
        )
        self.input_proj = nn.Linear(tokens, queries)
        self.aggregate = nn.Linear(num_queries, 2)

    def forward(self, x: Tensor, history: EncodedHistory) -> Tensor:
        """Log-probabilities [B * V, N] of being needed, for tokens [B * V, N, C] of V images for each item."""
        batch = history.query.shape[0]
        by_queries = self.by_queries(x.reshape(batch, -1, x.shape[2]), self.motion(history))
        logits = torch.where(history.exists[..., None] > 0, by_queries, self.by_tokens(x).reshape(by_queries.shape))
        return logits.log_softmax(dim=-1)[..., 0].reshape(x.shape[:2])

    def by_queries(self, x: Tensor, queries: Tensor) -> Tensor:
        """Two logits for each token of x [B, N, C].

        The products of projected tokens and queries are aggregated by a linear layer with nothing in between, so all of
        it is one matrix [C, 2] for each item, and the tokens are multiplied once.
        """
        aggregate = self.aggregate.weight / self.input_proj.out_features**0.5
        mixed = aggregate @ queries
        weight = mixed @ self.input_proj.weight
        bias = (mixed * self.input_proj.bias).sum(dim=-1) + self.aggregate.bias
        logits: Tensor = x @ weight.transpose(1, 2) + bias[:, None]
        return logits

    def by_tokens(self, x: Tensor) -> Tensor:
        """Two logits for each token of x [R, N, C]; half of the channels are averaged over the image."""
        local, whole = self.in_conv(x).chunk(2, dim=-1)
        logits: Tensor = self.out_conv(torch.cat([local, whole.mean(dim=1, keepdim=True).expand_as(local)], dim=-1))
        return logits
