// KVAttention on the CPU: what is done to rows beside their codes. Products of low rank are never made rows where that
// can be left out: a query meets the basis of a block once and then the factors of its slots, and the weighted factors
// meet the basis once. Keys that are turned become floats first.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kv_attention/kernel_cpu_rows.h"
#include "kv_attention/kernel_cpu_slots.h"

namespace trtc::kv_attention
{

namespace cpu
{
//! to += from * factor
inline void addScaled(float* to, float const* from, float factor, int64_t count)
{
    int64_t const whole = count / kLANES * kLANES;
    for (int64_t i = 0; i < whole; i += kLANES)
    {
        store(to + i, load(to + i) + load(from + i) * factor);
    }
    for (int64_t i = whole; i < count; ++i)
    {
        to[i] += from[i] * factor;
    }
}

inline float dotOf(float const* a, float const* b, int64_t count)
{
    int64_t const whole = count / kLANES * kLANES;
    FloatVector sum{};
    for (int64_t i = 0; i < whole; i += kLANES)
    {
        sum += load(a + i) * load(b + i);
    }
    float total = sumOf(sum);
    for (int64_t i = whole; i < count; ++i)
    {
        total += a[i] * b[i];
    }
    return total;
}

//! A row of codes as floats, its parts one behind another; `scale` and `minimum` are those of its channels.
inline void unpackRow(
    kv::Format const& format, uint8_t const* row, float const* scale, float const* minimum, float* values)
{
    int64_t const width = format.rowBytes();
    auto const most = static_cast<int32_t>(largestCode(format.bits));
    for (int32_t part = 0; part < format.parts(); ++part)
    {
        for (int64_t at = 0; at < width; at += kLANES)
        {
            int64_t const left = std::min<int64_t>(kLANES, width - at);
            int64_t const channel = part * width + at;
            IntVector const bytes = left == kLANES ? loadBytes(row + at) : loadBytes(row + at, left);
            IntVector const codes = (bytes >> (part * format.bits)) & most;
            FloatVector const value = __builtin_convertvector(codes, FloatVector);
            if (left == kLANES)
            {
                store(values + channel, value * load(scale + channel) + load(minimum + channel));
                continue;
            }
            for (int64_t i = 0; i < left; ++i)
            {
                values[channel + i] = value[static_cast<int32_t>(i)] * scale[channel + i] + minimum[channel + i];
            }
        }
    }
}

//! Turns the first channels of a row in pairs; `table` has their cosines, then their sines.
inline void turnRow(float* row, float const* table, int64_t channels)
{
    int64_t const half = channels / 2;
    int64_t const whole = half / kLANES * kLANES;
    for (int64_t i = 0; i < whole; i += kLANES)
    {
        FloatVector const first = load(row + i);
        FloatVector const second = load(row + half + i);
        FloatVector const cosine = load(table + i);
        FloatVector const sine = load(table + half + i);
        store(row + i, first * cosine - second * sine);
        store(row + half + i, second * cosine + first * sine);
    }
    for (int64_t i = whole; i < half; ++i)
    {
        float const first = row[i];
        float const second = row[half + i];
        row[i] = first * table[i] - second * table[half + i];
        row[half + i] = second * table[i] + first * table[half + i];
    }
}

//! What is added to the rows of one side of a KV head. Places are slots, or those of a list.
class LowRankPart
{
public:
    LowRankPart(Plan const& plan, Side const& side, LowRank const& lowRank, Factors const& factors,
        Plan::Scratch const& scratch, ChosenSlots const& chosen, int64_t head)
        : mPlan(plan)
        , mSide(side)
        , mLowRank(lowRank)
        , mFactors(factors)
        , mScratch(scratch)
        , mChosen(chosen)
        , mHead(head)
    {
    }

    bool isThere() const noexcept
    {
        return mLowRank.rank > 0;
    }

    //! To the products of queries [numRows, padded] with `count` keys.
    void addToProducts(float const* q, int64_t numRows, int64_t begin, int64_t count, float* products) const
    {
        forRuns(begin, count,
            [&](int64_t at, int64_t length)
            {
                for (int64_t row = 0; row < numRows; ++row)
                {
                    for (int64_t i = 0; i < mLowRank.rank; ++i)
                    {
                        float const product = dotOf(q + row * mSide.padded, basisRow(i), mSide.padded);
                        addScaled(products + row * mPlan.chunk + at, factorRow(i), product, length);
                    }
                }
            });
    }

    //! To the sums [numRows, padded] of `count` weighted values.
    void addToSums(float const* weights, int64_t numRows, int64_t begin, int64_t count, float* sums) const
    {
        forRuns(begin, count,
            [&](int64_t at, int64_t length)
            {
                for (int64_t row = 0; row < numRows; ++row)
                {
                    for (int64_t i = 0; i < mLowRank.rank; ++i)
                    {
                        float const weight = dotOf(weights + row * mPlan.chunk + at, factorRow(i), length);
                        addScaled(sums + row * mSide.padded, basisRow(i), weight, mSide.padded);
                    }
                }
            });
    }

    //! To rows [count, padded] themselves.
    void addToRows(int64_t begin, int64_t count, float* rows) const
    {
        forRuns(begin, count,
            [&](int64_t at, int64_t length)
            {
                for (int64_t place = 0; place < length; ++place)
                {
                    for (int64_t i = 0; i < mLowRank.rank; ++i)
                    {
                        addScaled(rows + (at + place) * mSide.padded, basisRow(i), factorRow(i)[place], mSide.padded);
                    }
                }
            });
    }

private:
    float const* factorRow(int64_t index) const
    {
        return mScratch.factors + index * kTILE;
    }

    float const* basisRow(int64_t index) const
    {
        return mScratch.basis + index * mSide.padded;
    }

    //! Calls body(at, length) for runs of places whose slots have one basis, with that and their factors in scratch
    //! memory; `at` counts from `begin`.
    template <typename Body>
    void forRuns(int64_t begin, int64_t count, Body const& body) const
    {
        int64_t length = 0;
        int64_t before = -1;
        for (int64_t at = 0; at < count; at += length)
        {
            int64_t const place = begin + at;
            int64_t const most = std::min(count - at, kTILE);
            length = mChosen.areListed() ? mChosen.ofGroup(place, most, mLowRank.block)
                                         : std::min(most, mLowRank.block - place % mLowRank.block);
            int64_t const slot = mChosen.at(place);
            if (slot / mLowRank.block != before)
            {
                before = slot / mLowRank.block;
                loadBasis(slot);
            }
            loadFactors(place, length);
            body(at, length);
        }
    }

    void loadBasis(int64_t slot) const
    {
        int64_t const offset = mLowRank.basisAt(mHead, slot, mPlan.sizes.width);
        std::fill_n(mScratch.basis, mLowRank.rank * mSide.padded, 0.0F);
        for (int64_t i = 0; i < mLowRank.rank; ++i)
        {
            loadRow(mSide, mScratch.basis + i * mSide.padded, mFactors.basis, mFactors.type,
                offset + i * mPlan.sizes.width);
        }
    }

    void loadFactors(int64_t place, int64_t count) const
    {
        int64_t const run = mChosen.areListed() ? 1 : count; // slots that follow each other
        for (int64_t i = 0; i < count; i += run)
        {
            int64_t const offset = mLowRank.factorAt(mHead, mPlan.sizes.length, mChosen.at(place + i));
            loadScales(
                mScratch.factorRows + i * mLowRank.rank, mFactors.factor, mFactors.type, offset, run * mLowRank.rank);
        }
        for (int64_t i = 0; i < mLowRank.rank; ++i)
        {
            everyOf(mScratch.factorRows + i, mLowRank.rank, count, count, mScratch.factors + i * kTILE);
        }
    }

    Plan const& mPlan;
    Side const& mSide;
    LowRank const& mLowRank;
    Factors const& mFactors;
    Plan::Scratch const& mScratch;
    ChosenSlots const& mChosen;
    int64_t mHead; //!< over all items
};

} // namespace cpu

} // namespace trtc::kv_attention
