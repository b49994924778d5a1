// KVAttention on the CPU: one task, some queries of a KV head over one split of its cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/simd_math.h"
#include "kv_attention/kernel_cpu_blocks.h"
#include "kv_attention/kernel_cpu_plan.h"
#include "kv_attention/kernel_cpu_rows.h"
#include "kv_attention/kernel_cpu_sides.h"
#include "kv_attention/kernel_cpu_slots.h"

namespace trtc::kv_attention
{

namespace cpu
{
//! One split of the queries of one task.
class Task
{
public:
    Task(Plan const& plan, Tensors const& tensors, int64_t index, float* workspace, int64_t scratch)
        : mPlan(plan)
        , mSizes(plan.sizes)
        , mTensors(tensors)
        , mScratch(plan, workspace + plan.scratchStart() + scratch * plan.scratchFloats)
    {
        int64_t const unit = index / plan.splits;
        mHead = unit / plan.rowUnits;
        mChosen = chosenSlots(plan, workspace, mHead);
        mRowUnit = unit % plan.rowUnits;
        mNumRows = plan.rowsOf(mRowUnit);
        mHighest = workspace + index * plan.partFloats;
        mTotal = mHighest + plan.unitRows;
        mSums = mTotal + plan.unitRows;
        std::fill_n(mHighest, mNumRows, -std::numeric_limits<float>::infinity());
        std::fill_n(mTotal, mNumRows, 0.0F);
        std::fill_n(mSums, mNumRows * plan.values.padded, 0.0F);
        int64_t low = mSizes.columns;
        int64_t high = 0;
        for (int64_t row = 0; row < mNumRows; ++row)
        {
            for (Span const& span : spansOf(row).of)
            {
                low = span.isEmpty() ? low : std::min(low, span.first);
                high = span.isEmpty() ? high : std::max(high, span.last);
            }
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
        for (int64_t begin = mBegin; begin < mEnd; begin += mPlan.chunk)
        {
            int64_t const count = std::min(mPlan.chunk, mEnd - begin);
            if (!isSeen(begin, count))
            {
                continue;
            }
            mPlan.isWide ? multiplyKeysInBlocks(begin, count) : multiplyKeys(begin, count);
            if (mSizes.ofKeys.rank > 0 && mSizes.turning.channels == 0)
            {
                ofKeys().addToProducts(mScratch.q, mNumRows, begin, count, mScratch.logits);
            }
            for (int64_t row = 0; row < mNumRows; ++row)
            {
                weigh(row, begin, count);
            }
            mPlan.isWide ? addValuesInBlocks(begin, count) : addValues(begin, count);
            if (mSizes.ofValues.rank > 0)
            {
                ofValues().addToSums(mScratch.logits, mNumRows, begin, count, mSums);
            }
        }
    }

private:
    int64_t item() const
    {
        return mHead / mSizes.kvHeads;
    }

    //! The place of a row among those of its KV head.
    int64_t placeOf(int64_t row) const
    {
        return mPlan.placeOf(mRowUnit, row);
    }

    //! Slots that a query sees; of chosen ones their places in the list.
    Spans spansOf(int64_t row) const
    {
        int64_t const length = mTensors.length[mSizes.lengthAt(mHead)];
        Spans spans = mSizes.sight.spans(length, placeOf(row) % mSizes.queries);
        for (Span& span : spans.of)
        {
            span = mChosen.placesOf(span);
        }
        return spans;
    }

    //! Whether some query sees one of these slots.
    bool isSeen(int64_t begin, int64_t count) const
    {
        for (int64_t row = 0; row < mNumRows; ++row)
        {
            for (Span const& span : spansOf(row).of)
            {
                if (!span.isEmpty() && span.first < begin + count && span.last > begin)
                {
                    return true;
                }
            }
        }
        return false;
    }

    void loadQueries()
    {
        Side const& side = mPlan.keys;
        std::fill_n(mScratch.q, mNumRows * side.padded, 0.0F);
        for (int64_t row = 0; row < mNumRows; ++row)
        {
            // Rows of a KV head follow each other in q.
            int64_t const at = (mHead * mSizes.rows() + placeOf(row)) * mSizes.width;
            loadRow(side, mScratch.q + row * side.padded, mTensors.q, mTensors.type, at);
        }
        std::fill_n(mScratch.constants, mNumRows, 0.0F);
    }

    static void listGroups(Side const& side, int32_t* groups)
    {
        bool const areOfTokens = side.format.byToken && !side.format.isFloat() && !side.isCut;
        for (int64_t i = 0; areOfTokens && i < side.parts * side.blocks; ++i)
        {
            groups[i] = static_cast<int32_t>(side.groupOf(i / side.blocks, i % side.blocks));
        }
    }

    //! The rows of this head, as they lie in memory.
    char const* headRows(Cache const& cache, Side const& side) const
    {
        return static_cast<char const*>(cache.rows) + mHead * mSizes.length * side.format.rowBytes();
    }

    //! The rows of the tile that prepareTile() was called for, one behind another.
    template <int32_t kKIND>
    typename Row<kKIND>::Element const* tileRows() const
    {
        return reinterpret_cast<typename Row<kKIND>::Element const*>(mTileRows);
    }

    //! The scales of `count` tokens from `slot`, as they lie in memory.
    void loadTokenScales(Cache const& cache, Side const& side, int64_t slot, int64_t count)
    {
        int64_t const columns = side.format.scaleColumns();
        int64_t const run = mChosen.areListed() ? 1 : count; // tokens that follow each other
        for (int64_t token = 0; token < count; token += run)
        {
            int64_t const offset = side.format.scalesOf(mHead) + mChosen.at(slot + token) * columns;
            int64_t const to = token * columns;
            loadScales(mScratch.scale + to, cache.scale, cache.scaleType, offset, run * columns);
            loadScales(mScratch.minimum + to, cache.minimum, cache.scaleType, offset, run * columns);
        }
    }

    //! The scales of the group of tokens that `slot` is in, by channel; zero where vectors are padded.
    void loadChannelScales(Cache const& cache, Side const& side, int64_t slot)
    {
        int64_t const group = mChosen.at(slot) / side.format.group;
        int64_t const offset = side.format.scalesOf(mHead) + group * side.format.scaleColumns();
        std::fill_n(mScratch.scale, side.padded, 0.0F);
        std::fill_n(mScratch.minimum, side.padded, 0.0F);
        loadRow(side, mScratch.scale, cache.scale, cache.scaleType, offset);
        loadRow(side, mScratch.minimum, cache.minimum, cache.scaleType, offset);
    }

    //! The scales of a token, one for each channel.
    void spreadTokenScales(Cache const& cache, kv::Format const& format, int64_t slot)
    {
        int64_t const offset = format.scalesOf(mHead) + slot * format.scaleColumns();
        dispatchFloat(cache.scaleType,
            [&](auto tag)
            {
                using T = typename decltype(tag)::Type;
                auto const* const scale = static_cast<T const*>(cache.scale) + offset;
                auto const* const minimum = static_cast<T const*>(cache.minimum) + offset;
                for (int64_t i = 0; i < format.scaleColumns(); ++i)
                {
                    std::fill_n(mScratch.scale + i * format.group, format.group, toFloat(scale[i]));
                    std::fill_n(mScratch.minimum + i * format.group, format.group, toFloat(minimum[i]));
                }
            });
    }

    //! A tile as floats, where groups of channels cut vectors or keys are turned. `isNew`: so are scales of channels.
    void makePlain(Cache const& cache, Side const& side, int64_t slot, int64_t count, bool isNew)
    {
        kv::Format const& format = side.format;
        if (!format.byToken && isNew)
        {
            loadChannelScales(cache, side, slot);
        }
        for (int64_t token = 0; token < count; ++token)
        {
            if (format.byToken)
            {
                spreadTokenScales(cache, format, mChosen.at(slot + token));
            }
            float* const to = mScratch.rows + token * side.padded;
            std::fill(to + format.width, to + side.padded, 0.0F);
            unpackRow(format, tileRows<8>() + token * format.rowBytes(), mScratch.scale, mScratch.minimum, to);
        }
    }

    //! Keys of a tile that were made floats, with what is added to them, turned.
    void turnKeys(int64_t slot, int64_t count)
    {
        if (ofKeys().isThere())
        {
            ofKeys().addToRows(slot, count, mScratch.rows);
        }
        Turning const& turning = mSizes.turning;
        for (int64_t token = 0; token < count; ++token)
        {
            int64_t const at = turning.rowAt(item(), mHead % mSizes.kvHeads, mSizes.length, mChosen.at(slot + token));
            turnRow(mScratch.rows + token * mPlan.keys.padded, mTensors.rope + at, turning.channels);
        }
    }

    LowRankPart ofKeys() const
    {
        return {mPlan, mPlan.keys, mSizes.ofKeys, mTensors.keyFactors, mScratch, mChosen, mHead};
    }

    LowRankPart ofValues() const
    {
        return {mPlan, mPlan.values, mSizes.ofValues, mTensors.valueFactors, mScratch, mChosen, mHead};
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

    //! Brings in what a tile from `slot` on needs: chosen rows, scales, or its rows made floats. `isFirst` in its
    //! chunk.
    void prepareTile(Cache const& cache, Side const& side, int64_t slot, int64_t count, bool isFirst)
    {
        mTileRows = headRows(cache, side) + slot * side.format.rowBytes();
        if (mChosen.areListed())
        {
            mChosen.copyRows(headRows(cache, side), side.format.rowBytes(), slot, count, mScratch.taken);
            mTileRows = mScratch.taken;
        }
        if (side.format.isFloat())
        {
            return;
        }
        bool const isNew = isFirst || mChosen.areListed() || slot % side.format.group == 0;
        if (side.isCut)
        {
            makePlain(cache, side, slot, count, isNew);
            if (&side == &mPlan.keys && mSizes.turning.channels > 0)
            {
                turnKeys(slot, count);
            }
        }
        else if (side.format.byToken)
        {
            loadTokenScales(cache, side, slot, count);
        }
        else if (isNew)
        {
            loadChannelScales(cache, side, slot);
        }
    }

    //! Slots from `slot` on that one tile may have: they share a group of tokens where there are some.
    int64_t tileOf(Side const& side, int64_t slot, int64_t left, int64_t most) const
    {
        bool const isGrouped = !side.format.isFloat() && !side.format.byToken;
        if (mChosen.areListed())
        {
            int64_t const all = std::min({left, most, kTILE});
            return isGrouped ? mChosen.ofGroup(slot, all, side.format.group) : all;
        }
        return std::min({left, most, isGrouped ? side.format.group - slot % side.format.group : left});
    }

    void multiplyKeys(int64_t begin, int64_t count)
    {
        Side const& side = mPlan.keys;
        Cache const& cache = mTensors.keys;
        bool const isScaled = !side.format.isFloat() && !side.format.byToken && !side.isCut;
        int64_t length = 0;
        for (int64_t at = 0; at < count; at += length)
        {
            int64_t const slot = begin + at;
            length = tileOf(side, slot, count - at, isScaled ? count : kTILE);
            prepareTile(cache, side, slot, length, at == 0);
            if (isScaled)
            {
                scaleQueries();
            }
            TokenScales const scales{mScratch.scale, mScratch.minimum, side.groups(), mScratch.keyGroups};
            forBlocks(mNumRows,
                [&](int64_t row, auto numRows)
                {
                    constexpr int32_t kROWS = decltype(numRows)::value;
                    float const* const q = (isScaled ? mScratch.scaledQ : mScratch.q) + row * side.padded;
                    float const* const constants = mScratch.constants + row;
                    float* const to = mScratch.logits + row * kCHUNK + at;
                    dispatchKind(side.isCut ? kMADE : side.kind,
                        [&](auto kind)
                        {
                            constexpr int32_t kKIND = decltype(kind)::value;
                            if constexpr (kKIND == kMADE)
                            {
                                dot<kMADE, kROWS, false>(
                                    side, mScratch.rows, side.padded, length, scales, q, constants, to);
                            }
                            else
                            {
                                auto function = &dot<kKIND, kROWS, false>;
                                if constexpr (kKIND <= 8)
                                {
                                    function = isScaled ? function : &dot<kKIND, kROWS, true>;
                                }
                                function(side, tileRows<kKIND>(), side.width, length, scales, q, constants, to);
                            }
                        });
                });
        }
    }

    //! A tile as floats, [count, padded]: in the cache, or made in scratch memory.
    float const* rowsOf(Side const& side, int64_t count)
    {
        if (side.isReady())
        {
            return tileRows<kFLOAT>();
        }
        TokenScales const scales{mScratch.scale, mScratch.minimum, side.groups(),
            &side == &mPlan.keys ? mScratch.keyGroups : mScratch.valueGroups};
        dispatchKind(side.isCut ? kMADE : side.kind,
            [&](auto kind)
            {
                constexpr int32_t kKIND = decltype(kind)::value;
                if constexpr (kKIND <= 8)
                {
                    makeRows<kKIND>(side, tileRows<kKIND>(), side.width, count, side.format.byToken ? &scales : nullptr,
                        mScratch.scale, mScratch.minimum, mScratch.rows);
                }
                else if constexpr (kKIND != kMADE)
                {
                    copyRows<kKIND>(side, tileRows<kKIND>(), side.width, count, mScratch.rows);
                }
            });
        return mScratch.rows;
    }

    //! Has the rows behind a tile on their way.
    void fetchNext(Cache const& cache, Side const& side, int64_t slot, int64_t count) const
    {
        int64_t const left = std::min(mEnd - slot - count, count);
        if (left > 0 && !mChosen.areListed()) // chosen rows are fetched as they are copied
        {
            int64_t const bytes = side.format.rowBytes();
            fetchRows(headRows(cache, side) + (slot + count) * bytes, left * bytes);
        }
    }

    void multiplyKeysInBlocks(int64_t begin, int64_t count)
    {
        Side const& side = mPlan.keys;
        Cache const& cache = mTensors.keys;
        int64_t length = 0;
        for (int64_t at = 0; at < count; at += length)
        {
            int64_t const slot = begin + at;
            length = tileOf(side, slot, count - at, kTILE);
            prepareTile(cache, side, slot, length, at == 0);
            fetchNext(cache, side, slot, length);
            if (side.format.isFloat())
            {
                dispatchKind(side.kind,
                    [&](auto kind)
                    {
                        constexpr int32_t kKIND = decltype(kind)::value;
                        if constexpr (kKIND > 8 && kKIND != kMADE)
                        {
                            turnRows<kKIND>(side, tileRows<kKIND>(), side.width, length, mScratch.turnedRows);
                        }
                    });
            }
            else
            {
                Side const made = side.made();
                turnRows<kMADE>(made, rowsOf(side, length), side.padded, length, mScratch.turnedRows);
            }
            forWideBlocks(mNumRows,
                [&](int64_t row, auto numRows)
                {
                    multiplyTurned<decltype(numRows)::value>(mScratch.q + row * side.padded, side.padded,
                        mScratch.turnedRows, length, mScratch.logits + row * mPlan.chunk + at, mPlan.chunk);
                });
        }
    }

    void addValuesInBlocks(int64_t begin, int64_t count)
    {
        Side const& side = mPlan.values;
        int64_t length = 0;
        for (int64_t at = 0; at < count; at += length)
        {
            int64_t const slot = begin + at;
            length = tileOf(side, slot, count - at, kTILE);
            prepareTile(mTensors.values, side, slot, length, at == 0);
            fetchNext(mTensors.values, side, slot, length);
            float const* const rows = rowsOf(side, length);
            forWideBlocks(mNumRows,
                [&](int64_t row, auto numRows)
                {
                    addWeighted<decltype(numRows)::value>(mScratch.logits + row * mPlan.chunk + at, mPlan.chunk, rows,
                        side.padded, length, mSums + row * side.padded);
                });
        }
    }

    //! Turns products of one query into logits, up to whole vectors.
    void scaleAndBias(int64_t row, int64_t begin, int64_t count, float* logits);

    //! Turns the products of one query into weights, relative to the largest so far.
    void weigh(int64_t row, int64_t begin, int64_t count);

    void addValues(int64_t begin, int64_t count)
    {
        Side const& side = mPlan.values;
        Cache const& cache = mTensors.values;
        int64_t length = 0;
        for (int64_t at = 0; at < count; at += length)
        {
            int64_t const slot = begin + at;
            length = tileOf(side, slot, count - at, kTILE);
            prepareTile(cache, side, slot, length, at == 0);
            forBlocks(mNumRows,
                [&](int64_t row, auto numRows)
                {
                    constexpr int32_t kROWS = decltype(numRows)::value;
                    float* const sums = mSums + row * side.padded;
                    Weights const weights = weightsOf<kROWS>(row, at, length);
                    dispatchKind(side.isCut ? kMADE : side.kind,
                        [&](auto kind)
                        {
                            constexpr int32_t kKIND = decltype(kind)::value;
                            if constexpr (kKIND == kMADE)
                            {
                                accumulate<kMADE, kROWS>(side, mScratch.rows, side.padded, length, weights, sums);
                            }
                            else
                            {
                                accumulate<kKIND, kROWS>(side, tileRows<kKIND>(), side.width, length, weights, sums);
                            }
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
        if (side.isCut || side.format.isFloat())
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
            everyOf(mScratch.minimum + group, groups, count, full, mScratch.turned);
            for (int32_t i = 0; i < kROWS; ++i)
            {
                FloatVector sum{};
                for (int64_t token = 0; token < full; token += kLANES)
                {
                    sum += load(plain + i * kCHUNK + token) * load(mScratch.turned + token);
                }
                mScratch.starts[group * kROWS + i] = sumOf(sum);
            }
            everyOf(mScratch.scale + group, groups, count, full, mScratch.turned);
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

    Plan const& mPlan;
    Sizes const& mSizes;
    Tensors const& mTensors;
    Plan::Scratch mScratch;
    int64_t mHead; //!< of the keys and values, over all items
    int64_t mRowUnit;
    int64_t mNumRows;
    int64_t mBegin; //!< slots of this split
    int64_t mEnd;
    ChosenSlots mChosen;
    char const* mTileRows = nullptr;
    float* mHighest;
    float* mTotal;
    float* mSums;
};
} // namespace cpu

} // namespace trtc::kv_attention
