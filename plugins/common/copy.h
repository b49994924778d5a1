// Copies of bytes that may be none: memcpy must not be given null even then, and a tensor without elements has no
// memory.
#pragma once

#include <cstddef>
#include <cstring>

namespace trtc
{

inline void copyBytes(void* to, void const* from, size_t count)
{
    if (count != 0)
    {
        std::memcpy(to, from, count);
    }
}

//! `from` and `to` may overlap.
inline void moveBytes(void* to, void const* from, size_t count)
{
    if (count != 0)
    {
        std::memmove(to, from, count);
    }
}

inline void clearBytes(void* to, size_t count)
{
    if (count != 0)
    {
        std::memset(to, 0, count);
    }
}

} // namespace trtc
