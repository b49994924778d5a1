#include "sha256.h"

#include <algorithm>
#include <cstring>

namespace trtc::runtime
{
namespace
{

constexpr uint32_t kROUNDS[64] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
    0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152,
    0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138,
    0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70,
    0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5,
    0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa,
    0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

inline uint32_t turned(uint32_t value, int by) noexcept
{
    return value >> by | value << (32 - by);
}

} // namespace

void Sha256::block(uint8_t const* data) noexcept
{
    uint32_t words[64];
    for (int at = 0; at < 16; ++at)
    {
        words[at] = static_cast<uint32_t>(data[4 * at]) << 24 | static_cast<uint32_t>(data[4 * at + 1]) << 16
            | static_cast<uint32_t>(data[4 * at + 2]) << 8 | data[4 * at + 3];
    }
    for (int at = 16; at < 64; ++at)
    {
        uint32_t const early = words[at - 15], late = words[at - 2];
        words[at] = words[at - 16] + (turned(early, 7) ^ turned(early, 18) ^ early >> 3) + words[at - 7]
            + (turned(late, 17) ^ turned(late, 19) ^ late >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = mState;
    for (int at = 0; at < 64; ++at)
    {
        uint32_t const first =
            h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + kROUNDS[at] + words[at];
        uint32_t const second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + first;
        d = c;
        c = b;
        b = a;
        a = first + second;
    }
    uint32_t const added[8] = {a, b, c, d, e, f, g, h};
    for (size_t at = 0; at < 8; ++at)
    {
        mState[at] += added[at];
    }
}

void Sha256::add(void const* data, size_t bytes) noexcept
{
    auto const* from = static_cast<uint8_t const*>(data);
    size_t held = mBytes % 64;
    mBytes += bytes;
    if (held != 0)
    {
        size_t const taken = std::min(bytes, 64 - held);
        std::memcpy(mRest.data() + held, from, taken);
        from += taken;
        bytes -= taken;
        held += taken;
        if (held < 64)
        {
            return;
        }
        block(mRest.data());
    }
    for (; bytes >= 64; from += 64, bytes -= 64)
    {
        block(from);
    }
    if (bytes != 0)
    {
        std::memcpy(mRest.data(), from, bytes);
    }
}

std::string Sha256::hex()
{
    uint64_t const bits = mBytes * 8;
    uint8_t const one = 0x80;
    add(&one, 1);
    uint8_t const zeros[64] = {};
    add(zeros, (120 - mBytes % 64) % 64);
    uint8_t length[8];
    for (int at = 0; at < 8; ++at)
    {
        length[at] = static_cast<uint8_t>(bits >> (56 - 8 * at));
    }
    add(length, 8);
    std::string found;
    for (uint32_t const word : mState)
    {
        for (int at = 28; at >= 0; at -= 4)
        {
            found += "0123456789abcdef"[word >> at & 15];
        }
    }
    return found;
}

std::string sha256(void const* data, size_t bytes)
{
    Sha256 made;
    made.add(data, bytes);
    return made.hex();
}

} // namespace trtc::runtime
