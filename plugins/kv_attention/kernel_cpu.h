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
#include "kv_attention/kernel_cpu_plan.h"
#include "kv_attention/kernel_cpu_rows.h"

namespace trtc::kv_attention
{

namespace cpu
{
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
