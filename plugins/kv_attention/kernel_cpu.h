// KVAttention on the CPU: codes become numbers in registers, for four queries at a time, and scales never meet codes
// where they can be moved out of the inner loops:
// - keys with groups of tokens: the scale goes into the query once for a group, the minimum into one constant;
// - values with groups of channels: the scale goes into the weights, the minimum into where a tile's sum starts;
// - values with groups of tokens: the scale is applied to the sum over the group's tokens.
// Where many queries share a head, rows become floats first, and products are those of small matrices.
// The cache of a head is cut into splits, which the threads share, by sizes alone; a split keeps running maxima over
// chunks, and splits are merged in order by the log of their sums.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/parallel.h"
#include "kv_attention/kernel_cpu_slots.h"
#include "kv_attention/kernel_cpu_task.h"
#include "kv_attention/kernel_cpu_weigh.h"

namespace trtc::kv_attention
{

namespace cpu
{
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
    return static_cast<size_t>(plan.floats()) * sizeof(float);
}

//! Sizes have been checked. `workspace` is aligned to 64 bytes.
inline void attendOverCache(
    Sizes const& sizes, cpu::Tensors const& tensors, void* workspace, ParallelFor const& parallelFor)
{
    cpu::Plan const plan(sizes);
    auto* const memory = static_cast<float*>(workspace);
    if (sizes.isIndexed)
    {
        cpu::listSlots(plan, tensors.index, memory, parallelFor);
    }
    cpu::ScratchPool pool;
    parallelFor(plan.units * plan.splits, plan.grain,
        [&](int64_t begin, int64_t end)
        {
            cpu::ScratchPool::Lease const lease(pool);
            for (int64_t index = begin; index < end; ++index)
            {
                cpu::Task(plan, tensors, index, memory, lease.index()).run();
            }
        });
    int64_t const unitGrain = (plan.units + plan.pieces - 1) / std::max<int64_t>(plan.pieces, 1);
    parallelFor(plan.units, unitGrain,
        [&](int64_t begin, int64_t end)
        {
            cpu::ScratchPool::Lease const lease(pool);
            float* const sums = memory + plan.scratchStart() + lease.index() * plan.scratchFloats;
            for (int64_t unit = begin; unit < end; ++unit)
            {
                for (int64_t row = 0; row < plan.rowsOf(unit % plan.rowUnits); ++row)
                {
                    int64_t const outRow =
                        unit / plan.rowUnits * sizes.rows() + plan.placeOf(unit % plan.rowUnits, row);
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
