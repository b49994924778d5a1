// Tokens become text one by one: what has been given out never changes, and together it is the text of all of them.
#pragma once

#include "tokenizer.h"

#include <string>
#include <vector>

namespace trtc::runtime
{

//! The text of a sequence of tokens as it grows; `trt_compress.runtime.generate.detokenize` says how.
class Detokenizer
{
public:
    //! Behind other tokens, whose text is not given out.
    Detokenizer(Tokenizer const& tokenizer, int64_t const* before, size_t count);

    //! The text that is now certain; often none.
    std::string add(int64_t token);

    //! What is left when no token follows.
    std::string rest();

private:
    Tokenizer const& mTokenizer;
    std::vector<int64_t> mTokens;
    bool mIsOpen = false;
    std::string mGiven;
    size_t mStart = 0, mDone = 0;

    void take(int64_t token);
    std::string decodedFrom(size_t place) const;
    std::string give(std::string text);
};

//! Gives a text out up to the first text that ends it, of which nothing is given out.
class StopTexts
{
public:
    explicit StopTexts(std::vector<std::string> stops);

    //! What can be given out of what was held back and this; `ended`: nothing more will be.
    std::string add(std::string const& text, bool& ended);

    //! What was held back, when nothing follows.
    std::string rest();

private:
    std::vector<std::string> mStops;
    std::string mHeld;
};

} // namespace trtc::runtime
