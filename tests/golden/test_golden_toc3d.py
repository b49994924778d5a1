"""ToC3D's own code (DYZhang09/ToC3D 32ae961) against our scorer, routes and windows.

The attention block around the route (EVA-02's: rotary positions, SwiGLU) is written here from its formulas.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.golden.golden_data import MODEL_TOLERANCE, OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from trt_compress.models.compressors.motion_queries import History, MotionQueryScorer
from trt_compress.models.compressors.toc3d import make_route, num_slow
from trt_compress.models.layers.partial import Route
from trt_compress.models.layers.windows import from_windows, to_windows

BLOCKS = ("block", "block_norep", "block_padded")
SELECTORS = ("selector_first_frame", "selector_prev")
RENAMED = {  # our name → theirs, where they differ
    "input_proj.": "input_proj.0.",
    "aggregate.": "aggregate.0.",
    "motion.pc_range": "pc_range",
    "motion.query_embedding.": "query_embedding.",
    "motion.ego_pose_pe.": "ego_pose_pe.",
    "motion.ego_pose_queries.": "ego_pose_queries.",
    "motion.time_embedding.": "time_embedding.",
}


def test_every_case_is_compared() -> None:
    assert cases_on_disk("toc3d") == {*BLOCKS, *SELECTORS}


# ---- the routed block -----------------------------------------------------------------------------------------------


def rotate(x: Tensor, positions: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Rotary positions of x [R, heads, M, D] by the entries `positions` [R, M] of the tables."""
    cos, sin = (weights[f"attn.rope.freqs_{name}"][positions][:, None] for name in ("cos", "sin"))
    even, odd = x[..., 0::2], x[..., 1::2]
    return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


def eva_update(x: Tensor, positions: Tensor, weights: dict[str, Tensor], heads: int, eps: float) -> Tensor:
    """What a block of EVA-02 adds to tokens [R, M, C]."""
    w = weights
    width = x.shape[2:]
    normed = functional.layer_norm(x, width, w["norm1.weight"], w["norm1.bias"], eps)
    q = functional.linear(normed, w["attn.q_proj.weight"], w["attn.q_bias"])
    k = functional.linear(normed, w["attn.k_proj.weight"])
    v = functional.linear(normed, w["attn.v_proj.weight"], w["attn.v_bias"])
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    q, k = rotate(q, positions, w), rotate(k, positions, w)
    mixed = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
    attended = functional.linear(mixed.transpose(1, 2).flatten(2), w["attn.proj.weight"], w["attn.proj.bias"])
    normed = functional.layer_norm(x + attended, width, w["norm2.weight"], w["norm2.bias"], eps)
    gate = functional.silu(functional.linear(normed, w["mlp.w1.weight"], w["mlp.w1.bias"]))
    hidden = gate * functional.linear(normed, w["mlp.w2.weight"], w["mlp.w2.bias"])
    hidden = functional.layer_norm(hidden, hidden.shape[2:], w["mlp.ffn_ln.weight"], w["mlp.ffn_ln.bias"], eps)
    return attended + functional.linear(hidden, w["mlp.w3.weight"], w["mlp.w3.bias"])


def positions_of(route: Route) -> Tensor:
    """Rotary entries: the chosen tokens' own, and for the representative the entry after as many as were chosen."""
    if route.weight is None:
        return route.index
    last = torch.full_like(route.index[:, :1], route.index.shape[1])
    return torch.cat([route.index, last], dim=1)


def weights_of(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("w."): value for name, value in arrays.items() if name.startswith("w.")}


@pytest.mark.parametrize("case", BLOCKS)
def test_routed_block(case: str) -> None:
    arrays, meta = read("toc3d", case)
    weights, window = weights_of(arrays), meta["window"]
    assert num_slow(window * window, meta["ratio"]) == meta["slow_per_window"]
    x = to_windows(arrays["x"], window)
    scores = to_windows(arrays["scores"][..., None], window, fill=-1e6)[..., 0]
    route = make_route(scores, meta["ratio"], representative=meta["use_represent_tokens"])
    tokens = route.take(x)
    assert tokens.shape[1] == meta["slow_per_window"] + meta["use_represent_tokens"]
    update = eva_update(tokens, positions_of(route), weights, meta["heads"], meta["layernorm_eps"])
    out = from_windows(route.give_back(x, update), window, meta["H"], meta["W"])
    assert_close(out, arrays["out"], MODEL_TOLERANCE)


# ---- the scorer -----------------------------------------------------------------------------------------------------


def scorer_of(arrays: dict[str, Tensor], meta: dict[str, Any]) -> MotionQueryScorer:
    scorer = MotionQueryScorer(meta["embed_dim"], meta["query_dim"], meta["num_queries"], meta["pc_range"])
    theirs, state = weights_of(arrays), {}
    for name in scorer.state_dict():
        prefix = next((ours for ours in RENAMED if name.startswith(ours)), "")
        state[name] = theirs.pop(RENAMED.get(prefix, "") + name.removeprefix(prefix))
    assert not theirs
    scorer.load_state_dict(state)
    return scorer.eval()


def history_of(arrays: dict[str, Tensor], meta: dict[str, Any]) -> History:
    return History(
        query=arrays["temp_queries"],
        reference=arrays["temp_ref_points"],
        velocity=arrays["temp_vel"],
        age=arrays["temp_timestamp"],
        pose=arrays["temp_ego_pose"],
        to_ego=arrays["ego_pose_inv"],
        exists=torch.full((meta["B"], 1), float(meta["prev_exists"])),
    )


@torch.no_grad()
@pytest.mark.parametrize("case", SELECTORS)
def test_scores_and_choice(case: str) -> None:
    arrays, meta = read("toc3d", case)
    scorer = scorer_of(arrays, meta)
    history = scorer.motion.encode(history_of(arrays, meta))
    if "motion_aware_queries" in arrays:
        assert_close(scorer.motion(history), arrays["motion_aware_queries"], MODEL_TOLERANCE)
    scores = scorer(arrays["x"].flatten(1, 2), history)
    assert_close(scores, arrays["score"].flatten(1), OPERATOR_TOLERANCE)
    route = make_route(scores, meta["ratio"], representative=True)
    kept = meta["H"] * meta["W"] - arrays["drop_idx"].shape[1]
    assert num_slow(meta["H"] * meta["W"], meta["ratio"]) == kept
    assert torch.equal(route.index, arrays["keep_idx"])
    assert route.weight is not None
    assert_close(scores.gather(1, route.index), arrays["keep_score"], OPERATOR_TOLERANCE)
    passed = torch.zeros_like(scores).scatter(1, route.index, 1.0)
    assert torch.equal(passed, arrays["mask"].flatten(1))
    expected = torch.zeros_like(scores).scatter(1, arrays["drop_idx"], arrays["drop_score"])
    assert_close(route.weight[:, 0], expected / expected.sum(dim=1, keepdim=True), OPERATOR_TOLERANCE)
    assert torch.equal(route.dest == kept, passed == 0)
