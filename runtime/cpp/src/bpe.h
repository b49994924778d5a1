// Byte-pair encoding: a word's pieces are put together in the order of the merges.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace trtc::runtime
{

//! What a `tokenizer.json` says of its model.
struct BpeParts
{
    std::unordered_map<std::string, int64_t> vocabulary;
    std::vector<std::pair<std::string, std::string>> merges;
    bool hasUnknown = false;
    std::string unknown;
    bool fusesUnknown = false, fallsBackToBytes = false, takesWholeWords = false;
};

class Bpe
{
public:
    //! Throws std::invalid_argument, which says what is wrong with the parts.
    explicit Bpe(BpeParts parts);

    //! The tokens of a word, UTF-8, behind those that are there.
    void encode(std::string const& word, std::vector<int64_t>& into) const;

    int64_t number(std::string const& token) const; //!< -1: there is none
    std::string const* token(int64_t number) const; //!< null: there is none

    std::unordered_map<std::string, int64_t> const& vocabulary() const noexcept
    {
        return mVocabulary;
    }

private:
    struct Merge
    {
        uint32_t rank;
        int32_t whole;
    };

    struct Piece
    {
        int64_t token;
        int32_t before, behind; //!< -1: none
        bool isGone;
    };

    std::unordered_map<std::string, int64_t> mVocabulary;
    std::unordered_map<int64_t, std::string const*> mTokens;
    std::unordered_map<uint64_t, Merge> mMerges;
    int64_t mBytes[256];
    int64_t mUnknown = -1;
    bool mFusesUnknown, mFallsBackToBytes, mTakesWholeWords;

    std::vector<int64_t> piecesOf(std::string const& word) const;
    Merge const* merge(int64_t left, int64_t right) const;
};

} // namespace trtc::runtime
