// What one run leaves for the next, and the memory that a run needs beside the session.
//
// The memory of states is made when they are first needed and stays where it is. A run reads it and writes the new
// value into a second memory, and the two change places; only a state that gets longer with each run has new memory
// each time. What a run fails to finish is taken back: the states are as they were before it.
#pragma once

#include "loaded.h"

#include <functional>
#include <string>

namespace trtc::runtime
{

//! A tensor's memory, of whoever has it.
struct View
{
    char* data = nullptr;
    size_t bytes = 0;
    size_t rank = 0;
    int64_t shape[TRTC_MOST_AXES] = {};
    bool isThere = false;
};

//! The value of one state.
struct Value
{
    Memory memory[2];
    std::shared_ptr<OrtTensor> grown; //!< of a state that gets longer, in place of the memory
    std::vector<int64_t> shape;
    bool isThere = false;
};

class States
{
public:
    //! `batch` and `capacity`: 0 where the caller leaves them open.
    States(std::shared_ptr<Loaded> loaded, int64_t batch, int64_t capacity);

    Loaded const& loaded() const noexcept
    {
        return *mLoaded;
    }

    std::shared_ptr<Loaded> const& shared() const noexcept
    {
        return mLoaded;
    }

    // ---- a run: begin, give inputs and take outputs by slot, run, look at the slots ----

    void begin() noexcept;
    void give(size_t slot, View const& view) noexcept;
    void take(
        size_t slot, trtc_tensor* target) noexcept; //!< the caller's buffer for an output; null: the library's own

    //! Run graphs in order: the states of all of them go on, or none does.
    void run(size_t const* graphs, size_t count);

    //! The value of a slot after a run, until the next one.
    View const& slot(size_t number) const noexcept
    {
        return mSlots[number].view;
    }

    //! Called before the states of a run are kept, with the slots as they then are; what it throws takes the run back.
    std::function<void()> confirm;

    // ---- what is held ----

    std::unique_ptr<States> fork() const;
    void reset();
    void keep(std::vector<size_t> const& rows);
    void join(States& other, std::vector<size_t> const& order);

    //! Have room for so many slots of a capacity: it is doubled until it suffices.
    void reserve(size_t symbol, int64_t count);

    int64_t length(size_t symbol) const noexcept
    {
        return mLengths[symbol];
    }

    int64_t limit(size_t symbol) const noexcept
    {
        return mLimits[symbol];
    }

    //! Where a state is, or null: no run has needed it yet.
    char* current(size_t state) const;

    //! Whether a run failed while it wrote in place, so that they have to be begun anew.
    bool isBroken() const noexcept
    {
        return mIsBroken;
    }

    //! Whether this run has written in place what was there before it, so that it cannot be taken back.
    bool hasWrittenInPlace() const noexcept
    {
        return mHasWritten;
    }

    Value const& value(size_t state) const noexcept
    {
        return mValues[state];
    }

    // ---- threads: one at a time, and who comes second is refused ----

    std::atomic<bool> isUsed{false};

private:
    struct Slot
    {
        View view;
        Memory own;
        size_t ownBytes = 0;
        trtc_tensor* target = nullptr;
        std::shared_ptr<OrtTensor> made;
    };

    struct Bound
    {
        uint64_t turns;
        std::unique_ptr<Binding> binding;
    };

    std::shared_ptr<Loaded> mLoaded;
    int64_t mBatch, mCapacity;
    std::vector<Value> mValues;
    std::vector<int64_t> mLengths, mLimits, mGiven;
    std::vector<Slot> mSlots;
    std::vector<std::vector<Bound>> mBound; //!< by graph
    uint64_t mTurns = 0;
    bool mIsBroken = false, mHasWritten = false; //!< in place: a state that was there before this run

    // What takes a run back.
    std::vector<size_t> mNew;
    std::vector<std::pair<size_t, Value>> mBefore; //!< of those that got longer
    std::vector<int64_t> mLengthsBefore;

    void checkInputs(size_t const* graphs, size_t count);
    void fit(LoadedGraph const& graph);
    void runOne(size_t number);
    Binding& binding(size_t graph);
    void bindOutput(Binding& binding, Port const& port, size_t index);
    void keepMade(Binding& binding, Port const& port, size_t index);
    int64_t axisLength(StateSpec const& spec, Axis const& axis) const;
    char* other(size_t state);
    int64_t room(size_t symbol, int64_t count) const;
    size_t knownBatch() const;
    void forgetBindings();
    void refuseBroken() const;
    void makeSmallest();
};

} // namespace trtc::runtime
