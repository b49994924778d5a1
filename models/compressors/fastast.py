"""FastAST: token merging in every layer of an audio spectrogram transformer."""

import torch

from trt_compress.methods.audio import FASTAST, FastAstConfig
from trt_compress.models.compressors.base import Compressor, HostInfo, Signals, TokenState
from trt_compress.plugins.token_merge.op import max_merged, token_merge


class FastAst(Compressor):
    """Merge the most similar tokens after the attention of every layer, up to half of them."""

    method = FASTAST
    signals = frozenset({"keys"})

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
