// Sequences of tokens that a bundle reads by its procedure: `trt_compress.format.procedure` says what happens when.
#pragma once

#include "states.h"

#include <cstdint>
#include <string>
#include <vector>

namespace trtc::runtime
{

class Sequences
{
public:
    //! Begin sequences; `batch` and `capacity` are 0 where the caller leaves them open.
    Sequences(std::shared_ptr<Loaded> loaded, int64_t batch, int64_t capacity);

    States& states() noexcept
    {
        return *mStates;
    }

    std::vector<int64_t> const& seen() const noexcept
    {
        return mSeen;
    }

    //! Numbers in a row of logits; 0: the bundle does not say.
    size_t vocabulary() const noexcept;

    //! What the bundle's logits are.
    trtc_dtype logitsType() const noexcept;

    //! Run what stands before the prompt; inputs by `graph.tensor`, whose dtype and size were checked.
    void attend(std::vector<std::pair<Port const*, View>> const& inputs);

    //! Read tokens that are known; `logits` takes [B, V].
    void read(int64_t const* const* texts, size_t const* lengths, trtc_tensor& logits);

    //! Read the next token of each; `ended` may be null.
    void step(int64_t const* tokens, uint8_t const* ended, trtc_tensor& logits);

    void keep(std::vector<size_t> const& rows);

    //! The ports that `attend` takes.
    std::vector<Port const*> const& mediaInputs() const noexcept
    {
        return mMediaInputs;
    }

private:
    //! What is read of the beginnings of texts in one run.
    struct Part
    {
        int64_t start = 0;  //!< number of the first token
        int64_t tokens = 0; //!< T
        std::vector<int64_t> counts;
    };

    struct Feed
    {
        size_t slot;
        std::string what;
        bool isShort; //!< int32
        std::vector<char> memory;
    };

    //! Graphs that are run in turn, with what the runtime makes for them.
    struct Turn
    {
        std::vector<size_t> graphs;
        std::vector<std::string> names;
        std::vector<Feed> feeds;
        std::vector<size_t> capacities; //!< symbols of those that these graphs add to
        Port const* logits = nullptr;
    };

    struct Texts
    {
        std::vector<int64_t const*> data;
        std::vector<int64_t> lengths;
        std::vector<std::vector<int64_t>> rows; //!< of media; empty: no token stands for any
    };

    std::shared_ptr<Loaded> mLoaded;
    std::unique_ptr<States> mStates;
    Procedure const& mProcedure;
    bool mTellsFilling = false, mIsFixed = false;
    std::vector<int64_t> mSeen;
    bool mAttended = false;
    Turn mPrompt, mStep;
    std::vector<Turn> mUpkeep, mMedia;
    std::vector<Port const*> mMediaInputs;
    Texts mOne; //!< of a step
    Part mStepPart;

    Turn turnOf(std::vector<std::string> const& names, std::string const& logits) const;
    void checkVocabulary(trtc_tensor const& logits, size_t columns, Turn const& turn) const;
    void readMedia(Texts& texts) const;
    void run(Turn& turn, Part const& part, Texts const& texts, std::vector<char const*> const& moments,
        std::vector<char>* apart);
    void runWithout(std::vector<size_t> const& aside, Turn& turn, Part const& part, Texts const& texts,
        std::vector<char const*> const& moments, std::vector<char>& logits);
    std::vector<size_t> withoutRoom(Turn const& turn, Part const& part) const;
    void feed(Turn& turn, Part const& part, Texts const& texts);
    void turn(Turn& turn, Port const* check);
    void keepUp(std::vector<char const*> const& moments);
    void reserve(Turn const& turn, int64_t tokens);
    int64_t used(size_t symbol, size_t row) const;
    int64_t fullest(size_t symbol) const;
    void refuseNan(Port const& logits) const;
    void copyRow(View const& logits, size_t row, int64_t token, size_t item, char* into) const;
};

} // namespace trtc::runtime
