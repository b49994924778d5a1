// SHA-256 (FIPS 180-4) of bytes that come one part after another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace trtc::runtime
{

class Sha256
{
public:
    //! Take the next part.
    void add(void const* data, size_t bytes) noexcept;

    //! The hash, 64 small hexadecimal digits; nothing may be added after it.
    std::string hex();

private:
    void block(uint8_t const* data) noexcept;

    std::array<uint32_t, 8> mState{
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> mRest{};
    uint64_t mBytes = 0;
};

//! The hash of bytes that are there.
std::string sha256(void const* data, size_t bytes);

} // namespace trtc::runtime
