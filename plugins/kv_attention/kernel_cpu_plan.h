// KVAttention on the CPU: the tensors, how a side of the cache lies in vectors, how the work is cut, scratch memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd_math.h"
#include "kv_attention/contract.h"

namespace trtc::kv_attention
{

namespace cpu
{
constexpr int64_t kCHUNK = 512;     //!< slots whose weights are there at a time
constexpr int64_t kTILE = 64;       //!< slots whose values are summed before they join the sum of the split
constexpr int64_t kBLOCK = 4;       //!< queries that share one pass over the codes
constexpr int64_t kUNIT = 16;       //!< queries of one task
constexpr int64_t kSPLIT = 1024;    //!< slots that are worth a task of their own
constexpr int64_t kENOUGH = 128;    //!< tasks beyond which a cache is not cut further
constexpr int64_t kPIECES = 64;     //!< pieces with scratch memory of their own
constexpr float kLOWEST = -3.0e38F; //!< stands for the maximum of nothing
constexpr int32_t kPLAIN = 32;      //!< "bits" of rows that are floats already

//! One side of the cache.
struct Cache
{
    uint8_t const* code;
    void const* scale;
    void const* minimum;
    DType scaleType;
};

struct Tensors
{
    void const* q;
    DType type;
    Cache keys;
    Cache values;
    int64_t const* length;
    void const* bias;
    DType biasType;
    void* y;
    float* lse;
};

//! How the codes of one side lie in vectors: every part of a row is padded to whole vectors.
struct Side
{
    kv::Format format;
    bool isPlain; //!< groups of channels cut vectors: rows become floats first, a tile at a time
    int64_t parts;
    int64_t width;  //!< elements of a part of a row
    int64_t blocks; //!< vectors of a part
    int64_t padded; //!< floats of a row

    explicit Side(kv::Format const& given)
        : format(given)
        , isPlain(false)
        , parts(given.parts())
        , width(given.rowBytes())
        , blocks(roundUp(width, kLANES) / kLANES)
        , padded(parts * blocks * kLANES)
    {
        for (int64_t i = 0; given.byToken && i < parts * blocks; ++i)
        {
            int64_t const first = i / blocks * width + i % blocks * kLANES;
            int64_t const last = i / blocks * width + std::min((i % blocks + 1) * kLANES, width) - 1;
            isPlain = isPlain || first / given.group != last / given.group;
        }
        if (isPlain)
        {
            parts = 1;
            width = given.width;
            blocks = roundUp(width, kLANES) / kLANES;
            padded = blocks * kLANES;
        }
    }

    //! Groups of one token whose scales are applied there.
    int64_t groups() const noexcept
    {
        return format.byToken ? format.scaleColumns() : 1;
    }

    int64_t groupOf(int64_t part, int64_t block) const noexcept
    {
        return (part * width + block * kLANES) / format.group;
    }
};

struct Plan
{
    Sizes sizes;
    Side keys;
    Side values;
    int64_t unitRows; //!< queries of a task
    int64_t rowUnits; //!< tasks of one KV head, but for its splits
    int64_t units;    //!< of all KV heads
    int64_t splits;
    int64_t grain; //!< tasks of a piece
    int64_t pieces;
    int64_t partFloats; //!< what a split leaves: maxima, sums, and weighted sums of values
    int64_t scratchFloats;

    explicit Plan(Sizes const& given)
        : sizes(given)
        , keys(given.keys)
        , values(given.values)
    {
        int64_t const rows = std::max<int64_t>(sizes.rows(), 1);
        unitRows = std::min(rows, kUNIT);
        rowUnits = (rows + unitRows - 1) / unitRows;
        units = sizes.batch * sizes.kvHeads * rowUnits;
        int64_t const useful = (sizes.length + kSPLIT - 1) / kSPLIT;
        int64_t const wanted = (kENOUGH + units - 1) / std::max<int64_t>(units, 1);
        splits = std::max<int64_t>(std::min(useful, wanted), 1);
        grain = (units * splits + kPIECES - 1) / kPIECES;
        grain = std::max<int64_t>(grain, 1);
        pieces = (units * splits + grain - 1) / grain;
        partFloats = unitRows * (values.padded + 2);
        scratchFloats = Scratch(*this, nullptr).size;
    }

    //! The memory of one piece.
    struct Scratch
    {
        float* q;             //!< [unitRows, keys.padded]
        float* scaledQ;       //!< the same
        float* constants;     //!< [unitRows], what the minima of the keys add
        float* logits;        //!< [unitRows, kCHUNK], then weights
        float* bias;          //!< [kCHUNK]
        float* scale;         //!< of a tile of tokens, or of a row of channels
        float* minimum;       //!< the same
        float* turned;        //!< of a tile of tokens, by group
        float* weights;       //!< [groups, kBLOCK, kTILE], with the scales of the values in them
        float* starts;        //!< [groups, kBLOCK], what the minima of the values add
        float* rows;          //!< [kTILE, padded], of plain sides
        int32_t* keyGroups;   //!< [parts, blocks]
        int32_t* valueGroups; //!< [parts, blocks]
        int64_t size;

        Scratch(Plan const& plan, float* at)
            : size(0)
        {
            Side const& k = plan.keys;
            Side const& v = plan.values;
            int64_t const scales = std::max({kTILE * k.groups(), kTILE * v.groups(), k.padded, v.padded});
            int64_t const plain = std::max(k.isPlain ? k.padded : 0, v.isPlain ? v.padded : 0);
            take(at, q, plan.unitRows * k.padded);
            take(at, scaledQ, plan.unitRows * k.padded);
            take(at, constants, plan.unitRows);
            take(at, logits, plan.unitRows * kCHUNK);
            take(at, bias, kCHUNK);
            take(at, scale, scales);
            take(at, minimum, scales);
            take(at, turned, kTILE);
            take(at, weights, v.groups() * kBLOCK * kTILE);
            take(at, starts, v.groups() * kBLOCK);
            take(at, rows, kTILE * plain);
            take(at, keyGroups, k.parts * k.blocks);
            take(at, valueGroups, v.parts * v.blocks);
        }

    private:
        template <typename T>
        void take(float*& at, T*& pointer, int64_t count)
        {
            static_assert(sizeof(T) == sizeof(float), "one unit of memory");
            pointer = reinterpret_cast<T*>(at);
            int64_t const floats = roundUp(count, 16);
            at = at == nullptr ? nullptr : at + floats;
            size += floats;
        }
    };

    int64_t scratchStart() const noexcept
    {
        return roundUp(units * splits * partFloats, 16);
    }
};

} // namespace cpu

} // namespace trtc::kv_attention
