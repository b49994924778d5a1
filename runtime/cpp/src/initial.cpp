#include "initial.h"

#include "error.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace trtc::runtime
{
namespace
{

constexpr char const* kAGAIN = "; export the bundle again.";

size_t elements(std::vector<int64_t> const& shape)
{
    size_t found = 1;
    for (int64_t const each : shape)
    {
        found *= static_cast<size_t>(each);
    }
    return found;
}

//! A number in half precision, to the nearest with ties to even; false: it is beyond its range.
bool toHalf(double number, uint16_t& found)
{
    uint16_t const sign = std::signbit(number) ? 0x8000 : 0;
    double const size = std::fabs(number);
    if (size == 0.0)
    {
        found = sign;
        return true;
    }
    int exponent = std::max(std::ilogb(size), -14);
    double const scaled = std::nearbyint(std::ldexp(size, 10 - exponent)); // in units of the last place
    auto units = static_cast<uint32_t>(scaled);
    if (units == 2048)
    {
        units = 1024;
        ++exponent;
    }
    found = static_cast<uint16_t>(
        sign | (units < 1024 ? units : (static_cast<uint32_t>(exponent + 15) << 10) + (units - 1024)));
    return exponent <= 15;
}

bool toBfloat(double number, uint16_t& found)
{
    auto const single = static_cast<float>(number);
    uint32_t bits = 0;
    std::memcpy(&bits, &single, sizeof bits);
    found = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    return (found & 0x7F80) != 0x7F80;
}

template <typename T>
bool toWhole(double number, char* into)
{
    if (!(number >= static_cast<double>(std::numeric_limits<T>::min()))
        || !(number < std::ldexp(1.0, std::numeric_limits<T>::digits)) || number != std::floor(number))
    {
        return false;
    }
    auto const value = static_cast<T>(number);
    std::memcpy(into, &value, sizeof value);
    return true;
}

//! A number as an element of a dtype; false: no value of it is near.
bool element(double number, trtc_dtype dtype, char* into)
{
    uint16_t bits = 0;
    auto const single = static_cast<float>(number);
    switch (dtype)
    {
    case TRTC_BOOL: *into = number != 0.0; return true;
    case TRTC_INT8: return toWhole<int8_t>(number, into);
    case TRTC_UINT8: return toWhole<uint8_t>(number, into);
    case TRTC_INT16: return toWhole<int16_t>(number, into);
    case TRTC_UINT16: return toWhole<uint16_t>(number, into);
    case TRTC_INT32: return toWhole<int32_t>(number, into);
    case TRTC_UINT32: return toWhole<uint32_t>(number, into);
    case TRTC_INT64: return toWhole<int64_t>(number, into);
    case TRTC_UINT64: return toWhole<uint64_t>(number, into);
    case TRTC_FLOAT16:
    case TRTC_BFLOAT16:
    {
        bool const fits = dtype == TRTC_FLOAT16 ? toHalf(number, bits) : toBfloat(number, bits);
        std::memcpy(into, &bits, sizeof bits);
        return fits;
    }
    case TRTC_FLOAT32: std::memcpy(into, &single, sizeof single); return std::isfinite(single);
    case TRTC_FLOAT64: std::memcpy(into, &number, sizeof number); return true;
    default: *into = 0; return number == 0.0;
    }
}

//! What numpy calls a dtype in the header of a .npy file, or what carries its bits.
char const* numpyName(trtc_dtype dtype)
{
    switch (dtype)
    {
    case TRTC_BOOL: return "|b1";
    case TRTC_INT8: return "|i1";
    case TRTC_INT16: return "<i2";
    case TRTC_UINT16:
    case TRTC_BFLOAT16: return "<u2";
    case TRTC_INT32: return "<i4";
    case TRTC_UINT32: return "<u4";
    case TRTC_INT64: return "<i8";
    case TRTC_UINT64: return "<u8";
    case TRTC_FLOAT16: return "<f2";
    case TRTC_FLOAT32: return "<f4";
    case TRTC_FLOAT64: return "<f8";
    default: return "|u1";
    }
}

//! The shape of a .npy file of this dtype, and where its data begin; "" or what is wrong.
std::string readHeader(Content const& file, trtc_dtype dtype, std::vector<int64_t>& shape, size_t& begin)
{
    char const* const data = file.data();
    size_t const size = file.size();
    if (size < 12 || std::memcmp(data, "\x93NUMPY", 6) != 0 || data[6] < 1 || data[6] > 2)
    {
        return "it is no .npy file";
    }
    auto const byte = [&](size_t at) { return static_cast<size_t>(static_cast<unsigned char>(data[at])); };
    bool const isFirst = data[6] == 1;
    size_t const length = isFirst ? byte(8) | byte(9) << 8 : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
    begin = (isFirst ? 10 : 12) + length;
    if (begin > size || length > 65536)
    {
        return "its header is cut off";
    }
    std::string const header(data + begin - length, length);
    if (header.find(std::string("'descr': '") + numpyName(dtype) + "'") == std::string::npos)
    {
        return std::string("it does not hold ") + trtc_dtype_name(dtype);
    }
    if (header.find("'fortran_order': False") == std::string::npos)
    {
        return "it is stored by columns";
    }
    auto const open = header.find("'shape': (");
    auto const close = open == std::string::npos ? open : header.find(')', open);
    if (close == std::string::npos)
    {
        return "its header has no shape";
    }
    int64_t value = 0;
    bool hasDigit = false;
    for (size_t at = open + 10; at <= close; ++at)
    {
        char const each = header[at];
        if (each >= '0' && each <= '9' && value < (int64_t{1} << 40))
        {
            value = value * 10 + (each - '0');
            hasDigit = true;
        }
        else if (each == ',' || each == ')')
        {
            if (hasDigit)
            {
                shape.push_back(value);
            }
            value = 0;
            hasDigit = false;
        }
        else if (each != ' ')
        {
            return "its shape is none";
        }
    }
    return shape.size() > TRTC_MOST_AXES ? "it has too many axes" : "";
}

void fillFromFile(
    State const& state, trtc_dtype dtype, Content const& file, std::vector<int64_t> const& shape, char* into)
{
    std::string const what = "The state '" + shown(state.key()) + "' cannot start from its file: ";
    std::vector<int64_t> there;
    size_t begin = 0;
    std::string const problem = readHeader(file, dtype, there, begin);
    if (!problem.empty())
    {
        throw bundleError(what + problem + kAGAIN);
    }
    size_t const item = trtc_dtype_bytes(dtype);
    size_t stored = item;
    for (int64_t const each : there)
    {
        if (!multiply(stored, each) || stored > file.size())
        {
            throw bundleError(what + "it is shorter than it says" + kAGAIN);
        }
    }
    if (stored > file.size() - begin || there.size() > shape.size())
    {
        throw bundleError(what + "its shape does not fit" + kAGAIN);
    }
    // Axes are compared from the last; one of length 1, or one that is not there, is repeated.
    std::vector<size_t> strides(shape.size(), 0);
    size_t stride = item;
    for (size_t back = 1; back <= there.size(); ++back)
    {
        int64_t const length = there[there.size() - back];
        if (length != shape[shape.size() - back] && length != 1)
        {
            throw bundleError(what + "its shape does not fit" + kAGAIN);
        }
        strides[shape.size() - back] = length == 1 ? 0 : stride;
        stride *= static_cast<size_t>(length);
    }
    std::vector<int64_t> place(shape.size(), 0);
    size_t const count = elements(shape);
    for (size_t at = 0; at < count; ++at)
    {
        size_t from = begin;
        for (size_t axis = 0; axis < shape.size(); ++axis)
        {
            from += static_cast<size_t>(place[axis]) * strides[axis];
        }
        std::memcpy(into + at * item, file.data() + from, item);
        for (size_t axis = shape.size(); axis-- > 0 && ++place[axis] == shape[axis];)
        {
            place[axis] = 0;
        }
    }
}

} // namespace

void fillInitial(
    State const& state, trtc_dtype dtype, Content const* file, std::vector<int64_t> const& shape, char* into)
{
    size_t const item = trtc_dtype_bytes(dtype), count = elements(shape);
    Json const& initial = state.initial;
    if (initial.is(Json::Kind::kSTRING) && initial.text == "zeros")
    {
        std::memset(into, 0, count * item);
        return;
    }
    if (file != nullptr)
    {
        fillFromFile(state, dtype, *file, shape, into);
        return;
    }
    Json const* const fill = initial.find("fill");
    if (fill == nullptr || initial.members.size() != 1 || !(fill->is(Json::Kind::kINT) || fill->is(Json::Kind::kFLOAT)))
    {
        throw bundleError("The state '" + shown(state.key())
            + "' starts from something else than \"zeros\", "
              "{\"fill\": number} and {\"file\": \"name.npy\"}"
            + kAGAIN);
    }
    char one[8] = {};
    if (!element(fill->number, dtype, one))
    {
        throw bundleError("The state '" + shown(state.key()) + "' starts from " + std::to_string(fill->number)
            + ", which no " + state.dtype + " is" + kAGAIN);
    }
    for (size_t at = 0; at < count; ++at)
    {
        std::memcpy(into + at * item, one, item);
    }
}

} // namespace trtc::runtime
