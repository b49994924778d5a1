"""FastAST: token merging in every layer of an audio spectrogram transformer."""

from dataclasses import dataclass

import torch

from trt_compress.errors import ConfigError
from trt_compress.models.compressors.base import Compressor, CompressorConfig, HostInfo, Signals, TokenState
from trt_compress.plugins.token_merge.op import max_merged, token_merge


@dataclass(frozen=True, slots=True, kw_only=True)
class FastAstConfig(CompressorConfig):
    """Options of FastAST.

    Attributes:
        num_merged: Tokens merged in every layer; where half of the tokens are fewer, half.
        proportional_attention: Attention weighs a merged token by the tokens in it; off in the paper's code.
    """

    num_merged: int = 16
    proportional_attention: bool = False

    def __post_init__(self) -> None:
        if self.num_merged < 0:
            raise ConfigError(f"fastast: num_merged={self.num_merged} is negative; give 0 or more tokens to merge.")


class FastAst(Compressor):
    """Merge the most similar tokens after the attention of every layer, up to half of them."""

    name = "fastast"
    summary = "merges the most similar patches of every layer of a spectrogram transformer (FastAST)"
    source = (
        "FastAST, arXiv:2406.07676; code abhishekmaroon5/Faster_Audio_Transformers 0942a25, tome/merge.py and "
        "tome/patch/timm.py"
    )
    differs = "ties go to the smaller index; the knowledge distillation of the paper is training and not part of it."
    signals = frozenset({"keys"})
    Config = FastAstConfig

    @classmethod
    def layers(cls, config: FastAstConfig, host: HostInfo) -> tuple[int, ...]:
        """Every layer, if anything merges."""
        return tuple(range(host.depth)) if config.num_merged else ()

    def __init__(self, config: FastAstConfig, host: HostInfo, layer: int, tokens_in: int) -> None:
        super().__init__(config, host, layer, tokens_in)
        self.config = config
        self.num_protected = host.num_prefix
        self.num_merged = min(config.num_merged, max_merged(tokens_in, host.num_prefix))
        self.tokens_out = tokens_in - self.num_merged
        # Without a class token the code leaves unmerged tokens in order of similarity.
        self.order = "position" if host.has_class_token else "similarity"

    @property
    def proportional_attention(self) -> bool:
        """Whether attention after this site weighs keys by size."""
        return self.config.proportional_attention

    def forward(self, state: TokenState, signals: Signals) -> TokenState:
        """Merge tokens; keys are the similarity feature."""
        assert signals.keys is not None
        size = torch.ones_like(state.x[..., :1], dtype=torch.float32) if state.size is None else state.size
        x, size, _ = token_merge(
            state.x, signals.keys, size, num_merged=self.num_merged, num_protected=self.num_protected, order=self.order
        )
        return TokenState(x=x, size=size)
