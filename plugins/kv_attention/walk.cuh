// One warp's walk over its part of the cache, as kernel.cu describes it.
#pragma once

#include "kv_attention/float_side.cuh"
#include "kv_attention/problem.cuh"
#include "kv_attention/sides.cuh"

namespace trtc::kv_attention::gpu
{

//! One warp's part of a split; kFLOATS: of a cache of floats; kINDEXED: of chosen slots, by their places in the index;
//! kSIDES: something is added to rows, or keys are turned.
template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, bool kFLOATS, bool kINDEXED, bool kSIDES>
class Walk
{
public:
    using S = Shape<kROWS, kLANES, kRUNS>;
    static constexpr int32_t kSTEP = S::kSTEP;

    __device__ Walk(Problem const& problem, Shared<S, kROWS, kRUNS, kSIDES>& shared, int32_t end)
        : mProblem(problem)
        , mShared(shared)
        , mWarp(static_cast<int32_t>(threadIdx.x / kWARP_SIZE))
        , mLane(static_cast<int32_t>(threadIdx.x % kWARP_SIZE))
        , mRun(mLane % kLANES)
        , mFirstSlot(mLane / kLANES * S::kBATCH)
        , mEnd(end)
        , mQueryGroup(-1)
        , mTileStart(0)
    {
#pragma unroll
        for (int32_t i = 0; i < S::kMY_ROWS; ++i)
        {
            mHighest[i] = -INFINITY;
            mTotal[i] = 0.0F;
        }
#pragma unroll
        for (int32_t j = 0; j < kRUNS; ++j)
        {
#pragma unroll
            for (int32_t row = 0; row < kROWS; ++row)
            {
#pragma unroll
                for (int32_t i = 0; i < kRUN; ++i)
                {
                    mSums[j][row][i] = 0.0F;
                }
            }
        }
    }

    __device__ void tile(int32_t start)
    {
        if constexpr (kINDEXED)
        {
            mTileStart = start;
            if (!chooseSlots<S>(mShared, mWarp, mLane, start, mEnd))
            {
                return;
            }
        }
        else if (!isSeen(start))
        {
            return;
        }
        multiplyKeys(start);
        __syncwarp();
        if constexpr (kSIDES)
        {
            if (mProblem.keyFactors.rank > 0 && mProblem.turning.channels == 0)
            {
                sideWork().addToProducts(tileSlot(start));
                __syncwarp();
            }
        }
        weigh(start);
        __syncwarp();
        addValues(start);
        if constexpr (kSIDES)
        {
            if (mProblem.valueFactors.rank > 0)
            {
                sideWork().addToSums(tileSlot(start), mSums);
            }
        }
        __syncwarp();
    }

    //! Sums over the lanes, left in shared memory for the block. Every warp must have come to the end of its walk.
    __device__ void finish();

private:
    __device__ SideWork<S, kROWS, kRUNS, kSIDES> sideWork() const
    {
        return {mProblem, mShared, mWarp, mLane};
    }

    //! This lane's slot of the tile.
    __device__ TileSlot tileSlot(int32_t start) const
    {
        if constexpr (kINDEXED)
        {
            int32_t const slot = mShared.chosen[mWarp][min(mLane, S::kTILE - 1)];
            return sideWork().tileSlot(slot, mLane < S::kTILE && slot >= 0);
        }
        return sideWork().tileSlot(start + mLane, mLane < S::kTILE && start + mLane < mEnd);
    }

    //! Whether some query sees a slot of the tile.
    __device__ bool isSeen(int32_t start) const
    {
        bool isHere = false;
        for (int32_t i = mLane; i < kROWS * kSPANS; i += static_cast<int32_t>(kWARP_SIZE))
        {
            int32_t const first = mShared.first[i / kSPANS][i % kSPANS];
            int32_t const last = mShared.last[i / kSPANS][i % kSPANS];
            isHere = isHere || (first < last && first < start + S::kTILE && last > start);
        }
        return __any_sync(kFULL_MASK, isHere ? 1 : 0) != 0;
    }

    //! Whether the query of a row sees a slot.
    __device__ bool isSeen(int32_t row, int32_t slot) const
    {
        bool isInside = false;
#pragma unroll
        for (int32_t i = 0; i < kSPANS; ++i)
        {
            isInside = isInside || (slot >= mShared.first[row][i] && slot < mShared.last[row][i]);
        }
        return isInside && (kINDEXED || slot < mEnd);
    }

    //! The query that product `index` of this lane is of.
    __device__ int32_t rowOf(int32_t index) const
    {
        return (mLane * S::kMINE + index) % kROWS;
    }

    //! Slots of this lane in the tile; behind the last one it is taken again.
    __device__ int32_t slotOf(int32_t start, int32_t t) const
    {
        if constexpr (kINDEXED)
        {
            int32_t const slot = mShared.chosen[mWarp][min(start - mTileStart + mFirstSlot + t, S::kTILE - 1)];
            return slot < 0 ? ~slot : slot;
        }
        return min(start + mFirstSlot + t, mEnd - 1);
    }

    //! The queries at this lane's channels, from a place in shared memory: between tiles the registers are for others.
    struct Query
    {
        float at[kRUNS][kROWS][kRUN];

        __device__ Query(float const (&from)[kROWS][S::kWIDTH], int32_t run)
        {
#pragma unroll
            for (int32_t row = 0; row < kROWS; ++row)
            {
#pragma unroll
                for (int32_t j = 0; j < kRUNS; ++j)
                {
#pragma unroll
                    for (int32_t i = 0; i < kRUN; ++i)
                    {
                        at[j][row][i] = from[row][(run + j * kLANES) * kRUN + i];
                    }
                }
            }
        }
    };

    //! Leaves the queries with the scales of one group in shared memory, and the products with its minima.
    __device__ void scaleQuery(int32_t group)
    {
        mQueryGroup = group;
        float constants[kROWS] = {};
        uint32_t const base = static_cast<uint32_t>(group) * static_cast<uint32_t>(mProblem.keys.columns);
        __syncwarp();
#pragma unroll 1
        for (int32_t i = mLane; i < S::kWIDTH; i += static_cast<int32_t>(kWARP_SIZE))
        {
            bool const has = mProblem.keys.has(i / kRUN, i % kRUN);
            uint32_t const at = base + static_cast<uint32_t>(has ? mProblem.keys.channel(i / kRUN, i % kRUN) : 0);
            float const scale = mProblem.keys.load(mShared.keys.scale, at);
            float const minimum = mProblem.keys.load(mShared.keys.minimum, at);
#pragma unroll
            for (int32_t row = 0; row < kROWS; ++row)
            {
                float const q = mShared.q[row][i]; // 0 where the row has no such code
                mShared.scaledQ[mWarp][row][i] = q * scale;
                constants[row] = fmaf(q, minimum, constants[row]);
            }
        }
#pragma unroll
        for (int32_t row = 0; row < kROWS; ++row)
        {
            float const constant = warpSum(constants[row]);
            if (mLane == 0)
            {
                mShared.constants[mWarp][row] = constant / kLANES; // every lane that shares a slot adds it
            }
        }
        __syncwarp();
    }

    //! Leaves products in shared memory: [slot of the tile, query].
    __device__ void multiplyKeys(int32_t start)
    {
        if constexpr (kFLOATS)
        {
            multiplyFloats(start);
            return;
        }
        if constexpr (kSIDES)
        {
            if (mProblem.turning.channels > 0)
            {
                multiplySlowly<true>(start);
                return;
            }
        }
        int32_t const group = mProblem.keys.byToken ? 0 : start / mProblem.keys.group;
        bool const isFolded = !kINDEXED && !mProblem.keys.byToken && mProblem.keys.isWide
            && (min(start + S::kTILE, mEnd) - 1) / mProblem.keys.group == group;
        if (isFolded)
        {
            if (group != mQueryGroup)
            {
                scaleQuery(group);
            }
            multiplySteps<false>(start);
        }
        else if (mProblem.keys.isUniform)
        {
            multiplySteps<true>(start);
        }
        else
        {
            multiplySlowly<false>(start);
        }
    }

    //! The codes themselves, or kSCALED: values that are made from them with scales of pairs.
    template <bool kSCALED>
    __device__ void multiplySteps(int32_t start)
    {
        constexpr int32_t kCOUNT = kSTEP * kROWS;
        Query const query(kSCALED ? mShared.q : mShared.scaledQ[mWarp], mRun);
        uint2 raw[kRUNS][kSTEP];
        loadRuns(mProblem.keys, mShared.keys, start, raw);
#pragma unroll 1
        for (int32_t first = 0; first < S::kBATCH; first += kSTEP)
        {
            uint2 next[kRUNS][kSTEP]; // on their way while these are used; behind the tile it is nobody's
            loadRuns(mProblem.keys, mShared.keys, start + first + kSTEP, next);
            float products[kCOUNT];
#pragma unroll
            for (int32_t i = 0; i < kCOUNT; ++i)
            {
                products[i] = kSCALED ? 0.0F : mShared.constants[mWarp][i % kROWS];
            }
#pragma unroll
            for (int32_t j = 0; j < kRUNS; ++j)
            {
#pragma unroll
                for (int32_t t = 0; t < kSTEP; ++t)
                {
                    uint2 const codes = unpacked(mProblem.keys.bits, raw[j][t]);
                    Scales<kRUN / 2> scales;
                    if constexpr (kSCALED)
                    {
                        int32_t const* const groups = mShared.keyGroups + (mRun + j * kLANES) * (kRUN / 2);
                        scales = pairScalesOf(mProblem.keys, mShared.keys, slotOf(start, first + t), groups);
                    }
#pragma unroll
                    for (int32_t i = 0; i < kRUN; ++i)
                    {
                        float const value = kSCALED ? scales.value(codes, i) : codeAt(codes, i);
#pragma unroll
                        for (int32_t row = 0; row < kROWS; ++row)
                        {
                            products[t * kROWS + row] = fmaf(value, query.at[j][row][i], products[t * kROWS + row]);
                        }
                    }
                    raw[j][t] = next[j][t];
                }
            }
            leave(products, first);
        }
    }

    //! The sums over the lanes of products with kSTEP slots, in shared memory.
    __device__ void leave(float (&products)[kSTEP * kROWS], int32_t first)
    {
        constexpr int32_t kCOUNT = kSTEP * kROWS;
        exchange<kLANES>(products);
        constexpr int32_t kHELD = kCOUNT > kLANES ? kCOUNT / kLANES : 1;
        constexpr int32_t kHOLDERS = kCOUNT < kLANES ? kLANES / kCOUNT : 1; // lanes that hold the same
        float* const to = mShared.weights[mWarp] + (mFirstSlot + first) * kROWS + mRun / kHOLDERS * kHELD;
#pragma unroll
        for (int32_t i = 0; i < kHELD; ++i)
        {
            if (mRun % kHOLDERS == 0)
            {
                to[i] = products[i];
            }
        }
    }

    //! The values at this lane's channels of a slot; for lanes beyond the row some that are there.
    __device__ void loadSlot(
        Side const& side, HeadData const& data, int32_t slot, int32_t j, float (&values)[kRUN]) const
    {
        loadValues(side, data.code + rowAt(side, slot), thereOf(side, mRun + j * kLANES), values);
    }

    __device__ void multiplyFloats(int32_t start)
    {
        Query const query(mShared.q, mRun);
#pragma unroll 1
        for (int32_t first = 0; first < S::kBATCH; first += kSTEP)
        {
            float products[kSTEP * kROWS] = {};
#pragma unroll
            for (int32_t j = 0; j < kRUNS; ++j)
            {
#pragma unroll
                for (int32_t t = 0; t < kSTEP; ++t)
                {
                    float values[kRUN];
                    loadSlot(mProblem.keys, mShared.keys, slotOf(start, first + t), j, values);
#pragma unroll
                    for (int32_t i = 0; i < kRUN; ++i)
                    {
#pragma unroll
                        for (int32_t row = 0; row < kROWS; ++row)
                        {
                            products[t * kROWS + row] = fmaf(values[i], query.at[j][row][i], products[t * kROWS + row]);
                        }
                    }
                }
            }
            leave(products, first);
        }
    }

    //! For groups that cut tiles or runs, and kTURNED, for keys that are turned: slot after slot.
    template <bool kTURNED>
    __device__ void multiplySlowly(int32_t start)
    {
        float* const whole = mShared.weights[mWarp];
        Query const query(mShared.q, mRun);
#pragma unroll 1
        for (int32_t t = 0; t < S::kBATCH; ++t)
        {
            int32_t const slot = slotOf(start, t);
            float sums[kROWS] = {};
#pragma unroll
            for (int32_t j = 0; j < kRUNS; ++j)
            {
                int32_t const run = opaque(mRun + j * kLANES);
                uint2 const codes = unpacked(
                    mProblem.keys.bits, loadBytes(mProblem.keys, mShared.keys.code + rowAt(mProblem.keys, slot), run));
                Scales<kRUN> const scales = scalesOf(mProblem.keys, mShared.keys, slot, run);
#pragma unroll
                for (int32_t i = 0; i < kRUN; ++i)
                {
                    float const value = scales.value(codes, i);
                    if constexpr (kTURNED)
                    {
                        if (mProblem.keys.has(run, i))
                        {
                            int32_t const channel = mProblem.keys.channel(run, i);
                            float const key = value + sideWork().ofKey(slot, channel);
                            sideWork().addTurned(slot, channel, run * kRUN + i, key, sums);
                        }
                    }
                    else
                    {
#pragma unroll
                        for (int32_t row = 0; row < kROWS; ++row)
                        {
                            sums[row] = fmaf(value, query.at[j][row][i], sums[row]);
                        }
                    }
                }
            }
#pragma unroll
            for (int32_t row = 0; row < kROWS; ++row)
            {
#pragma unroll
                for (int32_t offset = kLANES / 2; offset > 0; offset /= 2)
                {
                    sums[row] += __shfl_xor_sync(kFULL_MASK, sums[row], offset);
                }
                if (mRun == 0)
                {
                    whole[(mFirstSlot + t) * kROWS + row] = sums[row];
                }
            }
        }
    }

    //! Runs of the next kSTEP slots of this lane.
    __device__ void loadRuns(Side const& side, HeadData const& data, int32_t start, uint2 (&raw)[kRUNS][kSTEP]) const
    {
#pragma unroll
        for (int32_t j = 0; j < kRUNS; ++j)
        {
            uint8_t const* const from = data.code + (thereOf(side, mRun + j * kLANES) << side.shift);
#pragma unroll
            for (int32_t t = 0; t < kSTEP; ++t)
            {
                raw[j][t] = loadWide(side.bits, from + rowAt(side, slotOf(start, t)));
            }
        }
    }

    //! From products in shared memory to weights.
    __device__ void weigh(int32_t start);

    //! Brings what was summed so far to new maxima.
    __device__ void shrink(float const (&now)[S::kMY_ROWS])
    {
#pragma unroll
        for (int32_t i = 0; i < S::kMY_ROWS; ++i)
        {
            float const factor = expf(mHighest[i] - fmaxf(now[i], kLOWEST));
            mHighest[i] = now[i];
            mTotal[i] *= factor;
            if (mLane < S::kROW_LANES)
            {
                mShared.factors[mWarp][rowOf(i)] = factor;
            }
        }
        __syncwarp();
#pragma unroll
        for (int32_t row = 0; row < kROWS; ++row)
        {
            float const factor = mShared.factors[mWarp][row];
#pragma unroll
            for (int32_t j = 0; j < kRUNS; ++j)
            {
#pragma unroll
                for (int32_t i = 0; i < kRUN; ++i)
                {
                    mSums[j][row][i] *= factor;
                }
            }
        }
        __syncwarp();
    }

    __device__ void addValues(int32_t start)
    {
        Side const& side = mProblem.values;
        if constexpr (kFLOATS)
        {
#pragma unroll
            for (int32_t j = 0; j < kRUNS; ++j)
            {
#pragma unroll 4
                for (int32_t t = 0; t < S::kBATCH; ++t)
                {
                    float values[kRUN];
                    loadSlot(side, mShared.values, slotOf(start, t), j, values);
                    addFloats(values, t, mSums[j]);
                }
            }
            return;
        }
        if (side.isUniform)
        {
            uint2 raw[kRUNS][kSTEP];
            loadRuns(side, mShared.values, start, raw);
#pragma unroll 1
            for (int32_t first = 0; first < S::kBATCH; first += kSTEP)
            {
                uint2 next[kRUNS][kSTEP];
                loadRuns(side, mShared.values, start + first + kSTEP, next);
#pragma unroll
                for (int32_t j = 0; j < kRUNS; ++j)
                {
#pragma unroll
                    for (int32_t t = 0; t < kSTEP; ++t)
                    {
                        int32_t const* const groups = mShared.valueGroups + (mRun + j * kLANES) * (kRUN / 2);
                        Scales<kRUN / 2> const scales =
                            pairScalesOf(side, mShared.values, slotOf(start, first + t), groups);
                        addRun(unpacked(side.bits, raw[j][t]), scales, first + t, mSums[j]);
                        raw[j][t] = next[j][t];
                    }
                }
            }
            return;
        }
#pragma unroll
        for (int32_t j = 0; j < kRUNS; ++j)
        {
            Scales<kRUN> scales{};
            int32_t last = 0; // behind the slots that they are of
#pragma unroll 1
            for (int32_t t = 0; t < S::kBATCH; ++t)
            {
                int32_t const run = opaque(mRun + j * kLANES);
                int32_t const slot = slotOf(start, t);
                if (kINDEXED || slot >= last)
                {
                    scales = scalesOf(side, mShared.values, slot, run);
                    last = side.byToken ? 0 : (slot / side.group + 1) * side.group;
                }
                uint2 const raw = loadBytes(side, mShared.values.code + rowAt(side, slot), run);
                addRun(unpacked(side.bits, raw), scales, t, mSums[j]);
            }
        }
    }

    template <int32_t kCOUNT>
    __device__ void addRun(uint2 codes, Scales<kCOUNT> const& scales, int32_t t, float (&sums)[kROWS][kRUN]) const
    {
        float const* const weights = mShared.weights[mWarp] + (mFirstSlot + t) * kROWS;
#pragma unroll
        for (int32_t i = 0; i < kRUN; ++i)
        {
            float const value = scales.value(codes, i);
#pragma unroll
            for (int32_t row = 0; row < kROWS; ++row)
            {
                sums[row][i] = fmaf(weights[row], value, sums[row][i]);
            }
        }
    }

    __device__ void addFloats(float const (&values)[kRUN], int32_t t, float (&sums)[kROWS][kRUN]) const
    {
        float const* const weights = mShared.weights[mWarp] + (mFirstSlot + t) * kROWS;
#pragma unroll
        for (int32_t i = 0; i < kRUN; ++i)
        {
#pragma unroll
            for (int32_t row = 0; row < kROWS; ++row)
            {
                sums[row][i] = fmaf(weights[row], values[i], sums[row][i]);
            }
        }
    }

    Problem const& mProblem;
    Shared<S, kROWS, kRUNS, kSIDES>& mShared;
    int32_t mWarp;
    int32_t mLane;
    int32_t mRun;
    int32_t mFirstSlot; //!< of this lane in a tile
    int32_t mEnd;
    int32_t mQueryGroup; //!< whose scales are in scaledQ
    int32_t mTileStart;  //!< kINDEXED: the place of the first chosen slot that is in shared memory
    float mHighest[S::kMY_ROWS];
    float mTotal[S::kMY_ROWS];
    float mSums[kRUNS][kROWS][kRUN];
};

} // namespace trtc::kv_attention::gpu
