#include "kv_compact/contract.h"

namespace trtc::kv_compact
{

namespace
{
Error check(Attributes const& /*attributes*/, Shapes const& inputs)
{
    Shape const& cache = inputs[0];
    Error const error = checkShape("index", inputs[1], {cache[0], cache[1], -1}, "BGK");
    if (!error.empty())
    {
        return error;
    }
    if (inputs[1][2] > cache[2])
    {
        return "index names K=" + std::to_string(inputs[1][2])
            + " slots of a cache that has L=" + std::to_string(cache[2]) + ".";
    }
    return {};
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& /*attributes*/, SizeLists<Size> const& inputs)
{
    return {inputs[0]};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "KVCompact",
        1,
        {{"cache", 4, {DType::kFLOAT32, DType::kFLOAT16, DType::kBFLOAT16, DType::kUINT8}},
            {"index", 3, {DType::kINT64}}},
        {{"cache_out", 4, {}, "cache", nullptr, "cache"}},
        {},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Shapes const& inputs, DType cacheType)
{
    Shape const& cache = inputs[0];
    return {cache[0] * cache[1], cache[2], inputs[1][2], cache[3] * static_cast<int64_t>(sizeOf(cacheType))};
}

} // namespace trtc::kv_compact
