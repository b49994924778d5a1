// Packed key-value caches as the KV operators share them, as kv_format.py has them: a value is code * scale + minimum,
// codes are packed planar along D, and a group is consecutive tokens of one channel (axis 0) or consecutive channels of
// one token (axis 1). Axes 0 and 1 of scales are those of the codes, or 1 where all items, or all KV heads, share them.
// Host code only.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>

#include "common/contract.h"
#include "common/packing.h"

namespace trtc::kv
{

//! Bytes of the codes of one token.
template <typename Size>
Size rowBytes(Size width, int32_t bits)
{
    return width / partsOf(bits);
}

//! Channels whose codes are that many bytes.
template <typename Size>
Size widthOf(Size bytes, int32_t bits)
{
    return bytes * partsOf(bits);
}

//! Axes 2 and 3 of the scales; group 0 is the whole axis.
template <typename Size>
Size scaleRows(bool byToken, int64_t group, Size length)
{
    return byToken ? length : group == 0 ? Size{1} : length / group;
}

template <typename Size>
Size scaleColumns(bool byToken, int64_t group, Size width)
{
    return !byToken ? width : group == 0 ? Size{1} : width / group;
}

struct Format
{
    int32_t bits;        //!< 8, 4 or 2 of a code; 32 or 16 of a float, which has no scales
    bool byToken;        //!< axis 1: groups are channels of one token
    int64_t group;       //!< elements of a group; the whole axis is written out, 0 if it is empty
    int64_t length;      //!< L
    int64_t width;       //!< D
    int64_t kvHeads{1};  //!< G
    int64_t itemStep{1}; //!< from the scales of an item to those of the next, in heads; 0: it shares them
    int64_t headStep{0}; //!< the same for the KV heads of an item

    bool isFloat() const noexcept
    {
        return bits > 8;
    }

    int32_t parts() const noexcept
    {
        return isFloat() ? 1 : partsOf(bits);
    }

    int64_t rowBytes() const noexcept
    {
        return isFloat() ? width * bits / 8 : kv::rowBytes(width, bits);
    }

    int64_t scaleRows() const noexcept
    {
        return kv::scaleRows(byToken, group, length);
    }

    int64_t scaleColumns() const noexcept
    {
        return kv::scaleColumns(byToken, group, width);
    }

    //! Scales of one KV head.
    int64_t numScales() const noexcept
    {
        return scaleRows() * scaleColumns();
    }

    //! Where the scales of a KV head start, counted over all items.
    int64_t scalesOf(int64_t head) const noexcept
    {
        return (head / kvHeads * itemStep + head % kvHeads * headStep) * numScales();
    }
};

//! The attributes are `<prefix>bits`, `<prefix>axis` and `<prefix>group`.
inline int32_t bitsOf(Attributes const& attributes, std::string const& prefix)
{
    return static_cast<int32_t>(attributes.integer((prefix + "bits").c_str()));
}

inline bool isByToken(Attributes const& attributes, std::string const& prefix)
{
    return attributes.integer((prefix + "axis").c_str()) == 1;
}

//! Of a cache whose scales are those of each KV head. Group 0, the whole axis, becomes its length.
inline Format formatOf(Attributes const& attributes, std::string const& prefix, int64_t length, int64_t width)
{
    bool const byToken = isByToken(attributes, prefix);
    int64_t const group = attributes.integer((prefix + "group").c_str());
    return {bitsOf(attributes, prefix), byToken, group == 0 ? (byToken ? width : length) : group, length, width};
}

//! Of codes [B, G, L, W] with scales that have been checked.
inline Format formatOf(Attributes const& attributes, std::string const& prefix, Shape const& code, Shape const& scale)
{
    Format format = formatOf(attributes, prefix, code[2], widthOf(code[3], bitsOf(attributes, prefix)));
    format.kvHeads = std::max<int64_t>(code[1], 1);
    format.itemStep = scale[0] == 1 ? 0 : scale[1];
    format.headStep = scale[1] == 1 ? 0 : 1;
    return format;
}

inline Error checkBits(Attributes const& attributes, std::string const& prefix)
{
    int64_t const bits = attributes.integer((prefix + "bits").c_str());
    bool const isKnown = bits == 8 || bits == 4 || bits == 2;
    return isKnown ? Error{} : prefix + "bits=" + std::to_string(bits) + " is not known; give one of 8, 4, 2.";
}

inline Error checkPacking(char const* name, int64_t width, int64_t bits)
{
    if (width % (8 / bits) == 0)
    {
        return {};
    }
    return std::string(name) + " has D=" + std::to_string(width) + ", which " + std::to_string(bits)
        + "-bit codes do not pack into whole bytes; it must be a multiple of " + std::to_string(8 / bits) + ".";
}

inline Error checkGroup(Attributes const& attributes, std::string const& prefix, int64_t length, int64_t width)
{
    bool const byToken = isByToken(attributes, prefix);
    int64_t const group = attributes.integer((prefix + "group").c_str());
    int64_t const size = byToken ? width : length;
    if (group == 0 || size % group == 0)
    {
        return {};
    }
    return prefix + "group=" + std::to_string(group) + " does not divide " + (byToken ? "D=" : "L=")
        + std::to_string(size) + "; give 0 (all of it) or a divisor.";
}

//! Whether code, scale and minimum fit together as a cache [B, G, L, D]; -1 in `wanted` is any size. The bits have been
//! checked.
inline Error checkPacked(Attributes const& attributes, std::string const& prefix, Shape const& code, Shape const& scale,
    Shape const& minimum, Shape const& wanted)
{
    int32_t const bits = bitsOf(attributes, prefix);
    int64_t const bytes = wanted[3] == -1 ? -1 : rowBytes(wanted[3], bits);
    Error error = checkShape((prefix + "code").c_str(), code, {wanted[0], wanted[1], wanted[2], bytes}, "BGLW");
    int64_t const width = widthOf(code[3], bits);
    error = error.empty() ? checkGroup(attributes, prefix, code[2], width) : error;
    if (!error.empty())
    {
        return error;
    }
    Format const format = formatOf(attributes, prefix, code[2], width);
    error = checkBroadcast((prefix + "scale").c_str(), scale,
        {{1, code[0]}, {1, code[1]}, {format.scaleRows()}, {format.scaleColumns()}}, "BGLD");
    return error.empty() ? checkShape((prefix + "minimum").c_str(), minimum, scale, "BGLD") : error;
}

} // namespace trtc::kv
