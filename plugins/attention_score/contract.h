// AttentionScore in C++: its contract, and the sizes that every form works with.
#pragma once

#include <algorithm>

#include "common/contract.h"

namespace trtc::attention_score
{

Contract const& contract();

enum class Softmax : int32_t
{
    kNONE,
    kALL,
    kSPAN,
};

enum class Rows : int32_t
{
    kMEAN,
    kSUM,
    kMAXIMUM,
    kLAST,
};

enum class Normalize : int32_t
{
    kNONE,
    kPROBES,
    kTOKENS,
};

enum class Reduce : int32_t
{
    kMEAN,
    kSUM,
    kMAXIMUM,
};

//! Scores of an item. `reduction` 0: each head; 1..3: the mean, sum, maximum of each KV head; 4..6: of all heads.
template <typename Size>
Size partsOf(int64_t reduction, Size heads, Size groups)
{
    return reduction == 0 ? heads : reduction <= 3 ? groups : Size{1};
}

//! Keys that get a score. A stop that is not positive counts from the end of the keys.
//! Attributes that nobody has checked yet may be any numbers; beyond any number of keys they are all alike.
template <typename Size>
Size spanOf(int64_t start, int64_t stop, Size numKeys)
{
    constexpr int64_t kMOST = int64_t{1} << 60;
    start = std::clamp(start, -kMOST, kMOST);
    stop = std::clamp(stop, -kMOST, kMOST);
    return stop > 0 ? Size{stop - start} : numKeys - (start - stop);
}

//! What an item has of the keys, and of the span.
struct OwnKeys
{
    int64_t keys;
    int64_t span;
};

struct Sizes
{
    int64_t batch;
    int64_t heads;
    int64_t groups;
    int64_t numRows; //!< all probe rows
    int64_t width;
    int64_t numKeys;
    int64_t start; //!< the span of keys that get a score
    int64_t stop;
    bool isStopFromEnd;
    float scale;
    bool causal;
    Softmax softmax;
    Rows rows;
    Normalize normalize;
    Reduce reduce; //!< over the heads of a part
    int64_t parts; //!< scores of an item: for each head, each KV head, or one
    bool poolMaximum;
    int64_t headKernel;
    int64_t kernel;
    Shape bias;               //!< its shape
    bool isCounted;           //!< items have lengths
    bool isOneLength;         //!< for all of them
    bool arePositionsOfItems; //!< each item has its own

    //! Of item `item`; `length` is not read unless isCounted.
    OwnKeys own(int64_t const* length, int64_t item) const noexcept
    {
        int64_t const given = isCounted ? length[isOneLength ? 0 : item] : numKeys;
        int64_t const keys = std::min(std::max<int64_t>(given, 0), numKeys);
        int64_t const last = isStopFromEnd ? stop - numKeys + keys : std::min(stop, keys);
        return {keys, std::max<int64_t>(last - start, 0)};
    }

    //! Of the used keys, those that an item has.
    int64_t ownUsed(OwnKeys const& own) const noexcept
    {
        return softmax == Softmax::kALL ? own.keys : own.span;
    }

    //! The positions of an item's rows.
    int64_t const* positionsOf(int64_t const* position, int64_t item) const noexcept
    {
        return position + (arePositionsOfItems ? item * numRows : 0);
    }

    int64_t span() const noexcept
    {
        return stop - start;
    }

    //! The keys that are looked at, in which the span lies.
    int64_t firstKey() const noexcept
    {
        return softmax == Softmax::kALL ? 0 : start;
    }

    int64_t usedKeys() const noexcept
    {
        return softmax == Softmax::kALL ? numKeys : span();
    }

    //! The rows that are looked at, up to the last.
    int64_t firstRow() const noexcept
    {
        return rows == Rows::kLAST ? numRows - 1 : 0;
    }

    int64_t usedRows() const noexcept
    {
        return numRows - firstRow();
    }

    int64_t headsOfGroup() const noexcept
    {
        return heads / groups;
    }

    //! Whether the scores of the heads are the outputs.
    bool isPlain() const noexcept
    {
        return parts == heads && headKernel == 1 && kernel == 1;
    }
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

} // namespace trtc::attention_score
