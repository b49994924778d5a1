// The one exception of the library. It is caught where the C interface begins, and becomes a status and a sentence.
#pragma once

#include "trt_compress/runtime.h"

#include <stdexcept>
#include <string>

namespace trtc::runtime
{

class Error : public std::runtime_error
{
public:
    Error(trtc_status status, std::string const& message)
        : std::runtime_error(message)
        , mStatus(status)
    {
    }

    trtc_status status() const noexcept
    {
        return mStatus;
    }

private:
    trtc_status mStatus;
};

inline Error configError(std::string const& message)
{
    return Error(TRTC_ERROR_CONFIG, message);
}

inline Error shapeError(std::string const& message)
{
    return Error(TRTC_ERROR_SHAPE, message);
}

inline Error bundleError(std::string const& message)
{
    return Error(TRTC_ERROR_BUNDLE, message);
}

inline Error unsupportedError(std::string const& message)
{
    return Error(TRTC_ERROR_UNSUPPORTED, message);
}

//! Text of a stranger as it may stand in a message: at most `most` bytes, control characters as `?`.
inline std::string shown(std::string const& text, size_t most = 120)
{
    std::string found = text.substr(0, most);
    while (
        !found.empty() && text.size() > found.size() && (static_cast<unsigned char>(text[found.size()]) & 0xC0) == 0x80)
    {
        found.pop_back(); // not in the midst of a character
    }
    for (char& each : found)
    {
        if (static_cast<unsigned char>(each) < 0x20 || each == 0x7F)
        {
            each = '?';
        }
    }
    return text.size() > found.size() ? found + "…" : found;
}

} // namespace trtc::runtime
