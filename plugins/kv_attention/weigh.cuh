// How a warp of KVAttention's kernels turns products into weights, and leaves its sums.
#pragma once

#include "kv_attention/walk.cuh"

namespace trtc::kv_attention::gpu
{

template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, bool kFLOATS, bool kINDEXED, bool kSIDES>
__device__ void Walk<kROWS, kLANES, kRUNS, kFLOATS, kINDEXED, kSIDES>::weigh(int32_t start)
{
    float products[S::kMINE];
    float* const weights = mShared.weights[mWarp] + mLane * S::kMINE;
    float now[S::kMY_ROWS];
#pragma unroll
    for (int32_t i = 0; i < S::kMY_ROWS; ++i)
    {
        now[i] = mHighest[i];
    }
#pragma unroll
    for (int32_t i = 0; i < S::kMINE; ++i)
    {
        int32_t const row = rowOf(i);
        int32_t const place = (mLane * S::kMINE + i) / kROWS;
        int32_t const slot = kINDEXED ? mShared.chosen[mWarp][kINDEXED ? place : 0] : start + place;
        bool const isThere = isSeen(row, slot);
        int64_t const at = mShared.bias[row] + slot * mProblem.biasSteps.slot;
        float const bias = isThere ? loadFloat(mProblem.bias, mProblem.biasType, at) : 0.0F;
        float product = weights[i] * mProblem.scale;
        if (mProblem.softcap > 0.0F)
        {
            product = tanhf(product / mProblem.softcap) * mProblem.softcap;
        }
        products[i] = isThere ? product + bias : -INFINITY;
        now[i % S::kMY_ROWS] = fmaxf(now[i % S::kMY_ROWS], products[i]);
    }
    bool isLarger = false;
#pragma unroll
    for (int32_t i = 0; i < S::kMY_ROWS; ++i)
    {
#pragma unroll
        for (int32_t offset = S::kROW_LANES; offset < static_cast<int32_t>(kWARP_SIZE); offset *= 2)
        {
            now[i] = fmaxf(now[i], __shfl_xor_sync(kFULL_MASK, now[i], offset));
        }
        isLarger = isLarger || now[i] > mHighest[i];
    }
    if (__any_sync(kFULL_MASK, isLarger ? 1 : 0) != 0)
    {
        shrink(now);
    }
#pragma unroll
    for (int32_t i = 0; i < S::kMINE; ++i)
    {
        float const weight = expf(products[i] - fmaxf(now[i % S::kMY_ROWS], kLOWEST));
        mTotal[i % S::kMY_ROWS] += weight;
        weights[i] = weight;
    }
}

template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, bool kFLOATS, bool kINDEXED, bool kSIDES>
__device__ void Walk<kROWS, kLANES, kRUNS, kFLOATS, kINDEXED, kSIDES>::finish()
{
#pragma unroll
    for (int32_t j = 0; j < kRUNS; ++j)
    {
#pragma unroll
        for (int32_t row = 0; row < kROWS; ++row)
        {
#pragma unroll
            for (int32_t i = 0; i < kRUN; ++i)
            {
                float sum = mSums[j][row][i];
#pragma unroll
                for (int32_t offset = kLANES; offset < static_cast<int32_t>(kWARP_SIZE); offset *= 2)
                {
                    sum += __shfl_xor_sync(kFULL_MASK, sum, offset);
                }
                if (mLane < kLANES)
                {
                    mShared.sums[mWarp][row][(mRun + j * kLANES) * kRUN + i] = sum;
                }
            }
        }
    }
#pragma unroll
    for (int32_t i = 0; i < S::kMY_ROWS; ++i)
    {
        float total = mTotal[i];
#pragma unroll
        for (int32_t offset = S::kROW_LANES; offset < static_cast<int32_t>(kWARP_SIZE); offset *= 2)
        {
            total += __shfl_xor_sync(kFULL_MASK, total, offset);
        }
        if (mLane < S::kROW_LANES)
        {
            mShared.highest[mWarp][rowOf(i)] = mHighest[i];
            mShared.totals[mWarp][rowOf(i)] = total;
        }
    }
}

} // namespace trtc::kv_attention::gpu
