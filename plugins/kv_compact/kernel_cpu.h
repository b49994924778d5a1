// KVCompact on the CPU: rows move as bytes, in runs of slots that follow each other. A row never moves back, so that in
// place each is read before anything is written over it; slots behind the kept ones are not written then.
#pragma once

#include "common/copy.h"
#include "common/parallel.h"
#include "kv_compact/contract.h"

namespace trtc::kv_compact
{

namespace cpu
{
constexpr int64_t kTASK_BYTES = 1 << 17; //!< about what is worth a task of its own
} // namespace cpu

//! Whether every index may be used; the sentence otherwise.
inline Error checkIndex(Sizes const& sizes, int64_t const* index)
{
    int64_t lowest = 0;
    int64_t highest = 0;
    bool isAscending = true;
    for (int64_t head = 0; head < sizes.numHeads; ++head)
    {
        int64_t previous = -1;
        for (int64_t i = head * sizes.kept; i < (head + 1) * sizes.kept; ++i)
        {
            lowest = index[i] < lowest ? index[i] : lowest;
            highest = index[i] > highest ? index[i] : highest;
            isAscending = isAscending && index[i] > previous;
            previous = index[i];
        }
    }
    if (lowest < 0 || (sizes.kept > 0 && highest >= sizes.length))
    {
        return "index holds " + std::to_string(lowest < 0 ? lowest : highest) + "; slots are 0.."
            + std::to_string(sizes.length - 1) + ".";
    }
    return isAscending ? Error{} : Error("index is not strictly ascending; sort the slots of each KV head, each once.");
}

//! The index has been checked. `out` may be `cache`.
inline void compactRows(
    Sizes const& sizes, void const* cache, int64_t const* index, void* out, ParallelFor const& parallelFor)
{
    int64_t const rowBytes = sizes.rowBytes;
    int64_t const headBytes = sizes.length * rowBytes;
    int64_t const written = out == cache ? sizes.kept * rowBytes : headBytes;
    parallelFor(sizes.numHeads, cpu::kTASK_BYTES / (written + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t head = begin; head < end; ++head)
            {
                int64_t const* const mine = index + head * sizes.kept;
                auto const* const from = static_cast<char const*>(cache) + head * headBytes;
                auto* const to = static_cast<char*>(out) + head * headBytes;
                for (int64_t slot = 0; slot < sizes.kept;)
                {
                    int64_t next = slot + 1;
                    while (next < sizes.kept && mine[next] - next == mine[slot] - slot)
                    {
                        ++next;
                    }
                    char const* const source = from + mine[slot] * rowBytes;
                    if (to + slot * rowBytes != source)
                    {
                        moveBytes(to + slot * rowBytes, source, static_cast<size_t>((next - slot) * rowBytes));
                    }
                    slot = next;
                }
                if (out != cache)
                {
                    int64_t const done = sizes.kept * rowBytes;
                    copyBytes(to + done, from + done, static_cast<size_t>(headBytes - done));
                }
            }
        });
}

} // namespace trtc::kv_compact
