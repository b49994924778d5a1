"""Codes of the papers' own quantizers against codebook_encode and codebook_decode.

WavTokenizer (jishengpeng/WavTokenizer 5cf440d), XY-Tokenizer (gyt1145028706/XY-Tokenizer 5df5609), One-D-Piece
(turingmotors/One-D-Piece 473665d), KVQuant (SqueezeAILab/KVQuant 57a2383), FlexTok (apple/ml-flextok 87d00cc), WeTok
(zhuangshaobin/WeTok caa2ad7) and the k-means step of VQToken (Hai-chao-Zhang/VQToken 019f89f).
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, one_hot

from tests.golden.golden_data import FORMS, OPERATOR_TOLERANCE, assert_close, call, cases_on_disk, read
from trt_compress.plugins.codebook_encode.op import KINDS, fsq_codebook, sign_codebook, table_codebook

CASES = {
    "wavtokenizer": ("vq", "vq_ties"),
    "xytokenizer": ("rvq", "rvq_no_projection"),
    "one_d_piece": ("l2", "no_l2", "duplicates"),
    "kvquant": ("nuq_2bit", "nuq_3bit", "nuq_4bit", "const_ties"),
    "flextok_fsq": ("extremes", "levels_888555", "levels_odd", "levels_small", "zeros_and_half"),
    "wetok_gq": ("groups4_bits8", "groups8_bits8", "groups_small", "zeros"),
    "vqtoken": ("kmeans_separated", "kmeans_overlap", "kmeans_empty"),
}
ELSEWHERE = {"kvquant": {"calibration", "outlier_cap"}}  # tests/models/cache/test_kvquant.py
each_form = pytest.mark.parametrize("form", FORMS)


def each_case(method: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", CASES[method])


def test_every_case_is_compared() -> None:
    for method, cases in CASES.items():
        assert cases_on_disk(method) == set(cases) | ELSEWHERE.get(method, set())


def encode(form: str, x: Tensor, codebook: Tensor, kind: str = "vector", group: int = 1) -> Tensor:
    return call(form, "TrtcCodebookEncode", {"kind": KINDS.index(kind), "group": group}, x, codebook)[0]


def decode(form: str, code: Tensor, codebook: Tensor, kind: str = "vector", group: int = 1) -> Tensor:
    return call(form, "TrtcCodebookDecode", {"kind": KINDS.index(kind), "group": group}, code, codebook)[0]


@each_form
@each_case("wavtokenizer")
def test_wavtokenizer(case: str, form: str) -> None:
    arrays, _ = read("wavtokenizer", case)
    x, codebook = arrays["x"].transpose(1, 2).contiguous(), arrays["codebook"][None]
    code = encode(form, x, codebook)
    wanted = arrays["codes"].permute(1, 2, 0)
    if case == "vq":
        assert torch.equal(code, wanted)
    else:  # two copies of a code are equally near, but matrix products may round them differently
        assert torch.equal(codebook[0][code], codebook[0][wanted])
    assert torch.equal(decode(form, wanted.contiguous(), codebook), arrays["decoded"].transpose(1, 2))


@each_form
@each_case("xytokenizer")
@pytest.mark.parametrize("stages", [2, 0], ids=["two_stages", "all_stages"])
def test_xytokenizer(case: str, stages: int, form: str) -> None:
    arrays, _ = read("xytokenizer", case)
    codebooks = arrays["codebooks"][: stages or None].contiguous()
    z, suffix = arrays["z"].transpose(1, 2), "_2stages" if stages else ""
    if case == "rvq":
        z = linear(z, arrays["input_proj_weight"][..., 0], arrays["input_proj_bias"])
    code = encode(form, z.contiguous(), codebooks)
    summed = decode(form, code, codebooks)
    if case == "rvq":
        summed = linear(summed, arrays["output_proj_weight"][..., 0], arrays["output_proj_bias"])
    for item, length in enumerate(arrays["lengths"].tolist()):  # behind it the original searches for zeros
        assert torch.equal(code[item, :length], arrays[f"codes{suffix}"][:, item, :length].T)
        assert_close(summed[item, :length], arrays[f"quantized{suffix}"][item, :, :length].T, OPERATOR_TOLERANCE)


@each_form
@each_case("one_d_piece")
def test_one_d_piece(case: str, form: str) -> None:
    arrays, meta = read("one_d_piece", case)
    z, codebook = arrays["z"][:, :, 0].transpose(1, 2).contiguous(), arrays["codebook"]
    if meta["use_l2_norm"]:
        z, codebook = normalize(z, dim=-1), normalize(codebook, dim=-1)
    code, wanted = encode(form, z, codebook[None]), arrays["indices"][:, 0, :, None]
    if case == "duplicates":
        assert torch.equal(codebook[code], codebook[wanted])
    else:
        assert torch.equal(code, wanted)
    assert_close(decode(form, code, codebook[None]).flatten(0, 1), arrays["entries"], OPERATOR_TOLERANCE)


@each_form
@pytest.mark.parametrize("part", ["k", "v"])
@each_case("kvquant")
def test_kvquant(case: str, part: str, form: str) -> None:
    """Keys are scaled to -1..1 for each channel, values for each token; halfway goes to the lower level."""
    arrays, _ = read("kvquant", case)
    x, axis = (arrays["key"], 0) if part == "k" else (arrays["value"], 1)
    largest, smallest = x.amax(dim=axis, keepdim=True), x.amin(dim=axis, keepdim=True)
    offset, reach = (largest + smallest) / 2, (largest - smallest) / 2
    scaled = torch.where(reach > 0, (x - offset) / reach, 0)[None]
    table = table_codebook(arrays["signposts"].flatten(), x.shape[1])
    code = encode(form, scaled, table, "table")
    found = decode(form, code, table, "table")[0] * reach + offset
    assert_close(found, arrays[f"{part}_dense"], 1e-6)


@each_form
@each_case("flextok_fsq")
def test_flextok(case: str, form: str) -> None:
    arrays, meta = read("flextok_fsq", case)
    rows, codebook = (-1, 1), fsq_codebook(meta["levels"])
    z, tokens = arrays["z"].reshape(*rows, len(meta["levels"])), arrays["tokens"].reshape(*rows, 1)
    assert torch.equal(encode(form, z, codebook, "fsq"), tokens)
    values = decode(form, tokens, codebook, "fsq")
    assert torch.equal(values, arrays["quant"].reshape(values.shape))
    assert torch.equal(values, arrays["embedding_of_tokens"].reshape(values.shape))


@each_form
@each_case("wetok_gq")
def test_wetok(case: str, form: str) -> None:
    arrays, meta = read("wetok_gq", case)
    z = arrays["z"].flatten(2).transpose(1, 2).contiguous()
    codebook, bits = sign_codebook(z.shape[2]), meta["bits_per_group"]
    code = encode(form, z, codebook, "sign", bits)
    assert torch.equal(code, arrays["indices_map"].flatten(1, 2))
    signs = decode(form, code, codebook, "sign", bits)
    assert torch.equal(signs, arrays["decoded"].flatten(1, 2))
    assert_close(signs, arrays["quantized"].flatten(2).transpose(1, 2), 1e-6)


@each_form
@each_case("vqtoken")
def test_one_step_of_vqtoken_s_k_means(case: str, form: str) -> None:
    """The nearest centroid, and the mean of those that chose it as a product with a matrix."""
    arrays, _ = read("vqtoken", case)
    x, start = arrays["normalised"][None], arrays["init_centroids"]
    labels = encode(form, x, normalize(start, dim=1)[None])[0, :, 0]
    if case == "kmeans_empty":  # some centroids are there twice; which copy is nearer is rounding
        assert torch.equal(start[labels], start[arrays["labels_after_1"]])
    else:
        assert torch.equal(labels, arrays["labels_after_1"])
    chosen = one_hot(arrays["labels_after_1"], len(start)).T.float()
    number = chosen.sum(dim=1, keepdim=True)
    (means,) = call(form, "TrtcTokenMix", {"normalize": 0}, x, (chosen / number.clamp_min(1))[None])
    assert_close(torch.where(number > 0, means[0], start), arrays["centroids_after_1"], OPERATOR_TOLERANCE)
