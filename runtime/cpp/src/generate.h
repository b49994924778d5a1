// An answer that is written to a prompt: the bundle reads it, and a token is chosen and read again, until something
// ends it.
#pragma once

#include "detokenizer.h"
#include "sampling.h"
#include "sequences.h"

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace trtc::runtime
{

struct GenerateOptions
{
    int64_t maxNew = 0;   //!< 0: as the bundle says, else 256
    int64_t capacity = 0; //!< 0: as many tokens as the bundle allows
    std::optional<Sampling> sampling;
    uint64_t seed = 0;
    std::vector<std::string> stops;
    std::vector<int64_t> stopTokens;
    bool ignoresStopTokens = false, isDetached = false;
};

class Generation
{
public:
    //! `tokenizer` may be null: then there is no text. Throws Error.
    Generation(std::shared_ptr<Loaded> loaded, std::shared_ptr<Tokenizer const> tokenizer, std::vector<int64_t> prompt,
        GenerateOptions const& options);

    //! Go on by one token; its text lives until the next call.
    void next(trtc_piece& piece);

    Sequences& sequences() noexcept
    {
        return *mSequences;
    }

private:
    std::shared_ptr<Loaded> mLoaded;
    std::shared_ptr<Tokenizer const> mTokenizer;
    std::vector<int64_t> mPrompt;
    std::unique_ptr<Sequences> mSequences;
    std::optional<Chooser> mChooser;
    std::optional<Detokenizer> mDetokenizer;
    std::optional<StopTexts> mStops;
    std::set<int64_t> mStopTokens;
    int64_t mMost = 0, mCount = 0, mLast = 0;
    bool mIsShortOfRoom = false, mIsRead = false;
    trtc_reason mReason = TRTC_GOES_ON;
    std::vector<char> mBytes;
    std::vector<float> mLogits;
    std::string mText;

    void readLogits();
    std::string rest();
};

//! What a bundle says of how tokens are chosen.
Sampling samplingOf(TextInfo const& text);

} // namespace trtc::runtime
