// TokenRestore on the CPU: rows are copied as bytes, whatever their type.
#pragma once

#include <vector>

#include "common/copy.h"
#include "common/parallel.h"
#include "token_restore/contract.h"

namespace trtc::token_restore
{

//! Whether every index may be used; the sentence otherwise.
inline Error checkIndex(Sizes const& sizes, int64_t const* index)
{
    std::vector<bool> seen;
    for (int64_t b = 0; b < sizes.batch; ++b)
    {
        seen.assign(sizes.unpermute ? static_cast<size_t>(sizes.numTokens) : 0, false);
        for (int64_t i = 0; i < sizes.numTokens; ++i)
        {
            int64_t const row = index[b * sizes.numTokens + i];
            if (row < 0 || row >= sizes.numRows)
            {
                return "index[" + std::to_string(b) + ", " + std::to_string(i) + "] is " + std::to_string(row)
                    + "; it must be 0.." + std::to_string(sizes.numRows - 1) + ".";
            }
            if (sizes.unpermute)
            {
                if (seen[static_cast<size_t>(row)])
                {
                    return "index has the position " + std::to_string(row) + " of item " + std::to_string(b)
                        + " twice; it must be a permutation.";
                }
                seen[static_cast<size_t>(row)] = true;
            }
        }
    }
    return {};
}

//! The index has been checked.
inline void restoreTokens(
    Sizes const& sizes, void const* y, size_t itemSize, int64_t const* index, void* x, ParallelFor const& parallelFor)
{
    constexpr int64_t kTASK_BYTES = 1 << 17;
    size_t const rowBytes = static_cast<size_t>(sizes.channels) * itemSize;
    parallelFor(sizes.batch * sizes.numTokens, kTASK_BYTES / static_cast<int64_t>(rowBytes + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                int64_t const item = i / sizes.numTokens;
                int64_t const from = sizes.unpermute ? i : item * sizes.numRows + index[i];
                int64_t const to = sizes.unpermute ? item * sizes.numTokens + index[i] : i;
                copyBytes(static_cast<char*>(x) + static_cast<size_t>(to) * rowBytes,
                    static_cast<char const*>(y) + static_cast<size_t>(from) * rowBytes, rowBytes);
            }
        });
}

} // namespace trtc::token_restore
