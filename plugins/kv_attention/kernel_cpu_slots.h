// KVAttention on the CPU where only chosen slots are read. Those of an index are put in order first: what a query sees
// of them are then runs of places in the list, and the rest works with places as it does with slots. The rows of a tile
// are copied next to each other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/parallel.h"
#include "kv_attention/kernel_cpu_plan.h"

namespace trtc::kv_attention
{

namespace cpu
{
//! Fetches rows before they are asked for.
inline void fetchRows(void const* from, int64_t bytes)
{
    auto const* const start = static_cast<char const*>(from);
    for (int64_t at = 0; at < bytes; at += 64)
    {
        __builtin_prefetch(start + at, 0, 2);
    }
}

//! The slots of one list in order; none listed: all there are, and a place is a slot.
struct ChosenSlots
{
    int64_t const* slots = nullptr;
    int64_t count = 0;

    bool areListed() const noexcept
    {
        return slots != nullptr;
    }

    int64_t at(int64_t place) const noexcept
    {
        return slots == nullptr ? place : slots[place];
    }

    //! Places of the slots of a span.
    Span placesOf(Span const& span) const
    {
        if (slots == nullptr || span.isEmpty())
        {
            return span;
        }
        return {std::lower_bound(slots, slots + count, span.first) - slots,
            std::lower_bound(slots, slots + count, span.last) - slots};
    }

    //! Listed places from `place` on, `most` at most, whose slots are in the same group of tokens.
    int64_t ofGroup(int64_t place, int64_t most, int64_t group) const
    {
        int64_t found = 1;
        while (found < most && slots[place + found] / group == slots[place] / group)
        {
            ++found;
        }
        return found;
    }

    //! Copies the rows of `count` places next to each other.
    void copyRows(char const* rows, int64_t rowBytes, int64_t place, int64_t numPlaces, char* to) const
    {
        constexpr int64_t kAHEAD_OF_COPY = 8;
        for (int64_t i = 0; i < numPlaces; ++i)
        {
            int64_t const ahead = std::min(i + kAHEAD_OF_COPY, numPlaces - 1);
            fetchRows(rows + slots[place + ahead] * rowBytes, rowBytes);
            std::memcpy(to + i * rowBytes, rows + slots[place + i] * rowBytes, static_cast<size_t>(rowBytes));
        }
    }
};

inline int64_t* listOf(Plan const& plan, float* memory, int64_t list)
{
    return reinterpret_cast<int64_t*>(memory + plan.listStart() + list * plan.listFloats());
}

//! Leaves the chosen slots of every list in order, behind their number.
inline void listSlots(Plan const& plan, int64_t const* index, float* memory, ParallelFor const& parallelFor)
{
    Sizes const& sizes = plan.sizes;
    constexpr int64_t kTASK_SLOTS = 1 << 12; //!< about what is worth a task of its own
    parallelFor(sizes.index.lists, kTASK_SLOTS / (sizes.columns + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t list = begin; list < end; ++list)
            {
                int64_t* const length = listOf(plan, memory, list);
                int64_t const* const given = index + list * sizes.columns;
                int64_t* const last = std::copy_if(given, given + sizes.columns, length + 1,
                    [&](int64_t slot) { return slot >= 0 && slot < sizes.length; });
                *length = last - length - 1;
                if (!std::is_sorted(length + 1, last))
                {
                    std::sort(length + 1, last);
                }
            }
        });
}

//! The list of a KV head, over all items.
inline ChosenSlots chosenSlots(Plan const& plan, float* memory, int64_t head)
{
    Sizes const& sizes = plan.sizes;
    if (!sizes.isIndexed)
    {
        return {};
    }
    int64_t const* const length = listOf(plan, memory, sizes.index.list(head / sizes.kvHeads, head % sizes.kvHeads));
    return {length + 1, *length};
}
} // namespace cpu

} // namespace trtc::kv_attention
