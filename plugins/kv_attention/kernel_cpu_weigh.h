// KVAttention on the CPU: how a task turns products into weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kv_attention/kernel_cpu_task.h"

namespace trtc::kv_attention
{

namespace cpu
{
inline void Task::scaleAndBias(int64_t row, int64_t begin, int64_t count, float* logits)
{
    int64_t const full = roundUp(count, kLANES);
    int64_t const place = placeOf(row);
    int64_t const head = mHead % mSizes.kvHeads * mSizes.repeats() + place / mSizes.queries;
    int64_t const offset = mSizes.bias.offset(item(), head, place % mSizes.queries);
    float same = 0.0F;
    dispatchFloat(mTensors.biasType,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            auto const* const bias = static_cast<T const*>(mTensors.bias) + offset;
            if (mSizes.bias.slot == 0)
            {
                same = toFloat(*bias);
                return;
            }
            for (int64_t i = 0; mChosen.areListed() && i < count; ++i)
            {
                mScratch.bias[i] = toFloat(bias[mChosen.at(begin + i)]);
            }
            if (!mChosen.areListed())
            {
                toFloats(mScratch.bias, bias + begin, count);
            }
            std::fill(mScratch.bias + count, mScratch.bias + full, 0.0F);
        });
    for (int64_t i = 0; i < full && mSizes.softcap > 0.0F; i += kLANES)
    {
        FloatVector const product = load(logits + i) * (mSizes.scale / mSizes.softcap);
        store(logits + i, hyperbolicTangent(product) * mSizes.softcap);
    }
    float const scale = mSizes.softcap > 0.0F ? 1.0F : mSizes.scale;
    for (int64_t i = 0; i < full; i += kLANES)
    {
        FloatVector const bias = mSizes.bias.slot == 0 ? broadcast(same) : load(mScratch.bias + i);
        store(logits + i, load(logits + i) * scale + bias);
    }
}

inline void Task::weigh(int64_t row, int64_t begin, int64_t count)
{
    float* const weights = mScratch.logits + row * mPlan.chunk;
    float const nothing = -std::numeric_limits<float>::infinity();
    int64_t const full = roundUp(count, kLANES);
    scaleAndBias(row, begin, count, weights);
    // Slots that this query does not see.
    int64_t seen = 0;
    for (Span const& span : spansOf(row).of)
    {
        if (!span.isEmpty())
        {
            int64_t const first = std::clamp<int64_t>(span.first - begin, seen, count);
            std::fill(weights + seen, weights + first, nothing);
            seen = std::clamp<int64_t>(span.last - begin, first, count);
        }
    }
    std::fill(weights + seen, weights + full, nothing);
    FloatVector highest = broadcast(nothing);
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
} // namespace cpu

} // namespace trtc::kv_attention
