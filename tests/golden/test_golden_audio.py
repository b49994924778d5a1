"""FastAST's merging, LLaMA-Omni's stacking and WavTokenizer's inverse STFT against outputs of the papers' own code.

FastAST (abhishekmaroon5/Faster_Audio_Transformers 0942a25), LLaMA-Omni (ictnlp/LLaMA-Omni c63fd72), WavTokenizer
(jishengpeng/WavTokenizer 5cf440d).
"""

import pytest
import torch
from safetensors.torch import save

from tests.golden.golden_data import assert_close, cases_on_disk, read
from trt_compress.methods import ArtifactFile
from trt_compress.methods.audio import FastAstConfig, FrameStackConfig
from trt_compress.models.compressors.fastast import FastAst
from trt_compress.models.compressors.frame_stack import FrameStack
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Site, SiteKind, leading_spans
from trt_compress.models.hosts.spectral import InverseStft
from trt_compress.plugins.operator import recording

CASES = {
    "fastast": ("cls_distill", "cls_only_odd", "ties"),
    "llamaomni": ("k3", "k5_exact", "k5_ragged"),
    "wavtokenizer_istft": ("istft_complex", "istft_head", "istft_head_hop_quarter", "istft_one_frame"),
}
TOLERANCE = 1e-6  # of the largest value: the same few sums in float32, in another order


def test_every_case_is_compared() -> None:
    for method, cases in CASES.items():
        assert cases_on_disk(method) == set(cases)


def arrival(kind: SiteKind, num_tokens: int, *, num_prefix: int = 0, width: int | None = None) -> Arrival:
    site = Site(kind=kind, layer=0 if kind == "after_attention" else None)
    spans = leading_spans([("class", num_prefix)])
    host = HostInfo(name="golden", sites=(site,), depth=12, num_tokens=num_tokens, protected=spans, width=width)
    return Arrival(
        host=host, site=site, tokens=num_tokens, prefix=num_prefix, has_class_token=num_prefix > 0, width=width
    )


@pytest.mark.parametrize("case", CASES["fastast"])
def test_fastast(case: str) -> None:
    arrays, meta = read("fastast", case)
    x, size = arrays["x"], arrays["size"]
    prefix = meta["class_token"] + meta["distill_token"]
    step = FastAst(FastAstConfig(num_merged=meta["r"]), arrival("after_attention", x.shape[1], num_prefix=prefix))
    with recording() as record:
        state = step(Tokens(x=x, size=size), Taps(keys=arrays["metric"]))
    assert state.size is not None
    assert step.tokens_out == state.x.shape[1] == arrays["merged"].shape[1]
    dest = record["/token_merge/dest"] if "/token_merge/dest" in record else record["/TokenMerge/dest"]
    found = torch.nn.functional.one_hot(dest, state.x.shape[1]).transpose(1, 2)
    if case == "ties":  # which of equal tokens merge is left open there: sizes and sums agree
        assert torch.equal(state.size.sum(dim=1), arrays["merged_size"].sum(dim=1))
        total, wanted = (state.x * state.size).sum(dim=1), (arrays["merged"] * arrays["merged_size"]).sum(dim=1)
        assert_close(total, wanted, TOLERANCE * 10)
        return
    assert torch.equal(found, arrays["source"].long())
    assert_close(state.x, arrays["merged"], TOLERANCE)
    assert_close(state.size, arrays["merged_size"], TOLERANCE)


@pytest.mark.parametrize("case", CASES["llamaomni"])
@pytest.mark.parametrize("prefix", ["model.speech_projector.", ""])
def test_llamaomni(case: str, prefix: str) -> None:
    arrays, meta = read("llamaomni", case)
    names = {"w1": "linear1.weight", "b1": "linear1.bias", "w2": "linear2.weight", "b2": "linear2.bias"}
    published = {f"{prefix}{name}": arrays[array] for array, name in names.items()}
    tensors = FrameStack.adopt(published, FrameStackConfig(stride=meta["k"]))
    x = arrays["x"]
    config = FrameStackConfig(stride=meta["k"], projector=ArtifactFile("projector", save(dict(tensors))))
    step = FrameStack(config, arrival("encoder_output", x.shape[1], width=x.shape[2]))
    with torch.no_grad():
        state = step(Tokens(x=x), Taps())
    assert (step.tokens_out, step.width_out) == tuple(arrays["y"].shape[1:])
    assert_close(state.x, arrays["y"], TOLERANCE)


def test_inverse_stft_alone() -> None:
    arrays, meta = read("wavtokenizer_istft", "istft_complex")
    same = InverseStft(n_fft=meta["n_fft"], hop=meta["hop"])(arrays["real"], arrays["imag"])
    assert_close(same, arrays["audio_same"], TOLERANCE)
    center = InverseStft(n_fft=meta["n_fft"], hop=meta["hop"], padding="center")
    assert_close(center(arrays["real_center"], arrays["imag_center"]), arrays["audio_center"], TOLERANCE)
