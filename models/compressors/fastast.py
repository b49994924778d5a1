"""FastAST: token merging in every layer of an audio spectrogram transformer."""

from trt_compress.methods.audio import FASTAST, FastAstConfig
from trt_compress.models.compressors.base import Compressor, after_attention
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.models.compressors.tome import merged
from trt_compress.plugins.token_merge.op import max_merged


class FastAst(Compressor):
    """Merge the most similar tokens after the attention of every layer, up to half of them."""

    method = FASTAST
    asks = frozenset({"keys"})
    positions = "averaged"
    takes_padding = True

    @classmethod
    def placements(cls, config: FastAstConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Every layer, if anything merges."""
        return after_attention(range(host.depth) if config.num_merged else ())

    def __init__(self, config: FastAstConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.config = config
        self.num_protected = arrival.prefix
        self.num_merged = min(config.num_merged, max_merged(arrival.tokens, arrival.prefix))
        self.tokens_out = arrival.tokens - self.num_merged
        # Without a class token the code leaves unmerged tokens in order of similarity.
        self.order = "position" if arrival.has_class_token else "similarity"

    @property
    def proportional_attention(self) -> bool:
        """Whether attention after this site weighs keys by size."""
        return self.config.proportional_attention

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Merge tokens; keys are the similarity feature."""
        return merged(
            tokens, taps["keys"], num_merged=self.num_merged, num_protected=self.num_protected, order=self.order
        )
