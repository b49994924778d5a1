// KVAttention on the CPU: codes become numbers in registers, for four queries at a time, and scales never meet codes
// where they can be moved out of the inner loops:
// - keys with groups of tokens: the scale goes into the query once for a group, the minimum into one constant;
// - values with groups of channels: the scale goes into the weights, the minimum into where a tile's sum starts;
// - values with groups of tokens: the scale is applied to the sum over the group's tokens.
// The cache of a head is cut into splits, which the threads share, by sizes alone; a split keeps running maxima over
// chunks, and splits are merged in order by the log of their sums.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/half.h"
#include "common/parallel.h"
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

//! Vectors of one row: codes of kBITS bits, or floats.
template <int32_t kBITS>
struct Row
{
    static constexpr int32_t kPARTS = partsOf(kBITS);
    using Element = uint8_t;

    IntVector bytes;

    //! The vector at `at` of a row of `width` bytes; kWHOLE if the row does not end inside of it.
    template <bool kWHOLE>
    static Row at(uint8_t const* row, int64_t at, int64_t width)
    {
        if constexpr (kWHOLE)
        {
            return {loadBytes(row + at)};
        }
        else
        {
            return {loadBytes(row + at, width - at)};
        }
    }

    FloatVector part(int32_t index) const
    {
        IntVector codes = bytes >> (index * kBITS);
        if (index + 1 < kPARTS)
        {
            codes &= static_cast<int32_t>(largestCode(kBITS));
        }
        return __builtin_convertvector(codes, FloatVector);
    }
};

template <>
struct Row<kPLAIN>
{
    static constexpr int32_t kPARTS = 1;
    using Element = float;

    FloatVector values;

    template <bool kWHOLE>
    static Row at(float const* row, int64_t at, int64_t /*width*/)
    {
        return {load(row + at)};
    }

    FloatVector part(int32_t /*index*/) const
    {
        return values;
    }
};

//! Calls body(block, isWhole) for the vectors of a part.
template <typename Body>
inline __attribute__((always_inline)) void forVectors(Side const& side, Body const& body)
{
    int64_t const whole = side.width / kLANES;
    for (int64_t block = 0; block < whole; ++block)
    {
        body(block, std::true_type{});
    }
    if (whole < side.blocks)
    {
        body(whole, std::false_type{});
    }
}

//! Scales of each token, as they lie in memory: [count, groups].
struct TokenScales
{
    float const* scale;
    float const* minimum;
    int64_t groups;
    int32_t const* groupOf; //!< of [part, block]
};

//! Products of kROWS queries with `count` tokens. A token's scales are applied if kSCALED; `constants` are added.
template <int32_t kBITS, int32_t kROWS, bool kSCALED>
void dot(Side const& side, typename Row<kBITS>::Element const* rows, int64_t step, int64_t count,
    TokenScales const& scales, float const* q, float const* constants, float* logits)
{
    constexpr int32_t kTOKENS = kLANES / kROWS;
    constexpr int32_t kPARTS = Row<kBITS>::kPARTS;
    for (int64_t start = 0; start < count; start += kTOKENS)
    {
        FloatVector sums[kLANES] = {};
        int64_t tokens[kTOKENS]; // behind the last one it is taken again
#pragma GCC unroll 16
        for (int32_t t = 0; t < kTOKENS; ++t)
        {
            tokens[t] = std::min(start + t, count - 1);
        }
        auto const addBlock = [&](int64_t block, auto isWhole) __attribute__((always_inline))
        {
            FloatVector query[kPARTS][kROWS];
#pragma GCC unroll 4
            for (int32_t part = 0; part < kPARTS; ++part)
            {
#pragma GCC unroll 4
                for (int32_t row = 0; row < kROWS; ++row)
                {
                    query[part][row] = load(q + row * side.padded + (part * side.blocks + block) * kLANES);
                }
            }
#pragma GCC unroll 16
            for (int32_t t = 0; t < kTOKENS; ++t)
            {
                auto const codes = Row<kBITS>::template at<decltype(isWhole)::value>(
                    rows + tokens[t] * step, block * kLANES, side.width);
#pragma GCC unroll 4
                for (int32_t part = 0; part < kPARTS; ++part)
                {
                    FloatVector value = codes.part(part);
                    if constexpr (kSCALED)
                    {
                        int64_t const at = tokens[t] * scales.groups + scales.groupOf[part * side.blocks + block];
                        value = value * scales.scale[at] + scales.minimum[at];
                    }
#pragma GCC unroll 4
                    for (int32_t row = 0; row < kROWS; ++row)
                    {
                        sums[row * kTOKENS + t] += value * query[part][row];
                    }
                }
            }
        };
        forVectors(side, addBlock);
        FloatVector const found = sumsOf(sums);
        int64_t const numStored = std::min<int64_t>(kTOKENS, count - start);
#pragma GCC unroll 4
        for (int32_t row = 0; row < kROWS; ++row)
        {
            for (int64_t t = 0; t < numStored; ++t)
            {
                logits[row * kCHUNK + start + t] = found[row * kTOKENS + static_cast<int32_t>(t)] + constants[row];
            }
        }
    }
}

//! What `accumulate` multiplies rows with: weight of group g, query r, token t is at g * ofGroup + r * ofRow + t.
struct Weights
{
    float const* at;
    int64_t ofGroup;
    int64_t ofRow;
    int32_t const* groupOf; //!< of [part, block]
    float const* starts;    //!< [groups, kROWS], where sums start; null: at 0
    float const* scale;     //!< of the channels, for the sums; null: 1
    float const* minimum;
    float const* totals; //!< [kROWS], sums of the weights, for the minima
};

//! Adds the weighted rows of `count` tokens to `sums`, kROWS rows of side.padded floats.
template <int32_t kBITS, int32_t kROWS>
void accumulate(Side const& side, typename Row<kBITS>::Element const* rows, int64_t step, int64_t count,
    Weights const& weights, float* sums)
{
    constexpr int32_t kPARTS = Row<kBITS>::kPARTS;
    // Enough sums that do not wait for each other.
    constexpr int32_t kCHAINS = kPARTS * kROWS >= 8 ? 1 : 8 / (kPARTS * kROWS);
    auto const addBlock = [&](int64_t block, auto isWhole) __attribute__((always_inline))
    {
        FloatVector chains[kCHAINS][kPARTS][kROWS] = {};
        float const* ofPart[kPARTS];
#pragma GCC unroll 4
        for (int32_t part = 0; part < kPARTS; ++part)
        {
            int64_t const group = weights.groupOf == nullptr ? 0 : weights.groupOf[part * side.blocks + block];
            ofPart[part] = weights.at + group * weights.ofGroup;
#pragma GCC unroll 4
            for (int32_t row = 0; row < kROWS; ++row)
            {
                float const start = weights.starts == nullptr ? 0.0F : weights.starts[group * kROWS + row];
                chains[0][part][row] = broadcast(start);
            }
        }
        auto const addToken = [&](int64_t token, int32_t chain) __attribute__((always_inline))
        {
            auto const codes =
                Row<kBITS>::template at<decltype(isWhole)::value>(rows + token * step, block * kLANES, side.width);
#pragma GCC unroll 4
            for (int32_t part = 0; part < kPARTS; ++part)
            {
                FloatVector const value = codes.part(part);
#pragma GCC unroll 4
                for (int32_t row = 0; row < kROWS; ++row)
                {
                    chains[chain][part][row] += value * ofPart[part][row * weights.ofRow + token];
                }
            }
        };
        int64_t token = 0;
        for (; token + kCHAINS <= count; token += kCHAINS)
        {
#pragma GCC unroll 8
            for (int32_t chain = 0; chain < kCHAINS; ++chain)
            {
                addToken(token + chain, chain);
            }
        }
        for (; token < count; ++token)
        {
            addToken(token, 0);
        }
#pragma GCC unroll 4
        for (int32_t part = 0; part < kPARTS; ++part)
        {
            int64_t const at = (part * side.blocks + block) * kLANES;
#pragma GCC unroll 4
            for (int32_t row = 0; row < kROWS; ++row)
            {
                FloatVector sum = chains[0][part][row];
#pragma GCC unroll 8
                for (int32_t chain = 1; chain < kCHAINS; ++chain)
                {
                    sum += chains[chain][part][row];
                }
                if (weights.scale != nullptr)
                {
                    sum = sum * load(weights.scale + at) + load(weights.minimum + at) * weights.totals[row];
                }
                float* const to = sums + row * side.padded + at;
                store(to, load(to) + sum);
            }
        }
    };
    forVectors(side, addBlock);
}

//! Calls body(row, numRows), the number as a constant, for blocks of 4, 2 and 1 queries that make up `numRows`.
template <typename Body>
void forBlocks(int64_t numRows, Body const& body)
{
    int64_t row = 0;
    for (; row + 4 <= numRows; row += 4)
    {
        body(row, std::integral_constant<int32_t, 4>{});
    }
    for (; row + 2 <= numRows; row += 2)
    {
        body(row, std::integral_constant<int32_t, 2>{});
    }
    if (row < numRows)
    {
        body(row, std::integral_constant<int32_t, 1>{});
    }
}

template <typename Body>
void dispatchBits(int32_t bits, Body const& body)
{
    switch (bits)
    {
    case 2: return body(std::integral_constant<int32_t, 2>{});
    case 4: return body(std::integral_constant<int32_t, 4>{});
    default: return body(std::integral_constant<int32_t, 8>{});
    }
}

inline void loadScales(float* to, void const* from, DType type, int64_t offset, int64_t count)
{
    if (type == DType::kFLOAT16)
    {
        toFloats(to, static_cast<Half const*>(from) + offset, count);
    }
    else
    {
        std::copy_n(static_cast<float const*>(from) + offset, count, to);
    }
}

//! One row of channels as the parts of a side lie in vectors. What pads it stays as it is.
inline void loadRow(Side const& side, float* to, void const* from, DType type, int64_t offset)
{
    dispatchFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            for (int64_t part = 0; part < side.parts; ++part)
            {
                toFloats(to + part * side.blocks * kLANES, static_cast<T const*>(from) + offset + part * side.width,
                    side.width);
            }
        });
}

//! One split of the queries of one task.
class Task
{
public:
    Task(Plan const& plan, Tensors const& tensors, int64_t index, float* workspace, int64_t piece)
        : mPlan(plan)
        , mSizes(plan.sizes)
        , mTensors(tensors)
        , mScratch(plan, workspace + plan.scratchStart() + piece * plan.scratchFloats)
    {
        int64_t const unit = index / plan.splits;
        mHead = unit / plan.rowUnits;
        mFirstRow = unit % plan.rowUnits * plan.unitRows;
        mNumRows = std::min(plan.unitRows, mSizes.rows() - mFirstRow);
        mHighest = workspace + index * plan.partFloats;
        mTotal = mHighest + plan.unitRows;
        mSums = mTotal + plan.unitRows;
        std::fill_n(mHighest, mNumRows, -std::numeric_limits<float>::infinity());
        std::fill_n(mTotal, mNumRows, 0.0F);
        std::fill_n(mSums, mNumRows * plan.values.padded, 0.0F);
        int64_t low = mSizes.length;
        int64_t high = 0;
        for (int64_t row = 0; row < mNumRows; ++row)
        {
            Span const span = spanOf(row);
            low = span.isEmpty() ? low : std::min(low, span.first);
            high = span.isEmpty() ? high : std::max(high, span.last);
        }
        int64_t const share = roundUp((std::max<int64_t>(high - low, 0) + plan.splits - 1) / plan.splits, kTILE);
        mBegin = low + index % plan.splits * share;
        mEnd = std::min(mBegin + share, high);
    }

    void run()
    {
        if (mBegin >= mEnd)
        {
            return;
        }
        loadQueries();
        listGroups(mPlan.keys, mScratch.keyGroups);
        listGroups(mPlan.values, mScratch.valueGroups);
        for (int64_t begin = mBegin; begin < mEnd; begin += kCHUNK)
        {
            int64_t const count = std::min(kCHUNK, mEnd - begin);
            multiplyKeys(begin, count);
            for (int64_t row = 0; row < mNumRows; ++row)
            {
                weigh(row, begin, count);
            }
            addValues(begin, count);
        }
    }

private:
    int64_t item() const
    {
        return mHead / mSizes.kvHeads;
    }

    Span spanOf(int64_t row) const
    {
        return mSizes.span(mTensors.length[item()], (mFirstRow + row) % mSizes.queries);
    }

    void loadQueries()
    {
        Side const& side = mPlan.keys;
        std::fill_n(mScratch.q, mNumRows * side.padded, 0.0F);
        for (int64_t row = 0; row < mNumRows; ++row)
        {
            // Rows of a KV head follow each other in q.
            int64_t const at = (mHead * mSizes.rows() + mFirstRow + row) * mSizes.width;
            loadRow(side, mScratch.q + row * side.padded, mTensors.q, mTensors.type, at);
        }
        std::fill_n(mScratch.constants, mNumRows, 0.0F);
    }

    static void listGroups(Side const& side, int32_t* groups)
    {
        for (int64_t i = 0; side.format.byToken && !side.isPlain && i < side.parts * side.blocks; ++i)
        {
            groups[i] = static_cast<int32_t>(side.groupOf(i / side.blocks, i % side.blocks));
        }
    }

    uint8_t const* codes(Cache const& cache, Side const& side, int64_t slot) const
    {
        return cache.code + (mHead * mSizes.length + slot) * side.format.rowBytes();
    }

    //! The scales of `count` tokens from `slot`, as they lie in memory.
    void loadTokenScales(Cache const& cache, Side const& side, int64_t slot, int64_t count)
    {
        int64_t const columns = side.format.scaleColumns();
        int64_t const offset = mHead * side.format.numScales() + slot * columns;
        loadScales(mScratch.scale, cache.scale, cache.scaleType, offset, count * columns);
        loadScales(mScratch.minimum, cache.minimum, cache.scaleType, offset, count * columns);
    }

    //! The scales of the group of tokens that `slot` is in, by channel; zero where vectors are padded.
    void loadChannelScales(Cache const& cache, Side const& side, int64_t slot)
    {
        int64_t const offset = mHead * side.format.numScales() + slot / side.format.group * side.format.scaleColumns();
        std::fill_n(mScratch.scale, side.padded, 0.0F);
        std::fill_n(mScratch.minimum, side.padded, 0.0F);
        loadRow(side, mScratch.scale, cache.scale, cache.scaleType, offset);
        loadRow(side, mScratch.minimum, cache.minimum, cache.scaleType, offset);
    }

    //! A tile as floats, for groups that cut vectors.
    void makePlain(Cache const& cache, Side const& side, int64_t slot, int64_t count)
    {
        kv::Format const& format = side.format;
        dispatchFloat(cache.scaleType,
            [&](auto tag)
            {
                using T = typename decltype(tag)::Type;
                int64_t const columns = format.scaleColumns();
                int64_t const offset = mHead * format.numScales() + slot * columns;
                auto const* scale = static_cast<T const*>(cache.scale) + offset;
                auto const* minimum = static_cast<T const*>(cache.minimum) + offset;
                for (int64_t token = 0; token < count; ++token)
                {
                    uint8_t const* const row = codes(cache, side, slot + token);
                    float* const to = mScratch.rows + token * side.padded;
                    std::fill(to + format.width, to + side.padded, 0.0F);
                    for (int64_t channel = 0; channel < format.width; ++channel)
                    {
                        int64_t const part = channel / format.rowBytes();
                        uint32_t const code =
                            codeOf(row[channel % format.rowBytes()], static_cast<int32_t>(part), format.bits);
                        int64_t const group = channel / format.group;
                        to[channel] = static_cast<float>(code) * toFloat(scale[group]) + toFloat(minimum[group]);
                    }
                    scale += columns;
                    minimum += columns;
                }
            });
    }

    //! The query with the scales of the keys in it, and what their minima add.
    void scaleQueries()
    {
        Side const& side = mPlan.keys;
        for (int64_t row = 0; row < mNumRows; ++row)
        {
            FloatVector sum{};
            for (int64_t i = 0; i < side.padded; i += kLANES)
            {
                FloatVector const query = load(mScratch.q + row * side.padded + i);
                store(mScratch.scaledQ + row * side.padded + i, query * load(mScratch.scale + i));
                sum += query * load(mScratch.minimum + i);
            }
            mScratch.constants[row] = sumOf(sum);
        }
    }

    void multiplyKeys(int64_t begin, int64_t count)
    {
        Side const& side = mPlan.keys;
        Cache const& cache = mTensors.keys;
        int64_t const rowBytes = side.format.rowBytes();
        int64_t length = 0;
        for (int64_t at = 0; at < count; at += length)
        {
            int64_t const slot = begin + at;
            length = std::min(count - at, kTILE);
            if (!side.format.byToken)
            {
                length = std::min(count - at, side.format.group - slot % side.format.group);
                if (at == 0 || slot % side.format.group == 0)
                {
                    loadChannelScales(cache, side, slot);
                    scaleQueries();
                }
            }
            else if (side.isPlain)
            {
                makePlain(cache, side, slot, length);
            }
            else
            {
                loadTokenScales(cache, side, slot, length);
            }
            TokenScales const scales{mScratch.scale, mScratch.minimum, side.groups(), mScratch.keyGroups};
            forBlocks(mNumRows,
                [&](int64_t row, auto numRows)
                {
                    constexpr int32_t kROWS = decltype(numRows)::value;
                    float const* const q = (side.format.byToken ? mScratch.q : mScratch.scaledQ) + row * side.padded;
                    float const* const constants = mScratch.constants + row;
                    float* const to = mScratch.logits + row * kCHUNK + at;
                    if (side.isPlain)
                    {
                        dot<kPLAIN, kROWS, false>(side, mScratch.rows, side.padded, length, scales, q, constants, to);
                        return;
                    }
                    dispatchBits(side.format.bits,
                        [&](auto bits)
                        {
                            constexpr int32_t kBITS = decltype(bits)::value;
                            auto const function =
                                side.format.byToken ? &dot<kBITS, kROWS, true> : &dot<kBITS, kROWS, false>;
                            function(side, codes(cache, side, slot), rowBytes, length, scales, q, constants, to);
                        });
                });
        }
    }

    //! Turns the products of one query into weights, relative to the largest so far.
    void weigh(int64_t row, int64_t begin, int64_t count)
    {
        float* const weights = mScratch.logits + row * kCHUNK;
        Span const span = spanOf(row);
        float const nothing = -std::numeric_limits<float>::infinity();
        std::fill(weights + count, weights + roundUp(count, kLANES), nothing);
        int64_t const full = roundUp(count, kLANES);
        int64_t const head = mHead % mSizes.kvHeads * mSizes.repeats() + (mFirstRow + row) / mSizes.queries;
        int64_t const offset = mSizes.bias.offset(item(), head, (mFirstRow + row) % mSizes.queries);
        dispatchFloat(mTensors.biasType,
            [&](auto tag)
            {
                using T = typename decltype(tag)::Type;
                auto const* const bias = static_cast<T const*>(mTensors.bias) + offset;
                if (mSizes.bias.slot == 0)
                {
                    std::fill_n(mScratch.bias, full, toFloat(*bias));
                }
                else
                {
                    toFloats(mScratch.bias, bias + begin, count);
                    std::fill(mScratch.bias + count, mScratch.bias + full, 0.0F);
                }
            });
        FloatVector highest = broadcast(nothing);
        for (int64_t i = 0; i < full; i += kLANES)
        {
            FloatVector const logit = load(weights + i) * mSizes.scale + load(mScratch.bias + i);
            store(weights + i, logit);
        }
        // Slots that this query does not see.
        std::fill_n(weights, std::clamp<int64_t>(span.first - begin, 0, count), nothing);
        int64_t const seen = std::clamp<int64_t>(span.last - begin, 0, count);
        std::fill(weights + seen, weights + count, nothing);
        for (int64_t i = 0; i < full; i += kLANES)
        {
            highest = larger(load(weights + i), highest);
        }
        float const before = mHighest[row];
        float const now = std::max(before, largestOf(highest));
        float const reference = std::max(now, kLOWEST);
        FloatVector sum{};
        for (int64_t i = 0; i < full; i += kLANES)
        {
            FloatVector const weight = exponential(load(weights + i) - reference);
            store(weights + i, weight);
            sum += weight;
        }
        if (now > before)
        {
            float const shrink = std::exp(before - reference);
            float* const sums = mSums + row * mPlan.values.padded;
            for (int64_t i = 0; i < mPlan.values.padded; i += kLANES)
            {
                store(sums + i, load(sums + i) * shrink);
            }
            mTotal[row] *= shrink;
            mHighest[row] = now;
        }
        mTotal[row] += sumOf(sum);
    }

    void addValues(int64_t begin, int64_t count)
    {
        Side const& side = mPlan.values;
        Cache const& cache = mTensors.values;
        int64_t const rowBytes = side.format.rowBytes();
        int64_t length = 0;
        for (int64_t at = 0; at < count; at += length)
        {
            int64_t const slot = begin + at;
            length = std::min(count - at, kTILE);
            if (!side.format.byToken)
            {
                length = std::min(length, side.format.group - slot % side.format.group);
                if (at == 0 || slot % side.format.group == 0)
                {
                    loadChannelScales(cache, side, slot);
                }
            }
            else if (side.isPlain)
            {
                makePlain(cache, side, slot, length);
            }
            else
            {
                loadTokenScales(cache, side, slot, length);
            }
            forBlocks(mNumRows,
                [&](int64_t row, auto numRows)
                {
                    constexpr int32_t kROWS = decltype(numRows)::value;
                    float* const sums = mSums + row * side.padded;
                    Weights const weights = weightsOf<kROWS>(row, at, length);
                    if (side.isPlain)
                    {
                        accumulate<kPLAIN, kROWS>(side, mScratch.rows, side.padded, length, weights, sums);
                        return;
                    }
                    dispatchBits(side.format.bits,
                        [&](auto bits)
                        {
                            constexpr int32_t kBITS = decltype(bits)::value;
                            accumulate<kBITS, kROWS>(side, codes(cache, side, slot), rowBytes, length, weights, sums);
                        });
                });
        }
    }

    //! The weights of kROWS queries for a tile, with the scales of the values in them where they can be.
    template <int32_t kROWS>
    Weights weightsOf(int64_t row, int64_t at, int64_t count)
    {
        Side const& side = mPlan.values;
        float const* const plain = mScratch.logits + row * kCHUNK + at;
        if (side.isPlain)
        {
            return {plain, 0, kCHUNK, nullptr, nullptr, nullptr, nullptr, nullptr};
        }
        if (!side.format.byToken)
        {
            for (int32_t i = 0; i < kROWS; ++i)
            {
                float total = 0.0F;
                for (int64_t token = 0; token < count; ++token)
                {
                    total += plain[i * kCHUNK + token];
                }
                mScratch.starts[i] = total;
            }
            return {plain, 0, kCHUNK, nullptr, nullptr, mScratch.scale, mScratch.minimum, mScratch.starts};
        }
        int64_t const groups = side.groups();
        int64_t const full = roundUp(count, kLANES);
        for (int64_t group = 0; group < groups; ++group)
        {
            turn(mScratch.minimum + group, groups, count, full);
            for (int32_t i = 0; i < kROWS; ++i)
            {
                FloatVector sum{};
                for (int64_t token = 0; token < full; token += kLANES)
                {
                    sum += load(plain + i * kCHUNK + token) * load(mScratch.turned + token);
                }
                mScratch.starts[group * kROWS + i] = sumOf(sum);
            }
            turn(mScratch.scale + group, groups, count, full);
            for (int32_t i = 0; i < kROWS; ++i)
            {
                float* const to = mScratch.weights + (group * kROWS + i) * kTILE;
                for (int64_t token = 0; token < full; token += kLANES)
                {
                    store(to + token, load(plain + i * kCHUNK + token) * load(mScratch.turned + token));
                }
            }
        }
        return {
            mScratch.weights, kROWS * kTILE, kTILE, mScratch.valueGroups, mScratch.starts, nullptr, nullptr, nullptr};
    }

    //! Every `step`-th number, then zeros.
    void turn(float const* from, int64_t step, int64_t count, int64_t full)
    {
        for (int64_t i = 0; i < count; ++i)
        {
            mScratch.turned[i] = from[i * step];
        }
        std::fill(mScratch.turned + count, mScratch.turned + full, 0.0F);
    }

    Plan const& mPlan;
    Sizes const& mSizes;
    Tensors const& mTensors;
    Plan::Scratch mScratch;
    int64_t mHead;     //!< of the keys and values, over all items
    int64_t mFirstRow; //!< of this task, among those of the KV head
    int64_t mNumRows;
    int64_t mBegin; //!< slots of this split
    int64_t mEnd;
    float* mHighest;
    float* mTotal;
    float* mSums;
};

//! Merges the splits of one query in order, and writes it.
template <typename T>
void writeRow(
    Plan const& plan, int64_t unit, int64_t row, int64_t outRow, float const* parts, float* sums, T* y, float* lse)
{
    Side const& side = plan.values;
    float const* const first = parts + unit * plan.splits * plan.partFloats;
    float highest = kLOWEST;
    for (int64_t split = 0; split < plan.splits; ++split)
    {
        highest = std::max(highest, first[split * plan.partFloats + row]);
    }
    float total = 0.0F;
    std::fill_n(sums, side.padded, 0.0F);
    for (int64_t split = 0; split < plan.splits; ++split)
    {
        float const* const part = first + split * plan.partFloats;
        float const weight = std::exp(part[row] - highest);
        total += weight * part[plan.unitRows + row];
        float const* const from = part + 2 * plan.unitRows + row * side.padded;
        for (int64_t i = 0; weight > 0.0F && i < side.padded; i += kLANES)
        {
            store(sums + i, load(sums + i) + load(from + i) * weight);
        }
    }
    float const divisor = total > 0.0F ? total : 1.0F;
    for (int64_t i = 0; i < side.padded; i += kLANES)
    {
        store(sums + i, load(sums + i) / divisor);
    }
    for (int64_t part = 0; part < side.parts; ++part)
    {
        fromFloats(y + outRow * plan.sizes.width + part * side.width, sums + part * side.blocks * kLANES, side.width);
    }
    lse[outRow] = total > 0.0F ? highest + std::log(total) : -std::numeric_limits<float>::infinity();
}
} // namespace cpu

inline size_t cpuWorkspaceBytes(Sizes const& sizes)
{
    cpu::Plan const plan(sizes);
    return static_cast<size_t>(plan.scratchStart() + plan.pieces * plan.scratchFloats) * sizeof(float);
}

//! Sizes have been checked. `workspace` is aligned to 64 bytes.
inline void attendOverCache(
    Sizes const& sizes, cpu::Tensors const& tensors, void* workspace, ParallelFor const& parallelFor)
{
    cpu::Plan const plan(sizes);
    auto* const memory = static_cast<float*>(workspace);
    parallelFor(plan.units * plan.splits, plan.grain,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t index = begin; index < end; ++index)
            {
                cpu::Task(plan, tensors, index, memory, begin / plan.grain).run();
            }
        });
    int64_t const rows = sizes.rows();
    int64_t const unitGrain = (plan.units + plan.pieces - 1) / std::max<int64_t>(plan.pieces, 1);
    parallelFor(plan.units, unitGrain,
        [&](int64_t begin, int64_t end)
        {
            float* const sums =
                memory + plan.scratchStart() + begin / std::max<int64_t>(unitGrain, 1) * plan.scratchFloats;
            for (int64_t unit = begin; unit < end; ++unit)
            {
                int64_t const firstRow = unit % plan.rowUnits * plan.unitRows;
                for (int64_t row = 0; row < std::min(plan.unitRows, rows - firstRow); ++row)
                {
                    int64_t const outRow = unit / plan.rowUnits * rows + firstRow + row;
                    dispatchFloat(tensors.type,
                        [&](auto tag)
                        {
                            using T = typename decltype(tag)::Type;
                            cpu::writeRow(
                                plan, unit, row, outRow, memory, sums, static_cast<T*>(tensors.y), tensors.lse);
                        });
                }
            }
        });
}

} // namespace trtc::kv_attention
