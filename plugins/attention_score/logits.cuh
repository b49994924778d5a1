// What the kernels of AttentionScore share: the problem, logits of a tile, which keys an item has and a row sees.
#pragma once

#include "attention_score/kernel.cuh"
#include "common/cuda_device.cuh"

namespace trtc::attention_score::gpu
{

constexpr int32_t kSIDE = 16; // threads of a block along rows, and along keys
constexpr int32_t kTHREADS = kSIDE * kSIDE;
constexpr int32_t kKEYS = 4; // of a thread
constexpr int32_t kTILE_KEYS = kSIDE * kKEYS;
constexpr int32_t kDEPTH = 32;   // values of D in a tile
constexpr int32_t kTOGETHER = 8; // values of D that a thread loads at once
constexpr int32_t kPAD = 4;      // floats between rows in shared memory, against conflicts of banks

static_assert(kTILE_KEYS * kDEPTH == kTHREADS * kTOGETHER, "each thread loads one piece of the keys");

struct Problem
{
    int32_t heads;
    int32_t headsOfGroup;
    int32_t numRows; //!< all
    int32_t firstRow;
    int32_t usedRows;
    int32_t width;
    int32_t numKeys; //!< all
    int32_t firstKey;
    int32_t usedKeys;
    int32_t start; //!< of the span, among all keys
    int32_t span;
    int32_t rowTiles;
    int32_t shareKeys; //!< a multiple of kTILE_KEYS
    int32_t shares;
    float scale;
    bool causal;
    bool isMaximum;
    bool isMean;
    bool hasSoftmax;
    Normalize normalize;
    DType qType;
    DType kType;
    DType biasType;
    bool qIsWide; //!< rows may be read by 16 bytes
    bool kIsWide;
    void const* q;
    void const* k;
    void const* bias;
    int64_t const* position;
    int64_t positionItem;  //!< distance between items, 0 where it is broadcast
    int64_t const* length; //!< null: every item has all keys
    int64_t lengthItem;
    bool isStopFromEnd;
    bool isOverAll;   //!< the softmax
    int64_t biasItem; //!< distances in the bias, 0 where it is broadcast
    int64_t biasHead;
    int64_t biasRow;
    int64_t biasKey;
};

template <int32_t kROWS>
struct Tiles
{
    alignas(16) float q[kDEPTH][kSIDE * kROWS + kPAD];
    alignas(16) float k[kDEPTH][kTILE_KEYS + kPAD];
};

template <typename T>
__device__ void loadTyped(T const* from, bool isWide, int32_t count, float* to)
{
    constexpr int32_t kWIDE = static_cast<int32_t>(16U / sizeof(T));
    if (isWide && count >= kTOGETHER)
    {
#pragma unroll
        for (int32_t i = 0; i < kTOGETHER; i += kWIDE)
        {
            Pack<T, kWIDE> const group = *reinterpret_cast<Pack<T, kWIDE> const*>(from + i);
#pragma unroll
            for (int32_t j = 0; j < kWIDE; ++j)
            {
                to[i + j] = toFloat(group.values[j]);
            }
        }
        return;
    }
#pragma unroll
    for (int32_t i = 0; i < kTOGETHER; ++i)
    {
        to[i] = i < count ? toFloat(from[i]) : 0.0F;
    }
}

//! kTOGETHER values from `index` on, of which `count` are there; the others are 0.
__device__ inline void loadValues(void const* data, DType dtype, int64_t index, bool isWide, int32_t count, float* to)
{
    switch (dtype)
    {
    case DType::kFLOAT16: return loadTyped(static_cast<__half const*>(data) + index, isWide, count, to);
    case DType::kBFLOAT16: return loadTyped(static_cast<__nv_bfloat16 const*>(data) + index, isWide, count, to);
    default: return loadTyped(static_cast<float const*>(data) + index, isWide, count, to);
    }
}

//! Logits of kROWS rows by kKEYS keys of this thread, with the bias: of rows from `row` on, among the used ones, and of
//! keys from `key` on, among all.
template <int32_t kROWS>
__device__ void computeLogits(Problem const& problem, Tiles<kROWS>& tiles, int64_t item, int32_t head, int32_t row,
    int32_t key, float (&logits)[kROWS][kKEYS])
{
    using RowPack = Pack<float, kROWS>;
    using KeyPack = Pack<float, kKEYS>;
    constexpr int32_t kTILE_ROWS = kSIDE * kROWS;
    auto const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const mine = thread / kSIDE * kROWS;
    int32_t const own = thread % kSIDE * kKEYS;
    int64_t const qStart = ((item * problem.heads + head) * problem.numRows + problem.firstRow + row) * problem.width;
    int64_t const group = (item * problem.heads + head) / problem.headsOfGroup;
    int64_t const kStart = (group * problem.numKeys + key) * problem.width;
    int32_t const rowsThere = min(kTILE_ROWS, problem.usedRows - row);
    int32_t const keysThere = min(kTILE_KEYS, problem.firstKey + problem.usedKeys - key);
#pragma unroll
    for (int32_t i = 0; i < kROWS; ++i)
    {
#pragma unroll
        for (int32_t j = 0; j < kKEYS; ++j)
        {
            logits[i][j] = 0.0F;
        }
    }
    for (int32_t depth = 0; depth < problem.width; depth += kDEPTH)
    {
        float values[kTOGETHER];
        __syncthreads(); // nobody reads the tile before any more
        {
            int32_t const inTile = thread % kTILE_KEYS;
            int32_t const at = thread / kTILE_KEYS * kTOGETHER;
            int32_t const count = inTile < keysThere ? problem.width - depth - at : 0;
            loadValues(problem.k, problem.kType, kStart + static_cast<int64_t>(inTile) * problem.width + depth + at,
                problem.kIsWide, count, values);
#pragma unroll
            for (int32_t i = 0; i < kTOGETHER; ++i)
            {
                tiles.k[at + i][inTile] = values[i];
            }
        }
        if (thread < kTILE_ROWS * (kDEPTH / kTOGETHER))
        {
            int32_t const inTile = thread % kTILE_ROWS;
            int32_t const at = thread / kTILE_ROWS * kTOGETHER;
            int32_t const count = inTile < rowsThere ? problem.width - depth - at : 0;
            loadValues(problem.q, problem.qType, qStart + static_cast<int64_t>(inTile) * problem.width + depth + at,
                problem.qIsWide, count, values);
#pragma unroll
            for (int32_t i = 0; i < kTOGETHER; ++i)
            {
                tiles.q[at + i][inTile] = values[i] * problem.scale;
            }
        }
        __syncthreads();
#pragma unroll 8
        for (int32_t d = 0; d < kDEPTH; ++d)
        {
            RowPack const left = *reinterpret_cast<RowPack const*>(&tiles.q[d][mine]);
            KeyPack const right = *reinterpret_cast<KeyPack const*>(&tiles.k[d][own]);
#pragma unroll
            for (int32_t i = 0; i < kROWS; ++i)
            {
#pragma unroll
                for (int32_t j = 0; j < kKEYS; ++j)
                {
                    logits[i][j] = fmaf(left.values[i], right.values[j], logits[i][j]);
                }
            }
        }
    }
    int64_t const biasStart = item * problem.biasItem + head * problem.biasHead;
#pragma unroll
    for (int32_t i = 0; i < kROWS; ++i)
    {
#pragma unroll
        for (int32_t j = 0; j < kKEYS; ++j)
        {
            if (mine + i < rowsThere && own + j < keysThere)
            {
                int64_t const at = biasStart + (problem.firstRow + row + mine + i) * problem.biasRow
                    + (key + own + j) * problem.biasKey;
                logits[i][j] += loadFloat(problem.bias, problem.biasType, at);
            }
        }
    }
}

//! Keys that an item has.
__device__ inline int32_t ownKeys(Problem const& problem, int64_t item)
{
    if (problem.length == nullptr)
    {
        return problem.numKeys;
    }
    int64_t const given = problem.length[item * problem.lengthItem];
    return given < 0 ? 0 : given < problem.numKeys ? static_cast<int32_t>(given) : problem.numKeys;
}

//! Where the span of an item that has `keys` ends; it may be before the start.
__device__ inline int32_t ownStop(Problem const& problem, int32_t keys)
{
    int32_t const stop = problem.start + problem.span;
    return problem.isStopFromEnd ? stop - problem.numKeys + keys : min(stop, keys);
}

//! The last key that a used row sees.
__device__ inline int32_t lastSeen(Problem const& problem, int64_t item, int32_t row)
{
    int32_t const keys = ownKeys(problem, item);
    int32_t const last = (problem.isOverAll ? keys : ownStop(problem, keys)) - 1;
    if (!problem.causal)
    {
        return last;
    }
    int64_t const position = problem.position[item * problem.positionItem + problem.firstRow + row];
    return static_cast<int32_t>(position < -1 ? -1 : position > last ? last : position);
}

} // namespace trtc::attention_score::gpu
