// Names and sizes of dtypes.

#include "trt_compress/runtime.h"

extern "C" {

char const* trtc_dtype_name(trtc_dtype dtype)
{
    static char const* const kNAMES[] = {nullptr, "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32",
        "int64", "uint64", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e4m3fnuz",
        "float8_e5m2", "float8_e5m2fnuz"};
    auto const at = static_cast<size_t>(dtype);
    return at < sizeof kNAMES / sizeof *kNAMES ? kNAMES[at] : nullptr;
}

size_t trtc_dtype_bytes(trtc_dtype dtype)
{
    static size_t const kBYTES[] = {0, 1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8, 1, 1, 1, 1};
    auto const at = static_cast<size_t>(dtype);
    return at < sizeof kBYTES / sizeof *kBYTES ? kBYTES[at] : 0;
}

} // extern "C"
