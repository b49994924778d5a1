// CodebookDecode in C++: its contract, and the sizes that every form works with.
#pragma once

#include "codebook_encode/codebook.h"

namespace trtc::codebook_decode
{

using codebook_encode::Kind;

Contract const& contract();

struct Sizes
{
    Kind kind;
    int64_t numTokens; //!< B * N
    int64_t width;     //!< D
    int64_t stages;    //!< S
    int64_t numCodes;  //!< K, codes or levels of the codebook
    int64_t group;     //!< channels of a sign code
    int64_t perToken;  //!< codes of a token
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

} // namespace trtc::codebook_decode
