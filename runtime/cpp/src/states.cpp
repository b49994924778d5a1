#include "states.h"

#include "error.h"

#include <algorithm>
#include <cstring>

namespace trtc::runtime
{
namespace
{

std::string dimsText(Loaded const& loaded, std::vector<Axis> const& axes)
{
    std::string found = "[";
    for (size_t at = 0; at < axes.size(); ++at)
    {
        found += at ? ", " : "";
        found +=
            axes[at].symbol == kNONE ? std::to_string(axes[at].length) : shown(loaded.symbols[axes[at].symbol].name);
    }
    return found + "]";
}

} // namespace

States::States(std::shared_ptr<Loaded> loaded, int64_t batch, int64_t capacity)
    : mLoaded(std::move(loaded))
    , mBatch(batch)
    , mCapacity(capacity)
    , mValues(mLoaded->states.size())
    , mLengths(mLoaded->symbols.size(), -1)
    , mLimits(mLoaded->symbols.size(), -1)
    , mGiven(mLoaded->symbols.size(), -1)
    , mSlots(mLoaded->numSlots)
    , mBound(mLoaded->graphs.size())
{
    bool hasBatch = mValues.empty(), hasLimit = false;
    for (StateSpec const& each : mLoaded->states)
    {
        hasBatch = hasBatch || each.batchAxis != kNONE;
    }
    if (batch < 0 || (batch > 0 && !hasBatch))
    {
        throw configError("batch=" + std::to_string(batch)
            + (batch < 0 ? "; give a whole number of at least 1."
                         : "; the bundle was exported for a fixed batch: leave it "
                           "out."));
    }
    int64_t least = INT64_MAX, most = 0; // of all capacities together; each takes as much of the caller's as it can
    for (size_t at = 0; at < mLoaded->symbols.size(); ++at)
    {
        Symbol const& symbol = mLoaded->symbols[at];
        mLimits[at] = symbol.most;
        if (symbol.capacity != nullptr || symbol.grows)
        {
            hasLimit = true;
            least = std::min(least, symbol.least);
            most = std::max(most, symbol.most < 0 ? INT64_MAX : symbol.most);
        }
    }
    if (capacity != 0 && hasLimit && (capacity < least || capacity > most))
    {
        throw configError("capacity=" + std::to_string(capacity) + "; the bundle allows " + std::to_string(least)
            + (most == INT64_MAX ? " or more" : " to " + std::to_string(most))
            + ": give that, or export it for longer sequences.");
    }
    for (size_t at = 0; capacity != 0 && at < mLoaded->symbols.size(); ++at)
    {
        Symbol const& symbol = mLoaded->symbols[at];
        if (symbol.capacity != nullptr || symbol.grows)
        {
            int64_t const multiple = symbol.capacity == nullptr ? 1 : symbol.capacity->multiple;
            int64_t const wanted = std::max(symbol.least, symbol.most < 0 ? capacity : std::min(capacity, symbol.most));
            int64_t const rounded = (wanted + multiple - 1) / multiple * multiple;
            mLimits[at] = symbol.most < 0 ? rounded : std::min(rounded, symbol.most);
        }
    }
    if (capacity != 0 && !hasLimit)
    {
        throw configError(
            "capacity=" + std::to_string(capacity) + "; the states of this bundle have a fixed size: leave it out.");
    }
    mNew.reserve(mValues.size());
    mLengthsBefore.reserve(mLengths.size());
    makeSmallest();
}

void States::begin() noexcept
{
    for (Slot& slot : mSlots)
    {
        slot.view.isThere = false;
        slot.target = nullptr;
    }
}

void States::give(size_t slot, View const& view) noexcept
{
    mSlots[slot].view = view;
    mSlots[slot].view.isThere = true;
}

void States::take(size_t slot, trtc_tensor* target) noexcept
{
    mSlots[slot].target = target;
}

void States::checkInputs(size_t const* graphs, size_t count)
{
    std::fill(mGiven.begin(), mGiven.end(), -1);
    for (size_t at = 0; at < count; ++at)
    {
        for (Port const& port : mLoaded->graphs[graphs[at]].inputs)
        {
            bool const isLinked = port.slot != kNONE && !port.isGiven && mSlots[port.slot].view.isThere;
            if (port.slot == kNONE || (!port.isGiven && !isLinked))
            {
                continue;
            }
            View const& view = mSlots[port.slot].view;
            std::string const& name = port.whole;
            if (!view.isThere)
            {
                throw configError("Input '" + shown(name) + "' is missing; give " + trtc_dtype_name(port.dtype)
                    + " of shape " + dimsText(*mLoaded, port.axes) + ".");
            }
            if (view.rank != port.axes.size())
            {
                throw shapeError("Input '" + shown(name) + "' has " + std::to_string(view.rank) + " axes, shape "
                    + shapeText(view.shape, view.rank) + "; the graph takes " + dimsText(*mLoaded, port.axes) + ".");
            }
            for (size_t axis = 0; axis < view.rank; ++axis)
            {
                Axis const& wanted = port.axes[axis];
                int64_t const length = view.shape[axis];
                int64_t& given = wanted.symbol == kNONE ? mGiven[0] : mGiven[wanted.symbol];
                if (wanted.symbol == kNONE ? length != wanted.length : given >= 0 && given != length)
                {
                    throw shapeError("Input '" + shown(name) + "' has " + std::to_string(length) + " on axis "
                        + std::to_string(axis) + ", shape " + shapeText(view.shape, view.rank) + "; the graph takes "
                        + dimsText(*mLoaded, port.axes)
                        + (wanted.symbol == kNONE ? "."
                                                  : ", and another input has '" + mLoaded->symbols[wanted.symbol].name
                                    + "' = " + std::to_string(given) + "."));
                }
                if (wanted.symbol != kNONE)
                {
                    given = length;
                }
            }
        }
    }
}

int64_t States::axisLength(StateSpec const& spec, Axis const& axis) const
{
    if (axis.symbol == kNONE)
    {
        return axis.length;
    }
    Symbol const& symbol = mLoaded->symbols[axis.symbol];
    int64_t const held = mLengths[axis.symbol];
    int64_t const given = mGiven[axis.symbol] >= 0 ? mGiven[axis.symbol] : held;
    if (given < 0)
    {
        if (symbol.grows)
        {
            return 0;
        }
        throw configError("Nothing says yet how long the state '" + shown(spec.key) + "' is on '" + shown(symbol.name)
            + "'; run a graph with an input that does, or make the states with a batch.");
    }
    if (held >= 0 && given != held)
    {
        throw shapeError("This run has '" + shown(symbol.name) + "' = " + std::to_string(given) + ", and the state '"
            + shown(spec.key) + "' holds " + std::to_string(held) + " from before; reset the states to start anew.");
    }
    return given;
}

void States::fit(LoadedGraph const& graph)
{
    for (size_t const number : graph.states)
    {
        StateSpec const& spec = mLoaded->states[number];
        Value& value = mValues[number];
        if (value.isThere)
        {
            for (Axis const& axis : spec.axes)
            {
                if (axis.symbol != kNONE && !mLoaded->symbols[axis.symbol].grows)
                {
                    axisLength(spec, axis);
                }
            }
            continue;
        }
        std::vector<int64_t> shape;
        for (Axis const& axis : spec.axes)
        {
            shape.push_back(axisLength(spec, axis));
        }
        size_t bytes = spec.itemBytes;
        for (int64_t const each : shape)
        {
            if (!multiply(bytes, each))
            {
                throw Error(TRTC_ERROR_MEMORY,
                    "There is no memory for the state '" + shown(spec.key)
                        + "'; run fewer sequences, or give a smaller capacity.");
            }
        }
        value.memory[0] = newMemory(bytes);
        mLoaded->initial(spec, shape, value.memory[0].get());
        value.memory[1].reset();
        if ((mTurns >> spec.turn & 1) != 0)
        {
            std::swap(value.memory[0], value.memory[1]);
        }
        value.shape = std::move(shape);
        value.isThere = true;
        mNew.push_back(number);
    }
    for (size_t const number : graph.states)
    {
        for (Axis const& axis : mLoaded->states[number].axes)
        {
            if (axis.symbol != kNONE && mGiven[axis.symbol] >= 0)
            {
                mLengths[axis.symbol] = mGiven[axis.symbol];
            }
        }
    }
}

char* States::current(size_t state) const
{
    Value const& value = mValues[state];
    if (!value.isThere)
    {
        return nullptr;
    }
    return value.grown != nullptr ? static_cast<char*>(value.grown->data())
                                  : value.memory[mTurns >> mLoaded->states[state].turn & 1].get();
}

char* States::other(size_t state)
{
    Value& value = mValues[state];
    Memory& memory = value.memory[1 - (mTurns >> mLoaded->states[state].turn & 1)];
    if (memory == nullptr)
    {
        memory = newMemory(elementsOf(value.shape.data(), value.shape.size()) * mLoaded->states[state].itemBytes);
    }
    return memory.get();
}

Binding& States::binding(size_t graph)
{
    uint64_t turns = 0;
    for (size_t const turn : mLoaded->graphs[graph].turns)
    {
        turns |= mTurns & uint64_t{1} << turn;
    }
    for (Bound& each : mBound[graph])
    {
        if (each.turns == turns)
        {
            return *each.binding;
        }
    }
    LoadedGraph const& of = mLoaded->graphs[graph];
    mBound[graph].push_back({turns, std::make_unique<Binding>(*of.ort, *of.spec)});
    return *mBound[graph].back().binding;
}

void States::bindOutput(Binding& binding, Port const& port, size_t index)
{
    if (port.state != kNONE)
    {
        StateSpec const& spec = mLoaded->states[port.state];
        Value const& value = mValues[port.state];
        if (spec.grows)
        {
            binding.bindAnew(index);
            return;
        }
        size_t const bytes = elementsOf(value.shape.data(), value.shape.size()) * spec.itemBytes;
        char* const into = port.isInPlace ? current(port.state) : other(port.state);
        binding.bind(false, index, into, bytes, value.shape.data(), value.shape.size());
        return;
    }
    Slot& slot = mSlots[port.slot];
    View& view = slot.view;
    view.isThere = false;
    bool isKnown = port.isDetermined;
    view.rank = port.axes.size();
    size_t bytes = port.itemBytes;
    for (size_t axis = 0; isKnown && axis < view.rank; ++axis)
    {
        size_t const symbol = port.axes[axis].symbol;
        int64_t const length = symbol == kNONE ? port.axes[axis].length
            : mGiven[symbol] >= 0              ? mGiven[symbol]
            : mLoaded->symbols[symbol].grows   ? -1
                                               : mLengths[symbol];
        isKnown = length >= 0 && (length == 0 || bytes <= SIZE_MAX / 4 / static_cast<size_t>(length));
        view.shape[axis] = length;
        bytes *= isKnown ? static_cast<size_t>(length) : 0;
    }
    if (!isKnown)
    {
        binding.bindAnew(index);
        return;
    }
    view.bytes = bytes;
    if (slot.target != nullptr)
    {
        if (slot.target->bytes < bytes || (slot.target->data == nullptr && bytes != 0))
        {
            throw shapeError("The output '" + shown(port.whole) + "' takes " + std::to_string(bytes) + " bytes, shape "
                + shapeText(view.shape, view.rank) + ", and the buffer has "
                + std::to_string(slot.target->data == nullptr ? 0 : slot.target->bytes) + "; give a larger one.");
        }
        view.data = static_cast<char*>(slot.target->data);
    }
    else
    {
        if (slot.own == nullptr || slot.ownBytes < bytes)
        {
            slot.own = newMemory(bytes);
            slot.ownBytes = bytes;
        }
        view.data = slot.own.get();
    }
    binding.bind(false, index, view.data, bytes, view.shape, view.rank);
    view.isThere = true;
}

void States::keepMade(Binding& binding, Port const& port, size_t index)
{
    auto made = binding.made(index);
    std::vector<int64_t> const shape = made->shape();
    if (shape.size() > TRTC_MOST_AXES || shape.size() != port.axes.size())
    {
        throw shapeError("The graph gave '" + shown(port.whole) + "' the shape " + shapeText(shape.data(), shape.size())
            + ", which the manifest has as " + dimsText(*mLoaded, port.axes) + "; export the bundle again.");
    }
    size_t const bytes = elementsOf(shape.data(), shape.size()) * port.itemBytes;
    if (port.state != kNONE)
    {
        StateSpec const& spec = mLoaded->states[port.state];
        for (size_t axis = 0; axis < shape.size(); ++axis)
        {
            size_t const symbol = spec.axes[axis].symbol;
            bool const grows = symbol != kNONE && mLoaded->symbols[symbol].grows;
            int64_t const wanted = symbol == kNONE ? spec.axes[axis].length
                : mGiven[symbol] >= 0              ? mGiven[symbol]
                                                   : mLengths[symbol];
            if (grows ? mLimits[symbol] >= 0 && shape[axis] > mLimits[symbol] : shape[axis] != wanted)
            {
                throw shapeError("This run would give the state '" + shown(spec.key) + "' the shape "
                    + shapeText(shape.data(), shape.size()) + ", and the manifest has it as "
                    + dimsText(*mLoaded, spec.axes)
                    + (grows ? ", with a capacity of " + std::to_string(mLimits[symbol]) : "")
                    + "; reset the states, or export with a larger capacity.");
            }
        }
        Value& value = mValues[port.state];
        Value before;
        before.memory[0] = std::move(value.memory[0]);
        before.memory[1] = std::move(value.memory[1]);
        before.grown = std::move(value.grown);
        before.shape = std::move(value.shape);
        before.isThere = value.isThere;
        mBefore.emplace_back(port.state, std::move(before));
        value.grown = std::move(made);
        value.shape = shape;
        value.isThere = true;
        return;
    }
    Slot& slot = mSlots[port.slot];
    slot.view.rank = shape.size();
    std::copy(shape.begin(), shape.end(), slot.view.shape);
    slot.view.bytes = bytes;
    slot.view.data = static_cast<char*>(made->data());
    slot.made = std::move(made);
    if (slot.target != nullptr)
    {
        if (slot.target->bytes < bytes || (slot.target->data == nullptr && bytes != 0))
        {
            throw shapeError("The output '" + shown(port.whole) + "' takes " + std::to_string(bytes) + " bytes, shape "
                + shapeText(shape.data(), shape.size()) + ", and the buffer has " + std::to_string(slot.target->bytes)
                + "; give a larger one.");
        }
        std::memcpy(slot.target->data, slot.view.data, bytes);
    }
    slot.view.isThere = true;
}

void States::runOne(size_t number)
{
    LoadedGraph const& graph = mLoaded->graphs[number];
    fit(graph);
    Binding& bound = binding(number);
    for (size_t at = 0; at < graph.inputs.size(); ++at)
    {
        Port const& port = graph.inputs[at];
        if (port.state != kNONE)
        {
            Value const& value = mValues[port.state];
            size_t const bytes = elementsOf(value.shape.data(), value.shape.size()) * port.itemBytes;
            bound.bind(true, at, current(port.state), bytes, value.shape.data(), value.shape.size());
            continue;
        }
        View const& view = mSlots[port.slot].view;
        if (!view.isThere)
        {
            throw configError("Input '" + shown(port.whole) + "' is missing: nothing that ran before gives it.");
        }
        bound.bind(true, at, view.data, view.bytes, view.shape, view.rank);
    }
    for (size_t at = 0; at < graph.outputs.size(); ++at)
    {
        bindOutput(bound, graph.outputs[at], at);
    }
    for (size_t const state : graph.inPlace)
    {
        mHasWritten = mHasWritten || std::find(mNew.begin(), mNew.end(), state) == mNew.end();
    }
    bound.run();
    for (size_t at = 0; at < graph.outputs.size(); ++at)
    {
        Port const& port = graph.outputs[at];
        bool const isAnew = port.state != kNONE ? mLoaded->states[port.state].grows : !mSlots[port.slot].view.isThere;
        if (isAnew)
        {
            keepMade(bound, port, at);
        }
    }
    for (size_t const turn : graph.swapped)
    {
        mTurns ^= uint64_t{1} << turn;
    }
}

void States::run(size_t const* graphs, size_t count)
{
    if (mLoaded->isClosed.load(std::memory_order_relaxed))
    {
        throw configError("The session of these states is closed; open the bundle again.");
    }
    refuseBroken();
    checkInputs(graphs, count);
    uint64_t const turns = mTurns;
    mHasWritten = false;
    mNew.clear();
    mBefore.clear();
    mLengthsBefore.assign(mLengths.begin(), mLengths.end());
    try
    {
        for (size_t at = 0; at < count; ++at)
        {
            runOne(graphs[at]);
        }
        if (confirm)
        {
            confirm();
        }
    }
    catch (...)
    {
        while (!mBefore.empty())
        {
            mValues[mBefore.back().first] = std::move(mBefore.back().second);
            mBefore.pop_back();
        }
        for (size_t const state : mNew)
        {
            mValues[state] = Value();
        }
        mTurns = turns;
        mIsBroken = mHasWritten;
        mLengths = mLengthsBefore;
        forgetBindings(); // what failed may be bound to memory that is gone
        throw;
    }
    mBefore.clear();
}

void States::refuseBroken() const
{
    if (mIsBroken)
    {
        throw configError("A run failed while it was writing these states in place, so that nothing is known of them; "
                          "reset them, or begin new ones.");
    }
}

void States::forgetBindings()
{
    for (auto& each : mBound)
    {
        each.clear();
    }
}

} // namespace trtc::runtime
