// What the blocks and warps of KVAttention share: the problem, how lanes divide a tile, shared memory.
#pragma once

#include "kv_attention/packed_side.cuh"

namespace trtc::kv_attention::gpu
{

constexpr int32_t kWARPS = 4;
constexpr float kLOWEST = -3.0e38F; // stands for the maximum of nothing

//! What is added to the rows of a side.
struct Factors
{
    void const* factor; //!< [heads, slots, rank]
    void const* basis;  //!< [heads, blocks, rank, channels]
    DType type;
    int32_t rank; //!< 0: nothing is
};

struct Problem
{
    int64_t rows; //!< queries of one KV head
    int64_t rowBlocks;
    int32_t width;
    int32_t length;
    int32_t columns; //!< slots to walk over: all, or those that the index names
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
    float softcap; //!< 0: none
    Sight sight;
    int64_t const* lengths;
    bool areLengthsOfHeads;
    int64_t const* index;
    IndexSteps indexSteps;
    void* y;
    float* lse;
    float* sums;  //!< of the splits: [units, splits, kROWS, width]; null: one split, which writes y
    float* stats; //!< [units, splits, kROWS, 2], maximum and sum of the weights
    Factors keyFactors;
    Factors valueFactors;
    int32_t block; //!< slots that share a basis
    int32_t blocks;
    float const* rope;
    Turning turning;
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

//! Queries of a block where slots are chosen, or something is done to rows: as many slots of a tile as lanes.
constexpr int32_t kINDEXED_ROWS = 4;

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

//! What a block knows where something is done to rows.
template <bool kSIDES, int32_t kWIDTH>
struct SharedSides
{
};

template <int32_t kWIDTH>
struct SharedSides<true, kWIDTH>
{
    int64_t head;             //!< over all items
    int64_t table;            //!< where the table that turns its keys starts
    int16_t partners[kWIDTH]; //!< of codes: those of the channels that theirs are turned with
};

template <typename S, int32_t kROWS, int32_t kRUNS, bool kSIDES>
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
    int32_t first[kROWS][kSPANS]; //!< of the slots that each query sees
    int32_t last[kROWS][kSPANS];
    int64_t const* index;                                          //!< of the KV head
    int32_t written;                                               //!< slots in use
    int32_t chosen[kWARPS][kROWS == kINDEXED_ROWS ? S::kTILE : 1]; //!< slots of a tile; ~slot: of another, for none
    SharedSides<kSIDES, S::kWIDTH> sides;
};

//! Where the codes of a slot start.
__device__ inline uint32_t rowAt(Side const& side, int32_t slot)
{
    return static_cast<uint32_t>(slot) * static_cast<uint32_t>(side.rowBytes);
}

//! The run, or for lanes beyond the row one that is there: nobody reads what they make of it.
__device__ inline int32_t thereOf(Side const& side, int32_t run)
{
    return (run << side.shift) < side.partWidth ? run : 0;
}

//! Leaves the slots of a warp's tile in shared memory, one for each lane; false if none of them is in use. For an entry
//! that is none, a slot is read that another names.
template <typename S, int32_t kROWS, int32_t kRUNS, bool kSIDES>
__device__ bool chooseSlots(
    Shared<S, kROWS, kRUNS, kSIDES>& shared, int32_t warp, int32_t lane, int32_t start, int32_t end)
{
    static_assert(S::kTILE <= static_cast<int32_t>(kWARP_SIZE), "a lane for each slot");
    bool const isPlace = lane < S::kTILE && start + lane < end;
    int64_t const given = isPlace ? shared.index[start + lane] : -1;
    bool const isSlot = given >= 0 && given < shared.written;
    uint32_t const slots = __ballot_sync(kFULL_MASK, isSlot ? 1 : 0);
    if (slots == 0U)
    {
        return false;
    }
    auto const slot = static_cast<int32_t>(isSlot ? given : 0);
    int32_t const other = __shfl_sync(kFULL_MASK, slot, __ffs(static_cast<int>(slots)) - 1);
    if (lane < S::kTILE)
    {
        shared.chosen[warp][lane] = isSlot ? slot : ~other;
    }
    __syncwarp();
    return true;
}

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

} // namespace trtc::kv_attention::gpu
