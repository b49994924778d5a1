// What CodebookEncode and CodebookDecode share: the kinds, and the check of a codebook's shape.
#pragma once

#include "common/contract.h"

namespace trtc::codebook_encode
{

//! In the order of the attribute's values.
enum class Kind : int64_t
{
    kVECTOR,
    kTABLE,
    kFSQ,
    kSIGN,
};

constexpr int64_t kMOST_BITS = 30;                    //!< of one sign code
constexpr int64_t kMOST_LEVELS = 256;                 //!< of one FSQ channel
constexpr int64_t kMOST_FSQ_CODES = int64_t{1} << 24; //!< of one token, whole numbers of float32
constexpr int64_t kMOST_FSQ_CHANNELS = 24;            //!< with two levels each they have that many codes
constexpr float kWIDENING = 1.001F;                   //!< of an FSQ channel's range, so that the last level is reached

inline Kind kindOf(Attributes const& attributes)
{
    return static_cast<Kind>(attributes.integer("kind"));
}

//! Last axis of the code.
template <typename Size>
Size codesPerToken(Kind kind, Size stages, Size width, int64_t group)
{
    switch (kind)
    {
    case Kind::kVECTOR: return stages;
    case Kind::kTABLE: return width;
    case Kind::kFSQ: return 1;
    case Kind::kSIGN: return width / group;
    }
    return 0;
}

//! An error unless codebook, kind and group belong together.
inline Error checkCodebook(Attributes const& attributes, Shape const& codebook, int64_t width)
{
    constexpr char const* kNAMES[] = {"vector", "table", "fsq", "sign"};
    Kind const kind = kindOf(attributes);
    int64_t const group = attributes.integer("group");
    Error const error = checkShape("codebook", codebook, {-1, -1, width}, "SKD");
    if (!error.empty())
    {
        return error;
    }
    std::string const given = "codebook has shape " + textOf(codebook) + "; ";
    std::string const name = std::string("kind='") + kNAMES[static_cast<size_t>(kind)] + "'";
    bool const isPlain = kind == Kind::kFSQ || kind == Kind::kSIGN;
    if (kind == Kind::kTABLE && codebook[0] != 1)
    {
        return given + "a table has one stage, [1, K, D].";
    }
    if (isPlain && (codebook[0] != 1 || codebook[1] != 1))
    {
        return given + name + " takes [1, 1, D], see " + kNAMES[static_cast<size_t>(kind)] + "_codebook.";
    }
    if (codebook[0] < 1 || codebook[1] < 1)
    {
        return given + "it must hold at least one code.";
    }
    if (kind == Kind::kFSQ && codebook[2] > kMOST_FSQ_CHANNELS)
    {
        return given + "kind='fsq' takes at most " + std::to_string(kMOST_FSQ_CHANNELS)
            + " channels, for at most 2**24 codes of a token.";
    }
    if (kind == Kind::kSIGN && codebook[2] % group != 0)
    {
        return "group=" + std::to_string(group) + " does not divide D=" + std::to_string(codebook[2])
            + " channels; give a divisor.";
    }
    if (kind != Kind::kSIGN && group != 1)
    {
        return "group=" + std::to_string(group) + " is for sign bits, and " + name + "; leave it at 1.";
    }
    return {};
}

} // namespace trtc::codebook_encode
