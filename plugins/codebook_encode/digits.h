// The digits of FSQ on the host, which CodebookEncode and CodebookDecode share.
#pragma once

#include <cmath>

#include "codebook_encode/codebook.h"
#include "common/half.h"

namespace trtc::codebook_encode
{

//! The levels of FSQ as numbers.
struct Digits
{
    int64_t channels;
    int64_t numCodes;
    float levels[kMOST_FSQ_CHANNELS];
    float base[kMOST_FSQ_CHANNELS]; //!< what one step of the digit adds to the code
};

//! Reads the numbers of levels; the sentence if they are none.
inline Error readDigits(void const* codebook, DType type, int64_t channels, Digits& digits)
{
    digits = {channels, 1, {}, {}};
    dispatchFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            toFloats(digits.levels, static_cast<T const*>(codebook), channels);
        });
    for (int64_t d = 0; d < channels; ++d)
    {
        float const number = digits.levels[d];
        if (!(number >= 2.0F && number <= static_cast<float>(kMOST_LEVELS) && number == std::floor(number)))
        {
            return "codebook holds " + std::to_string(number) + " as the number of levels of channel "
                + std::to_string(d) + "; it must be a whole number in 2.." + std::to_string(kMOST_LEVELS)
                + ", see fsq_codebook.";
        }
        digits.base[d] = static_cast<float>(digits.numCodes);
        digits.numCodes *= static_cast<int64_t>(number);
        if (digits.numCodes > kMOST_FSQ_CODES)
        {
            return "codebook holds levels that give more than 2**24 codes; give fewer levels or channels.";
        }
    }
    return {};
}

} // namespace trtc::codebook_encode
