// What makes tokens of a text and a text of tokens, read from a `tokenizer.json` as the library tokenizers writes it.
#pragma once

#include "bpe.h"
#include "text_steps.h"
#include "trt_compress/runtime.h"

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace trtc::runtime
{

class Tokenizer
{
public:
    //! Read it. `where` is the file, as it stands in a message. Throws Error: `damaged` if it is none, and
    //! TRTC_ERROR_UNSUPPORTED if it has a part that is not read.
    Tokenizer(char const* data, size_t bytes, std::string const& where, trtc_status damaged);

    //! The tokens of a text, UTF-8. `special`: with what the model wants around one.
    std::vector<int64_t> encode(std::string_view text, bool special) const;

    //! The text of tokens, without special ones.
    std::string decode(int64_t const* tokens, size_t count) const;

    //! All numbers of tokens are below it.
    int64_t size() const noexcept
    {
        return mSize;
    }

    //! The number of the added token that is written so; none: there is none.
    std::optional<int64_t> special(std::string const& text) const;

    //! Whether a token is one byte of a run of them that is decoded only as a whole; none: it has no text.
    std::optional<bool> isOpen(int64_t token) const;

private:
    struct Added
    {
        std::string content;
        bool stripsLeft = false, stripsRight = false, isNormalized = true, isSpecial = false;

        bool operator==(Added const& other) const
        {
            return content == other.content && stripsLeft == other.stripsLeft && stripsRight == other.stripsRight
                && isNormalized == other.isNormalized && isSpecial == other.isSpecial;
        }
    };

    //! Finds added tokens in a text: the leftmost, and of these the longest.
    class Finder
    {
    public:
        void add(std::u32string const& text, int64_t token);
        size_t longest(std::u32string const& text, size_t at, int64_t& token) const; //!< its characters; 0: none

    private:
        struct Node
        {
            std::map<char32_t, size_t> next;
            int64_t token = -1;
        };
        std::vector<Node> mNodes = std::vector<Node>(1);
    };

    std::optional<Bpe> mModel;
    std::optional<Normalizer> mNormalizer;
    std::optional<Cutter> mCutter;
    std::optional<Decoder> mDecoder;
    std::map<std::string, int64_t> mAddedNumbers;
    std::map<int64_t, Added> mAdded;
    std::set<std::string> mSpecial;
    Finder mPlain, mNormalized;
    std::vector<int64_t> mBefore, mBehind; //!< what is put around a text
    std::set<int64_t> mSilent, mBytes;
    int64_t mSize = 0;

    void readAdded(Json const& data);
    void readTemplate(Json const& from);
    std::optional<int64_t> numberOf(std::string const& token) const;
    std::string const* textOf(int64_t token) const;
    void split(Finder const& finder, Part const& part, std::vector<Part>& into) const;
};

} // namespace trtc::runtime
