// KVAppend on the CPU: rows are copied as bytes, in runs of slots that follow each other. If the output is the cache
// itself, nothing but the new rows is written.
#pragma once

#include <algorithm>

#include "common/copy.h"
#include "common/parallel.h"
#include "kv_append/contract.h"

namespace trtc::kv_append
{

namespace cpu
{
constexpr int64_t kTASK_BYTES = 1 << 17; //!< about what is worth a task of its own

//! Copies what may be a large block, shared by all threads.
inline void copyAll(void* to, void const* from, int64_t bytes, ParallelFor const& parallelFor)
{
    parallelFor(bytes, kTASK_BYTES,
        [&](int64_t begin, int64_t end)
        {
            copyBytes(static_cast<char*>(to) + begin, static_cast<char const*>(from) + begin,
                static_cast<size_t>(end - begin));
        });
}
} // namespace cpu

//! Whether every position may be used; the sentence otherwise.
inline Error checkPosition(Sizes const& sizes, int64_t const* position)
{
    if (sizes.positions == 0)
    {
        return {};
    }
    auto const [lowest, highest] = std::minmax_element(position, position + sizes.positions);
    if (*lowest < 0)
    {
        return "position holds " + std::to_string(*lowest) + "; it counts the tokens written before and is 0 or more.";
    }
    if (!sizes.allows(*highest))
    {
        return "position holds " + std::to_string(*highest) + ", and T=" + std::to_string(sizes.tokens)
            + " more tokens exceed the cache of L=" + std::to_string(sizes.length)
            + " slots; give a longer cache or use layout='ring'.";
    }
    return {};
}

//! The positions have been checked. `out` may be `cache`.
inline void appendRows(Sizes const& sizes, void const* cache, void const* rows, int64_t const* position, void* out,
    ParallelFor const& parallelFor)
{
    int64_t const rowBytes = sizes.rowBytes();
    int64_t const cacheBytes = sizes.length * rowBytes;
    int64_t const newBytes = sizes.tokens * rowBytes;
    if (out != cache)
    {
        cpu::copyAll(out, cache, sizes.batch * sizes.heads * cacheBytes, parallelFor);
    }
    parallelFor(sizes.batch * sizes.heads, cpu::kTASK_BYTES / (newBytes + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t head = begin; head < end; ++head)
            {
                auto const* const from = static_cast<char const*>(rows) + head * newBytes;
                auto* const to = static_cast<char*>(out) + head * cacheBytes;
                int64_t slot = sizes.firstSlot(position[sizes.positionAt(head)]);
                for (int64_t token = 0; token < sizes.tokens;)
                {
                    int64_t const count = std::min(sizes.length - slot, sizes.tokens - token);
                    copyBytes(to + slot * rowBytes, from + token * rowBytes, static_cast<size_t>(count * rowBytes));
                    token += count;
                    slot = sizes.sinks;
                }
            }
        });
}

} // namespace trtc::kv_append
