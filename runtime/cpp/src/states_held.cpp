// What states hold between runs: begun anew, copied, cut, joined and lengthened.

#include "error.h"
#include "states.h"

#include <algorithm>
#include <cstring>

namespace trtc::runtime
{
namespace
{

//! Copy a block into the front of a longer one, axis by axis.
void copyFront(char const* from, std::vector<int64_t> const& small, char* into, std::vector<int64_t> const& large,
    size_t axis, size_t item)
{
    size_t const inner = elementsOf(small.data() + axis, small.size() - axis) * item;
    if (inner == 0)
    {
        return;
    }
    if (std::equal(small.begin() + static_cast<std::ptrdiff_t>(axis), small.end(),
            large.begin() + static_cast<std::ptrdiff_t>(axis)))
    {
        std::memcpy(into, from, inner);
        return;
    }
    size_t const one = inner / static_cast<size_t>(small[axis]);
    size_t const stride = elementsOf(large.data() + axis + 1, large.size() - axis - 1) * item;
    for (int64_t at = 0; at < small[axis]; ++at)
    {
        copyFront(from + static_cast<size_t>(at) * one, small, into + static_cast<size_t>(at) * stride, large, axis + 1,
            item);
    }
}

//! Rows of an axis, gathered.
void gather(char const* from, std::vector<int64_t> const& shape, size_t axis, std::vector<size_t> const& rows,
    char* into, size_t item)
{
    size_t const outer = elementsOf(shape.data(), axis);
    size_t const inner = elementsOf(shape.data() + axis + 1, shape.size() - axis - 1) * item;
    size_t const length = static_cast<size_t>(shape[axis]);
    for (size_t block = 0; block < outer; ++block)
    {
        for (size_t const row : rows)
        {
            std::memcpy(into, from + (block * length + row) * inner, inner);
            into += inner;
        }
    }
}

} // namespace

void States::makeSmallest()
{
    std::fill(mLengths.begin(), mLengths.end(), -1);
    if (mBatch > 0)
    {
        mLengths[mLoaded->batch] = mBatch;
    }
    for (size_t at = 0; at < mLoaded->symbols.size(); ++at)
    {
        if (mLoaded->symbols[at].capacity != nullptr)
        {
            mLengths[at] = room(at, mLoaded->symbols[at].least);
        }
    }
}

void States::reset()
{
    forgetBindings();
    for (Value& value : mValues)
    {
        value = Value();
    }
    mTurns = 0;
    mIsBroken = false;
    makeSmallest();
}

std::unique_ptr<States> States::fork() const
{
    refuseBroken();
    auto made = std::make_unique<States>(mLoaded, mBatch, mCapacity);
    made->mLengths = mLengths;
    for (size_t at = 0; at < mValues.size(); ++at)
    {
        Value const& from = mValues[at];
        Value& into = made->mValues[at];
        into.shape = from.shape;
        into.isThere = from.isThere;
        into.grown = from.grown; // its memory is never written to again
        if (from.isThere && from.grown == nullptr)
        {
            size_t const bytes = elementsOf(from.shape.data(), from.shape.size()) * mLoaded->states[at].itemBytes;
            into.memory[0] = newMemory(bytes);
            std::memcpy(into.memory[0].get(), current(at), bytes);
        }
    }
    return made;
}

size_t States::knownBatch() const
{
    for (StateSpec const& each : mLoaded->states)
    {
        if (each.batchAxis == kNONE)
        {
            throw unsupportedError("The state '" + shown(each.key)
                + "' has no axis of sequences, so that it belongs to "
                  "all of them together, and they cannot be taken apart; export with a range of batches.");
        }
    }
    if (mLengths[mLoaded->batch] < 0)
    {
        throw configError("These states have no batch yet; make them with one, or run once.");
    }
    return static_cast<size_t>(mLengths[mLoaded->batch]);
}

void States::keep(std::vector<size_t> const& rows)
{
    refuseBroken();
    size_t const batch = knownBatch();
    for (size_t const row : rows)
    {
        if (row >= batch)
        {
            throw configError(
                "Row " + std::to_string(row) + " is named; the sequences are 0 to " + std::to_string(batch - 1) + ".");
        }
    }
    if (rows.empty())
    {
        throw configError("No row is kept; give at least one, or reset the states.");
    }
    std::vector<Value> taken(mValues.size());
    for (size_t at = 0; at < mValues.size(); ++at)
    {
        StateSpec const& spec = mLoaded->states[at];
        Value const& from = mValues[at];
        if (!from.isThere)
        {
            continue;
        }
        Value& into = taken[at];
        into.shape = from.shape;
        into.shape[spec.batchAxis] = static_cast<int64_t>(rows.size());
        into.isThere = true;
        into.memory[0] = newMemory(elementsOf(into.shape.data(), into.shape.size()) * spec.itemBytes);
        gather(current(at), from.shape, spec.batchAxis, rows, into.memory[0].get(), spec.itemBytes);
    }
    forgetBindings();
    mValues = std::move(taken);
    mTurns = 0;
    mLengths[mLoaded->batch] = static_cast<int64_t>(rows.size());
    mBatch = mBatch > 0 ? static_cast<int64_t>(rows.size()) : 0;
}

void States::join(States& other, std::vector<size_t> const& order)
{
    size_t const mine = knownBatch(), theirs = other.knownBatch();
    for (size_t at = 0; at < mLengths.size(); ++at)
    {
        if (mLoaded->symbols[at].capacity != nullptr && mLengths[at] > other.mLengths[at])
        {
            other.reserve(at, mLengths[at]);
        }
    }
    std::vector<Value> joined(mValues.size());
    for (size_t at = 0; at < mValues.size(); ++at)
    {
        StateSpec const& spec = mLoaded->states[at];
        Value const& from = mValues[at];
        if (!from.isThere)
        {
            continue;
        }
        size_t const axis = spec.batchAxis;
        std::vector<int64_t> shape = from.shape, both = from.shape;
        shape[axis] = static_cast<int64_t>(theirs);
        both[axis] = static_cast<int64_t>(mine + theirs);
        size_t const outer = elementsOf(shape.data(), axis);
        size_t const inner = elementsOf(shape.data() + axis + 1, shape.size() - axis - 1) * spec.itemBytes;
        Memory held;
        char const* second = other.current(at);
        if (second == nullptr || other.mValues[at].shape != shape)
        {
            held = newMemory(outer * theirs * inner);
            mLoaded->initial(spec, shape, held.get());
            second = held.get();
        }
        Memory whole = newMemory(outer * (mine + theirs) * inner);
        for (size_t block = 0; block < outer; ++block)
        {
            std::memcpy(
                whole.get() + block * (mine + theirs) * inner, current(at) + block * mine * inner, mine * inner);
            std::memcpy(whole.get() + (block * (mine + theirs) + mine) * inner, second + block * theirs * inner,
                theirs * inner);
        }
        Value& into = joined[at];
        into.shape = both;
        into.isThere = true;
        into.memory[0] = newMemory(outer * (mine + theirs) * inner);
        gather(whole.get(), both, axis, order, into.memory[0].get(), spec.itemBytes);
    }
    forgetBindings();
    mValues = std::move(joined);
    mTurns = 0;
    mLengths[mLoaded->batch] = static_cast<int64_t>(mine + theirs);
    mBatch = mBatch > 0 ? static_cast<int64_t>(mine + theirs) : 0;
}

int64_t States::room(size_t symbol, int64_t count) const
{
    int64_t const limit = mLimits[symbol];
    std::string const& name = mLoaded->symbols[symbol].name;
    if (limit >= 0 && count > limit)
    {
        throw shapeError(std::to_string(count) + " slots are needed on '" + shown(name)
            + "', and these states may have " + std::to_string(limit)
            + "; make them with a larger capacity (the bundle allows " + std::to_string(mLoaded->symbols[symbol].most)
            + "), or reset them.");
    }
    int64_t const multiple = mLoaded->symbols[symbol].capacity->multiple;
    int64_t length = std::max<int64_t>(mLengths[symbol] < 0 ? count : mLengths[symbol], 1);
    while (length < count)
    {
        length *= 2;
    }
    length = (length + multiple - 1) / multiple * multiple;
    return limit >= 0 ? std::min(length, limit) : length;
}

void States::reserve(size_t symbol, int64_t count)
{
    if (mLengths[symbol] >= count)
    {
        return;
    }
    int64_t const length = room(symbol, count);
    std::vector<std::pair<size_t, Value>> longer;
    for (size_t at = 0; at < mValues.size(); ++at)
    {
        StateSpec const& spec = mLoaded->states[at];
        Value const& from = mValues[at];
        std::vector<int64_t> shape = from.shape;
        bool isLonger = false;
        for (size_t axis = 0; from.isThere && axis < shape.size(); ++axis)
        {
            bool const isIt = spec.axes[axis].symbol == symbol;
            shape[axis] = isIt ? length : shape[axis];
            isLonger = isLonger || isIt;
        }
        if (!isLonger)
        {
            continue;
        }
        Value made;
        size_t const place = mTurns >> spec.turn & 1;
        made.memory[place] = newMemory(elementsOf(shape.data(), shape.size()) * spec.itemBytes);
        mLoaded->initial(spec, shape, made.memory[place].get());
        copyFront(current(at), from.shape, made.memory[place].get(), shape, 0, spec.itemBytes);
        made.shape = std::move(shape);
        made.isThere = true;
        longer.emplace_back(at, std::move(made));
    }
    forgetBindings();
    for (auto& [at, made] : longer)
    {
        mValues[at] = std::move(made);
    }
    mLengths[symbol] = length;
}

} // namespace trtc::runtime
