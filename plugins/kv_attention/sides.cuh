// How the kernels of KVAttention do what is done to rows beside their codes. Products of low rank are added a tile at a
// time: the queries meet the basis of a block once and then the factors of its slots, and the weighted factors meet the
// basis once. Keys that are turned are left as they are, and the queries turned the other way, slot after slot.
#pragma once

#include "kv_attention/problem.cuh"

namespace trtc::kv_attention::gpu
{

//! The slot that a lane has of a tile, and what block it is in.
struct TileSlot
{
    int32_t slot;
    int32_t block; //!< -1: the lane has none
};

template <typename S, int32_t kROWS, int32_t kRUNS, bool kSIDES>
class SideWork
{
public:
    static_assert(!kSIDES || S::kTILE <= static_cast<int32_t>(kWARP_SIZE), "a lane for each slot");

    __device__ SideWork(Problem const& problem, Shared<S, kROWS, kRUNS, kSIDES>& shared, int32_t warp, int32_t lane)
        : mProblem(problem)
        , mShared(shared)
        , mWeights(shared.weights[warp] + lane * kROWS)
        , mLane(lane)
    {
    }

    //! `slot` is the lane's, if it has one.
    __device__ TileSlot tileSlot(int32_t slot, bool isThere) const
    {
        return {isThere ? slot : 0, isThere ? slot / mProblem.block : -1};
    }

    //! Adds to the products of the tile, [slot, query].
    __device__ void addToProducts(TileSlot const& mine) const
    {
        Side const& keys = mProblem.keys;
        Factors const& factors = mProblem.keyFactors;
        forParts(mine, factors,
            [&](int64_t basis, float factor, bool isOf)
            {
                float found[kROWS] = {};
#pragma unroll 1
                for (int32_t i = mLane; i < S::kWIDTH; i += static_cast<int32_t>(kWARP_SIZE))
                {
                    if (keys.has(i / kRUN, i % kRUN))
                    {
                        int64_t const at = basis + keys.channel(i / kRUN, i % kRUN);
                        float const value = loadFloat(factors.basis, factors.type, at);
#pragma unroll
                        for (int32_t row = 0; row < kROWS; ++row)
                        {
                            found[row] = fmaf(value, mShared.q[row][i], found[row]);
                        }
                    }
                }
#pragma unroll
                for (int32_t row = 0; row < kROWS; ++row)
                {
                    float const product = warpSum(found[row]);
                    if (isOf)
                    {
                        mWeights[row] = fmaf(factor, product, mWeights[row]);
                    }
                }
            });
    }

    //! Adds to the sums of weighted values at a lane's channels.
    __device__ void addToSums(TileSlot const& mine, float (&sums)[kRUNS][kROWS][kRUN]) const
    {
        constexpr int32_t kLANES = S::kWIDTH / kRUNS / kRUN;
        Side const& values = mProblem.values;
        Factors const& factors = mProblem.valueFactors;
        forParts(mine, factors,
            [&](int64_t basis, float factor, bool isOf)
            {
                float found[kROWS];
#pragma unroll
                for (int32_t row = 0; row < kROWS; ++row)
                {
                    found[row] = warpSum(isOf ? factor * mWeights[row] : 0.0F);
                }
                if (mLane >= kLANES) // lanes with the same channels are added up at the end
                {
                    return;
                }
#pragma unroll
                for (int32_t j = 0; j < kRUNS; ++j)
                {
                    int32_t const run = mLane + j * kLANES;
#pragma unroll
                    for (int32_t i = 0; i < kRUN; ++i)
                    {
                        bool const has = values.has(run, i);
                        int64_t const at = basis + (has ? values.channel(run, i) : 0);
                        float const value = has ? loadFloat(factors.basis, factors.type, at) : 0.0F;
#pragma unroll
                        for (int32_t row = 0; row < kROWS; ++row)
                        {
                            sums[j][row][i] = fmaf(found[row], value, sums[j][row][i]);
                        }
                    }
                }
            });
    }

    //! What is added to one channel of a key.
    __device__ float ofKey(int32_t slot, int32_t channel) const
    {
        Factors const& factors = mProblem.keyFactors;
        int64_t const basis = basisAt(factors, slot / mProblem.block, 0) + channel;
        float sum = 0.0F;
#pragma unroll 1
        for (int32_t i = 0; i < factors.rank; ++i)
        {
            float const value =
                loadFloat(factors.basis, factors.type, basis + static_cast<int64_t>(i) * mProblem.width);
            sum = fmaf(loadFloat(factors.factor, factors.type, factorAt(factors, slot) + i), value, sum);
        }
        return sum;
    }

    //! Adds the products of a key's channel, at code `index`, with the queries turned the other way.
    __device__ void addTurned(int32_t slot, int32_t channel, int32_t index, float value, float (&sums)[kROWS]) const
    {
        auto const channels = static_cast<int32_t>(mProblem.turning.channels);
        int32_t const half = channels / 2;
        float cosine = 1.0F;
        float sine = 0.0F;
        int32_t partner = index;
        if (channel < channels)
        {
            float const* const table = mProblem.rope + mShared.sides.table + static_cast<int64_t>(slot) * channels;
            int32_t const pair = channel < half ? channel : channel - half;
            cosine = table[pair];
            sine = channel < half ? table[half + pair] : -table[half + pair];
            partner = mShared.sides.partners[index];
        }
#pragma unroll
        for (int32_t row = 0; row < kROWS; ++row)
        {
            float const query = fmaf(sine, mShared.q[row][partner], cosine * mShared.q[row][index]);
            sums[row] = fmaf(value, query, sums[row]);
        }
    }

private:
    __device__ int64_t factorAt(Factors const& factors, int32_t slot) const
    {
        return (mShared.sides.head * mProblem.length + slot) * factors.rank;
    }

    __device__ int64_t basisAt(Factors const& factors, int32_t block, int32_t row) const
    {
        return ((mShared.sides.head * mProblem.blocks + block) * factors.rank + row) * mProblem.width;
    }

    //! Calls body(where a row of the basis starts, the lane's factor of it, whether the lane's slot has this basis) for
    //! the rows of all blocks that slots of the tile are in.
    template <typename Body>
    __device__ void forParts(TileSlot const& mine, Factors const& factors, Body const& body) const
    {
        uint32_t left = __ballot_sync(kFULL_MASK, mine.block >= 0 ? 1 : 0);
        while (left != 0U)
        {
            int32_t const block = __shfl_sync(kFULL_MASK, mine.block, __ffs(static_cast<int>(left)) - 1);
            bool const isOf = mine.block == block;
            left &= ~__ballot_sync(kFULL_MASK, isOf ? 1 : 0);
#pragma unroll 1
            for (int32_t i = 0; i < factors.rank; ++i)
            {
                float const factor =
                    isOf ? loadFloat(factors.factor, factors.type, factorAt(factors, mine.slot) + i) : 0.0F;
                body(basisAt(factors, block, i), factor, isOf);
            }
        }
    }

    Problem const& mProblem;
    Shared<S, kROWS, kRUNS, kSIDES>& mShared;
    float* mWeights; //!< of the lane's slot
    int32_t mLane;
};

} // namespace trtc::kv_attention::gpu
