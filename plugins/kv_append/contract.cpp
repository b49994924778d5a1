#include "kv_append/contract.h"

namespace trtc::kv_append
{

namespace
{
Error check(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& cache = inputs[0];
    Error error = checkShape("rows", inputs[1], {cache[0], cache[1], -1, cache[3]}, "BGTW");
    Shape const& position = inputs[2];
    bool const isOfHeads = position.size() == 2 && (position[1] == 1 || position[1] == cache[1]);
    error = !error.empty() ? error
        : isOfHeads        ? checkShape("position", position, {cache[0], -1}, "BG")
                           : checkShape("position", position, {cache[0]}, "B");
    if (!error.empty())
    {
        return error;
    }
    Sizes const sizes = sizesOf(attributes, inputs, DType::kUINT8);
    std::string const slots = std::to_string(sizes.length);
    std::string const sinks = "sinks=" + std::to_string(sizes.sinks);
    if (!sizes.isRing && sizes.sinks != 0)
    {
        return sinks + " needs layout='ring'; a linear cache keeps all slots: give 0.";
    }
    if (sizes.sinks >= sizes.length)
    {
        return sinks + " is out of range; a ring of L=" + slots + " slots allows 0.." + std::to_string(sizes.length - 1)
            + ".";
    }
    if (sizes.isRing && sizes.tokens > sizes.length - sizes.sinks)
    {
        return "T=" + std::to_string(sizes.tokens) + " tokens at once do not fit into a ring of L=" + slots
            + " slots with " + sinks + "; append at most " + std::to_string(sizes.length - sizes.sinks) + " at a time.";
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
        "KVAppend",
        1,
        {{"cache", 4, {DType::kFLOAT32, DType::kFLOAT16, DType::kBFLOAT16, DType::kUINT8}}, {"rows", 4, {}, "cache"},
            {"position", 2, {DType::kINT64}, nullptr, nullptr, nullptr, 1}},
        {{"cache_out", 4, {}, "cache", nullptr, "cache"}},
        {{"layout", AttributeKind::kINT, 0, 1}, {"sinks", AttributeKind::kINT, 0}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs, DType cacheType)
{
    Shape const& cache = inputs[0];
    return {cache[0], cache[1], cache[2], inputs[1][2], cache[3], attributes.integer("layout") == 1,
        attributes.integer("sinks"), static_cast<int64_t>(sizeOf(cacheType)),
        inputs[2].size() == 2 ? inputs[2][0] * inputs[2][1] : inputs[2][0]};
}

} // namespace trtc::kv_append
