// One block takes 1, 4 or 8 queries of one KV head (all its query heads, as far as they fit) over one split of the
// cache, so that each code is read and unpacked once for all of them. Its four warps walk over parts of the split on
// their own, a tile of 16 slots (4 queries, D = 128) at a time:
// 1. 8, 16 or 32 lanes share a slot; a lane has a run of 8 codes (2, 4 or 8 bytes, one access) at the same channels of
//    all slots, and the queries at these channels in registers. Groups of tokens put their scale into the queries once
//    for a group; groups of channels turn codes into values first. The sums of 32 products are exchanged so that each
//    lane ends with its share of them, 31 shuffles for 32 products over 32 lanes.
// 2. Lanes turn these into weights with a running maximum, and leave them in shared memory.
// 3. The same lanes add the weighted runs of the values into registers.
// Warps meet only at the end. A second kernel merges the splits in order by the log of their sums.
//
// Codes and scales are read once: B * G * L * D * (k_bits + v_bits) / 8 bytes and the scales. A code costs two
// instructions to become a float (a byte permute below the exponent of 2^23, one subtraction), one for its scale where
// that is not in the query, and one multiply-add for each query.
#include "kv_attention/kernel.cuh"

#include <algorithm>

#include "common/cuda_device.cuh"

namespace trtc::kv_attention
{

namespace
{
constexpr int32_t kWARPS = 4;
constexpr int32_t kTHREADS = kWARPS * static_cast<int32_t>(kWARP_SIZE);
constexpr int32_t kRUN = 8;      // codes that a lane takes in one access
constexpr int64_t kSPLIT = 256;  // slots that are worth a block
constexpr int64_t kENOUGH = 512; // blocks beyond which the cache is not cut further
constexpr int64_t kMOST_SPLITS = 256;
constexpr int64_t kMOST_ROWS = 8;   // queries of a block
constexpr float kLOWEST = -3.0e38F; // stands for the maximum of nothing

//! One side of the cache, as a kernel sees it.
struct Side
{
    uint8_t const* code;
    void const* scale;
    void const* minimum;
    bool isHalf;
    int32_t bits;
    int32_t shift; //!< bits = 1 << shift
    int32_t rowBytes;
    int32_t group;
    int32_t columns;   //!< scales of a token, or of a group of tokens
    int64_t numScales; //!< of one KV head
    bool byToken;
    bool isWide;    //!< a run of codes is one aligned access
    bool isUniform; //!< byToken: the codes of a run in one part of a row have one scale; and isWide

    __device__ float load(void const* data, uint32_t index) const
    {
        return isHalf ? toFloat(static_cast<__half const*>(data)[index]) : static_cast<float const*>(data)[index];
    }

    __device__ bool has(int32_t run, int32_t code) const
    {
        return run * bits + (code & (bits - 1)) < rowBytes;
    }

    //! The channel of a code of a run: `bits` bytes hold as many codes of each part.
    __device__ int32_t channel(int32_t run, int32_t code) const
    {
        return (code >> shift) * rowBytes + run * bits + (code & (bits - 1));
    }
};

//! Where the data of one KV head are.
struct HeadData
{
    uint8_t const* code;
    void const* scale;
    void const* minimum;

    __device__ static HeadData of(Side const& side, int64_t head, int32_t length)
    {
        int64_t const scales = head * side.numScales * (side.isHalf ? 2 : 4);
        return {side.code + head * length * side.rowBytes, static_cast<char const*>(side.scale) + scales,
            static_cast<char const*>(side.minimum) + scales};
    }
};

struct Problem
{
    int64_t rows; //!< queries of one KV head
    int64_t rowBlocks;
    int32_t width;
    int32_t length;
    int32_t kvHeads;
    int32_t splits;
    int64_t repeats;
    int64_t queries;
    float scale;
    Side keys;
    Side values;
    void const* q;
    DType type;
    void const* bias;
    DType biasType;
    BiasSteps biasSteps;
    bool isCausal;
    int64_t window;
    int64_t const* lengths;
    void* y;
    float* lse;
    float* sums;  //!< of the splits: [units, splits, kROWS, width]; null: one split, which writes y
    float* stats; //!< [units, splits, kROWS, 2], maximum and sum of the weights
};

//! `value`, of which the compiler may not know that it is the same in every turn of a loop: what follows from it then
//! stays inside of the loop, and does not fill registers outside.
__device__ inline int32_t opaque(int32_t value)
{
#if TRTC_DEVICE_ARCH > 0
    asm volatile("" : "+r"(value));
#endif
    return value;
}

__device__ inline void storeFloat(void* data, DType type, int64_t index, float value)
{
    switch (type)
    {
    case DType::kFLOAT16: static_cast<__half*>(data)[index] = fromFloat<__half>(value); break;
    case DType::kBFLOAT16: static_cast<__nv_bfloat16*>(data)[index] = fromFloat<__nv_bfloat16>(value); break;
    default: static_cast<float*>(data)[index] = value; break;
    }
}

//! The bytes of a run, as they lie in memory, if Side::isWide. The row has the run.
__device__ inline uint2 loadWide(int32_t bits, uint8_t const* from)
{
    switch (bits)
    {
    case 2: return make_uint2(*reinterpret_cast<uint16_t const*>(from), 0U);
    case 4: return make_uint2(*reinterpret_cast<uint32_t const*>(from), 0U);
    default: return *reinterpret_cast<uint2 const*>(from);
    }
}

//! The same for a run that the row may not have all of, or that is not aligned; zero where there is nothing.
__device__ inline uint2 loadBytes(Side const& side, uint8_t const* row, int32_t run)
{
    uint2 raw = make_uint2(0U, 0U);
    int32_t const first = run * side.bits;
    for (int32_t i = 0; i < side.bits && first + i < side.rowBytes; ++i)
    {
        uint32_t const byte = row[first + i];
        (i < 4 ? raw.x : raw.y) |= byte << (8U * static_cast<uint32_t>(i % 4));
    }
    return raw;
}

//! One code in each byte, in the order of Side::channel.
__device__ inline uint2 unpacked(int32_t bits, uint2 raw)
{
    if (bits == 4)
    {
        return make_uint2(raw.x & 0x0f0f0f0fU, (raw.x >> 4U) & 0x0f0f0f0fU);
    }
    if (bits == 2)
    {
        uint32_t const twoParts = (raw.x & 0x0303U) | ((raw.x & 0x0c0cU) << 14U);
        uint32_t const others = ((raw.x >> 4U) & 0x0303U) | ((raw.x & 0xc0c0U) << 10U);
        return make_uint2(twoParts, others);
    }
    return raw;
}

//! Byte `index` of a run as a float: below the exponent of 2^23 it is the fraction.
__device__ inline float codeAt(uint2 codes, int32_t index)
{
    uint32_t const word = index < 4 ? codes.x : codes.y;
    uint32_t const selector = 0x7650U | static_cast<uint32_t>(index % 4);
    return __uint_as_float(__byte_perm(word, 0x4b000000U, selector)) - 8388608.0F;
}

//! Scales and minima of a lane's codes: kCOUNT of them, each for as many codes that follow each other.
template <int32_t kCOUNT>
struct Scales
{
    float scale[kCOUNT];
    float minimum[kCOUNT];

    __device__ float value(uint2 codes, int32_t index) const
    {
        constexpr int32_t kSHARE = kRUN / kCOUNT;
        return fmaf(codeAt(codes, index), scale[index / kSHARE], minimum[index / kSHARE]);
    }
};

//! Those of a slot, one for each code.
__device__ inline Scales<kRUN> scalesOf(Side const& side, HeadData const& data, int32_t slot, int32_t run)
{
    Scales<kRUN> scales;
    int32_t const line = side.byToken ? slot : slot / side.group;
#pragma unroll
    for (int32_t i = 0; i < kRUN; ++i)
    {
        bool const has = side.has(run, i);
        int32_t const channel = side.channel(run, i);
        uint32_t const at = static_cast<uint32_t>(line) * static_cast<uint32_t>(side.columns)
            + static_cast<uint32_t>(side.byToken ? channel / side.group : channel);
        scales.scale[i] = has ? side.load(data.scale, at) : 0.0F;
        scales.minimum[i] = has ? side.load(data.minimum, at) : 0.0F;
    }
    return scales;
}

//! Those of a slot if Side::isUniform, one access for every part of the row: 1, 2 or 4. `groups` are the groups that
//! pairs of codes are in.
__device__ inline Scales<kRUN / 2> pairScalesOf(
    Side const& side, HeadData const& data, int32_t slot, int32_t const* groups)
{
    Scales<kRUN / 2> scales;
    int32_t const perPart = side.bits / 2; // pairs of codes of one part, a power of two
    uint32_t const line = static_cast<uint32_t>(slot) * static_cast<uint32_t>(side.columns);
#pragma unroll
    for (int32_t i = 0; i < kRUN / 2; ++i)
    {
        if ((i & (perPart - 1)) == 0)
        {
            uint32_t const at = line + static_cast<uint32_t>(groups[i]);
            scales.scale[i] = side.load(data.scale, at);
            scales.minimum[i] = side.load(data.minimum, at);
        }
        else
        {
            scales.scale[i] = scales.scale[i - 1];
            scales.minimum[i] = scales.minimum[i - 1];
        }
    }
    return scales;
}

//! What the lanes of one warp have in hand. kLANES lanes share a slot; each has kRUNS runs of its codes.
template <int32_t kROWS, int32_t kLANES, int32_t kRUNS>
struct Shape
{
    static constexpr int32_t kBATCH = 32 / kROWS;                                          // slots of a lane in a tile
    static constexpr int32_t kTILE = kBATCH * (static_cast<int32_t>(kWARP_SIZE) / kLANES); // slots of a warp
    static constexpr int32_t kSTEP = kROWS == 1 ? 8 : 4;      // slots of a lane whose products are in registers
    static constexpr int32_t kMINE = kBATCH * kROWS / kLANES; // products that a lane turns into weights
    static constexpr int32_t kMY_ROWS = kROWS < kMINE ? kROWS : kMINE;       // queries that these are of
    static constexpr int32_t kROW_LANES = kROWS > kMINE ? kROWS / kMINE : 1; // lanes that have all queries
    static constexpr int32_t kWIDTH = kLANES * kRUNS * kRUN; // codes of a slot, with room for more than D
};

template <typename S, int32_t kROWS, int32_t kRUNS>
struct Shared
{
    float q[kROWS][S::kWIDTH];
    union
    {
        float scaledQ[kWARPS][kROWS][S::kWIDTH]; //!< with the scales of one group of tokens in them
        float sums[kWARPS][kROWS][S::kWIDTH];
    };
    float weights[kWARPS][S::kTILE * kROWS];
    float factors[kWARPS][kROWS];
    float highest[kWARPS][kROWS];
    float totals[kWARPS][kROWS];
    float constants[kWARPS][kROWS];   //!< what the minima of a group add
    int32_t keyGroups[S::kWIDTH / 2]; //!< of pairs of codes, where Side::isUniform
    int32_t valueGroups[S::kWIDTH / 2];
    HeadData keys; //!< here, as addresses in registers would be there for as long as the walk
    HeadData values;
    int64_t bias[kROWS];
    int32_t first[kROWS];
    int32_t last[kROWS];
};

//! Sums over kLANES lanes of kCOUNT numbers of each. Afterwards the first kCOUNT / kLANES of a lane are whole, or the
//! first one if there are fewer numbers than lanes; they are number lane * kCOUNT / kLANES and on.
template <int32_t kLANES, int32_t kCOUNT>
__device__ void exchange(float (&sums)[kCOUNT])
{
    int32_t left = kCOUNT;
#pragma unroll
    for (int32_t offset = kLANES / 2; offset > 0; offset /= 2)
    {
        if (left == 1)
        {
            sums[0] += __shfl_xor_sync(kFULL_MASK, sums[0], offset);
            continue;
        }
        left /= 2;
        bool const isUpper = (threadIdx.x & static_cast<uint32_t>(offset)) != 0U;
#pragma unroll
        for (int32_t i = 0; i < kCOUNT / 2; ++i)
        {
            if (i < left)
            {
                float const kept = isUpper ? sums[i + left] : sums[i];
                float const sent = isUpper ? sums[i] : sums[i + left];
                sums[i] = kept + __shfl_xor_sync(kFULL_MASK, sent, offset);
            }
        }
    }
}

//! One warp's part of a split.
template <int32_t kROWS, int32_t kLANES, int32_t kRUNS>
class Walk
{
public:
    using S = Shape<kROWS, kLANES, kRUNS>;
    static constexpr int32_t kSTEP = S::kSTEP;

    __device__ Walk(Problem const& problem, Shared<S, kROWS, kRUNS>& shared, int32_t end)
        : mProblem(problem)
        , mShared(shared)
        , mWarp(static_cast<int32_t>(threadIdx.x / kWARP_SIZE))
        , mLane(static_cast<int32_t>(threadIdx.x % kWARP_SIZE))
        , mRun(mLane % kLANES)
        , mFirstSlot(mLane / kLANES * S::kBATCH)
        , mEnd(end)
        , mQueryGroup(-1)
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
        multiplyKeys(start);
        __syncwarp();
        weigh(start);
        __syncwarp();
        addValues(start);
        __syncwarp();
    }

    //! Sums over the lanes, left in shared memory for the block. Every warp must have come to the end of its walk.
    __device__ void finish()
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

private:
    //! The query that product `index` of this lane is of.
    __device__ int32_t rowOf(int32_t index) const
    {
        return (mLane * S::kMINE + index) % kROWS;
    }

    //! Slots of this lane in the tile; behind the last one it is taken again.
    __device__ int32_t slotOf(int32_t start, int32_t t) const
    {
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
        int32_t const group = mProblem.keys.byToken ? 0 : start / mProblem.keys.group;
        bool const isFolded = !mProblem.keys.byToken && mProblem.keys.isWide
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
            multiplySlowly(start);
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
    }

    //! For groups that cut tiles or runs: slot after slot.
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
#pragma unroll
                    for (int32_t row = 0; row < kROWS; ++row)
                    {
                        sums[row] = fmaf(value, query.at[j][row][i], sums[row]);
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

    //! Where the codes of a slot start.
    __device__ static uint32_t rowAt(Side const& side, int32_t slot)
    {
        return static_cast<uint32_t>(slot) * static_cast<uint32_t>(side.rowBytes);
    }

    //! The run, or for lanes beyond the row one that is there: nobody reads what they make of it.
    __device__ static int32_t thereOf(Side const& side, int32_t run)
    {
        return (run << side.shift) < side.rowBytes ? run : 0;
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
    __device__ void weigh(int32_t start)
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
            int32_t const slot = start + (mLane * S::kMINE + i) / kROWS;
            bool const isSeen = slot >= mShared.first[row] && slot < mShared.last[row] && slot < mEnd;
            int64_t const at = mShared.bias[row] + slot * mProblem.biasSteps.slot;
            float const bias = isSeen ? loadFloat(mProblem.bias, mProblem.biasType, at) : 0.0F;
            products[i] = isSeen ? fmaf(weights[i], mProblem.scale, bias) : -INFINITY;
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
                if (slot >= last)
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

    Problem const& mProblem;
    Shared<S, kROWS, kRUNS>& mShared;
    int32_t mWarp;
    int32_t mLane;
    int32_t mRun;
    int32_t mFirstSlot; //!< of this lane in a tile
    int32_t mEnd;
    int32_t mQueryGroup; //!< whose scales are in scaledQ
    float mHighest[S::kMY_ROWS];
    float mTotal[S::kMY_ROWS];
    float mSums[kRUNS][kROWS][kRUN];
};

//! Block (KV head and block of queries, split).
template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, int32_t kBLOCKS_OF_SM>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) kvAttentionKernel(Problem problem)
{
    using S = Shape<kROWS, kLANES, kRUNS>;
    __shared__ Shared<S, kROWS, kRUNS> shared;
    int64_t const head = blockIdx.x / problem.rowBlocks;
    int64_t const firstRow = blockIdx.x % problem.rowBlocks * kROWS;
    int64_t const item = head / problem.kvHeads;
    int64_t const given = problem.lengths[item];
    int64_t const limit = problem.length;
    int64_t const used = given < 0 ? 0 : given < limit ? given : limit;
    for (int32_t row = static_cast<int32_t>(threadIdx.x); row < kROWS; row += kTHREADS)
    {
        int64_t const ofHead = firstRow + row;
        int64_t const query = ofHead % problem.queries;
        int64_t const own = used - problem.queries + query;
        int64_t const last = problem.isCausal && own + 1 < used ? own + 1 : used;
        int64_t const first = problem.window != 0 && own - problem.window + 1 > 0 ? own - problem.window + 1 : 0;
        bool const isThere = ofHead < problem.rows && last > first;
        shared.first[row] = isThere ? static_cast<int32_t>(first) : 0;
        shared.last[row] = isThere ? static_cast<int32_t>(last) : 0;
        int64_t const queryHead = head % problem.kvHeads * problem.repeats + ofHead / problem.queries;
        BiasSteps const& steps = problem.biasSteps;
        shared.bias[row] = item * steps.item + queryHead / steps.headsOfStep * steps.head + query * steps.query;
    }
    Side const& keys = problem.keys;
    Side const& values = problem.values;
    if (threadIdx.x == 0U)
    {
        shared.keys = HeadData::of(keys, head, problem.length);
        shared.values = HeadData::of(values, head, problem.length);
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kROWS * S::kWIDTH; i += kTHREADS)
    {
        int32_t const row = i / S::kWIDTH;
        int32_t const run = i % S::kWIDTH / kRUN;
        bool const isThere = firstRow + row < problem.rows && keys.has(run, i % kRUN);
        int64_t const at = (head * problem.rows + firstRow + row) * problem.width + keys.channel(run, i % kRUN);
        shared.q[row][i % S::kWIDTH] = isThere ? loadFloat(problem.q, problem.type, at) : 0.0F;
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < S::kWIDTH / 2; i += kTHREADS)
    {
        int32_t const run = i / (kRUN / 2);
        int32_t const code = i % (kRUN / 2) * 2;
        shared.keyGroups[i] = keys.has(run, code) ? keys.channel(run, code) / keys.group : 0;
        shared.valueGroups[i] = values.has(run, code) ? values.channel(run, code) / values.group : 0;
    }
    __syncthreads();
    int32_t low = problem.length;
    int32_t high = 0;
#pragma unroll
    for (int32_t row = 0; row < kROWS; ++row)
    {
        bool const isThere = shared.last[row] > 0;
        low = isThere ? min(low, shared.first[row]) : low;
        high = max(high, shared.last[row]);
    }
    low = low / S::kTILE * S::kTILE;
    // Whole tiles for splits and warps; sums do not overflow, for slots are few enough.
    auto const share = [](int32_t slots, int32_t parts)
    { return ((slots + parts - 1) / parts + S::kTILE - 1) / S::kTILE * S::kTILE; };
    int32_t const ofSplit = share(max(high - low, 0), problem.splits);
    int64_t const splitBegin = low + static_cast<int64_t>(blockIdx.y) * ofSplit;
    int32_t const splitEnd = static_cast<int32_t>(min(splitBegin + ofSplit, static_cast<int64_t>(high)));
    int32_t const ofWarp = share(ofSplit, kWARPS);
    int64_t const begin = splitBegin + static_cast<int64_t>(threadIdx.x / kWARP_SIZE) * ofWarp;
    int32_t const end = static_cast<int32_t>(min(begin + ofWarp, static_cast<int64_t>(splitEnd)));
    Walk<kROWS, kLANES, kRUNS> walk(problem, shared, end);
    for (int64_t start = begin; start < end; start += S::kTILE)
    {
        walk.tile(static_cast<int32_t>(start));
    }
    __syncthreads(); // the queries make room for the sums
    walk.finish();
    __syncthreads();
    int64_t const unit = (static_cast<int64_t>(blockIdx.x) * problem.splits + blockIdx.y) * kROWS;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kROWS * S::kWIDTH; i += kTHREADS)
    {
        int32_t const row = i / S::kWIDTH;
        int32_t const code = i % S::kWIDTH;
        if (firstRow + row >= problem.rows || !values.has(code / kRUN, code % kRUN))
        {
            continue;
        }
        float highest = kLOWEST;
#pragma unroll
        for (int32_t warp = 0; warp < kWARPS; ++warp)
        {
            highest = fmaxf(highest, shared.highest[warp][row]);
        }
        float total = 0.0F;
        float sum = 0.0F;
#pragma unroll
        for (int32_t warp = 0; warp < kWARPS; ++warp)
        {
            float const factor = expf(shared.highest[warp][row] - highest);
            total = fmaf(factor, shared.totals[warp][row], total);
            sum = fmaf(factor, shared.sums[warp][row][code], sum);
        }
        int32_t const channel = values.channel(code / kRUN, code % kRUN);
        if (problem.sums != nullptr)
        {
            problem.sums[(unit + row) * problem.width + channel] = sum;
            if (code == 0)
            {
                problem.stats[(unit + row) * 2] = highest;
                problem.stats[(unit + row) * 2 + 1] = total;
            }
            continue;
        }
        int64_t const out = head * problem.rows + firstRow + row;
        storeFloat(problem.y, problem.type, out * problem.width + channel, total > 0.0F ? sum / total : 0.0F);
        if (code == 0)
        {
            problem.lse[out] = total > 0.0F ? highest + logf(total) : -INFINITY;
        }
    }
}

//! Block (query): the splits in order.
__global__ void __launch_bounds__(kTHREADS) kvAttentionMergeKernel(Problem problem, int32_t blockRows)
{
    __shared__ float factors[kMOST_SPLITS];
    int64_t const head = blockIdx.x / problem.rows;
    int64_t const row = blockIdx.x % problem.rows;
    int64_t const unit = (head * problem.rowBlocks + row / blockRows) * problem.splits;
    auto const partOf = [&](int32_t split) { return (unit + split) * blockRows + row % blockRows; };
    float highest = kLOWEST;
    for (int32_t split = 0; split < problem.splits; ++split)
    {
        highest = fmaxf(highest, problem.stats[partOf(split) * 2]);
    }
    for (int32_t split = static_cast<int32_t>(threadIdx.x); split < problem.splits; split += kTHREADS)
    {
        factors[split] = expf(problem.stats[partOf(split) * 2] - highest);
    }
    __syncthreads();
    float total = 0.0F;
    for (int32_t split = 0; split < problem.splits; ++split)
    {
        total = fmaf(factors[split], problem.stats[partOf(split) * 2 + 1], total);
    }
    for (int32_t channel = static_cast<int32_t>(threadIdx.x); channel < problem.width; channel += kTHREADS)
    {
        float sum = 0.0F;
#pragma unroll 4
        for (int32_t split = 0; split < problem.splits; ++split)
        {
            sum = fmaf(factors[split], problem.sums[partOf(split) * problem.width + channel], sum);
        }
        int64_t const at = static_cast<int64_t>(blockIdx.x) * problem.width + channel;
        storeFloat(problem.y, problem.type, at, total > 0.0F ? sum / total : 0.0F);
    }
    if (threadIdx.x == 0U)
    {
        problem.lse[blockIdx.x] = total > 0.0F ? highest + logf(total) : -INFINITY;
    }
}

Side sideOf(GpuCache const& cache, kv::Format const& format)
{
    auto const rowBytes = static_cast<int32_t>(format.rowBytes());
    auto const address = reinterpret_cast<uintptr_t>(cache.code) | static_cast<uintptr_t>(rowBytes);
    bool const isWide = address % static_cast<uintptr_t>(format.bits) == 0U;
    bool isUniform = format.byToken && isWide;
    for (int32_t i = 0; isUniform && i < rowBytes; i += format.bits)
    {
        for (int32_t part = 0; part < format.parts(); ++part)
        {
            int64_t const first = part * rowBytes + i;
            int64_t const last = part * rowBytes + std::min(i + format.bits, rowBytes) - 1;
            isUniform = isUniform && first / format.group == last / format.group;
        }
    }
    int32_t const shift = format.bits == 8 ? 3 : format.bits / 2;
    return {cache.code, cache.scale, cache.minimum, cache.scaleType == DType::kFLOAT16, format.bits, shift, rowBytes,
        static_cast<int32_t>(std::max<int64_t>(format.group, 1)), static_cast<int32_t>(format.scaleColumns()),
        format.numScales(), format.byToken, isWide, isUniform};
}

struct Choice
{
    int32_t rows; //!< queries of a block
    int64_t rowBlocks;
    int64_t units;
    int64_t splits;
};

Choice choose(Sizes const& sizes)
{
    int64_t const rows = sizes.rows();
    int32_t const ofBlock = sizes.width > 32 * kRUN ? 4 : rows <= 1 ? 1 : rows <= 4 ? 4 : 8;
    int64_t const rowBlocks = (rows + ofBlock - 1) / ofBlock;
    int64_t const units = sizes.batch * sizes.kvHeads * rowBlocks;
    int64_t const useful = std::min((sizes.length + kSPLIT - 1) / kSPLIT, kMOST_SPLITS);
    int64_t const wanted = kENOUGH / std::max<int64_t>(units, 1);
    return {ofBlock, rowBlocks, units, std::max<int64_t>(std::min(useful, wanted), 1)};
}

template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, int32_t kBLOCKS_OF_SM>
cudaError_t launch(Problem const& problem, int64_t units, cudaStream_t stream)
{
    dim3 const grid(static_cast<unsigned>(units), static_cast<unsigned>(problem.splits));
    return launchKernel(
        kvAttentionKernel<kROWS, kLANES, kRUNS, kBLOCKS_OF_SM>, grid, dim3(kTHREADS), 0, stream, problem);
}

template <int32_t kROWS, int32_t kBLOCKS_OF_SM>
cudaError_t launchWidth(Problem const& problem, int64_t units, cudaStream_t stream)
{
    if (problem.width <= 8 * kRUN)
    {
        return launch<kROWS, 8, 1, kBLOCKS_OF_SM>(problem, units, stream);
    }
    if (problem.width <= 16 * kRUN)
    {
        return launch<kROWS, 16, 1, kBLOCKS_OF_SM>(problem, units, stream);
    }
    return launch<kROWS, 32, 1, kBLOCKS_OF_SM>(problem, units, stream);
}
} // namespace

size_t kvAttentionWorkspaceBytes(Sizes const& sizes)
{
    // For all blocks that a launch that cuts the cache may have, whatever the rows of a block: so it grows with sizes.
    int64_t const mostUnits = sizes.batch * sizes.kvHeads * sizes.rows();
    int64_t const useful = std::min((sizes.length + kSPLIT - 1) / kSPLIT, kMOST_SPLITS);
    int64_t const parts = std::min(mostUnits * useful, kENOUGH);
    return static_cast<size_t>(parts * kMOST_ROWS * (sizes.width + 2)) * sizeof(float);
}

cudaError_t launchKvAttention(Sizes const& sizes, GpuTensors const& tensors, void* workspace, cudaStream_t stream)
{
    if (sizes.width > kMOST_WIDTH || sizes.length > kMOST_SLOTS)
    {
        return cudaErrorInvalidValue;
    }
    Choice const choice = choose(sizes);
    auto* const sums = choice.splits > 1 ? static_cast<float*>(workspace) : nullptr;
    int64_t const numParts = choice.units * choice.splits * choice.rows;
    Problem const problem{sizes.rows(), choice.rowBlocks, static_cast<int32_t>(sizes.width),
        static_cast<int32_t>(sizes.length), static_cast<int32_t>(sizes.kvHeads), static_cast<int32_t>(choice.splits),
        sizes.repeats(), sizes.queries, sizes.scale, sideOf(tensors.keys, sizes.keys),
        sideOf(tensors.values, sizes.values), tensors.q, tensors.type, tensors.bias, tensors.biasType, sizes.bias,
        sizes.isCausal, sizes.window, tensors.length, tensors.y, tensors.lse, sums,
        sums == nullptr ? nullptr : sums + numParts * sizes.width};
    cudaError_t status = cudaSuccess;
    if (sizes.width > 32 * kRUN)
    {
        status = launch<4, 32, 2, 2>(problem, choice.units, stream);
    }
    else if (choice.rows == 1)
    {
        status = launchWidth<1, 4>(problem, choice.units, stream);
    }
    else
    {
        status = choice.rows == 4 ? launchWidth<4, 3>(problem, choice.units, stream)
                                  : launchWidth<8, 2>(problem, choice.units, stream);
    }
    if (status != cudaSuccess || sums == nullptr)
    {
        return status;
    }
    auto const numRows = static_cast<unsigned>(sizes.batch * sizes.kvHeads * sizes.rows());
    return launchKernel(kvAttentionMergeKernel, dim3(numRows), dim3(kTHREADS), 0, stream, problem, choice.rows);
}

} // namespace trtc::kv_attention
