// How the kernels of KVAttention read one side of a packed cache: runs of codes, and the scales of their channels.
#pragma once

#include "common/cuda_device.cuh"
#include "kv_attention/kernel.cuh"

namespace trtc::kv_attention::gpu
{

constexpr int32_t kRUN = 8; // codes that a lane takes in one access

//! One side of the cache, as a kernel sees it.
struct Side
{
    uint8_t const* code;
    void const* scale;
    void const* minimum;
    bool isHalf;
    int32_t bits;  //!< of a code; floats are as codes of 8 bits, one part of D
    int32_t shift; //!< bits = 1 << shift
    int32_t rowBytes;
    int32_t partWidth; //!< codes of one part of a row
    int32_t group;
    int32_t columns;   //!< scales of a token, or of a group of tokens
    int64_t numScales; //!< of one KV head
    int64_t kvHeads;
    int64_t itemStep; //!< from the scales of an item to those of the next, in heads
    int64_t headStep; //!< the same for the KV heads of an item
    bool byToken;
    bool isWide;    //!< a run of codes is one aligned access
    DType rowType;  //!< uint8 for codes
    bool isUniform; //!< byToken: the codes of a run in one part of a row have one scale; and isWide

    __device__ float load(void const* data, uint32_t index) const
    {
        return isHalf ? toFloat(static_cast<__half const*>(data)[index]) : static_cast<float const*>(data)[index];
    }

    __device__ bool has(int32_t run, int32_t code) const
    {
        return run * bits + (code & (bits - 1)) < partWidth;
    }

    //! The channel of a code of a run: `bits` bytes hold as many codes of each part.
    __device__ int32_t channel(int32_t run, int32_t code) const
    {
        return (code >> shift) * partWidth + run * bits + (code & (bits - 1));
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
        int64_t const ofHead = head / side.kvHeads * side.itemStep + head % side.kvHeads * side.headStep;
        int64_t const scales = ofHead * side.numScales * (side.isHalf ? 2 : 4);
        return {side.code + head * length * side.rowBytes, static_cast<char const*>(side.scale) + scales,
            static_cast<char const*>(side.minimum) + scales};
    }
};

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
    for (int32_t i = 0; i < side.bits && first + i < side.partWidth; ++i)
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

} // namespace trtc::kv_attention::gpu
