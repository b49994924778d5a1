#include "token_select_dynamic/contract.h"

#include <cmath>
#include <set>

namespace trtc::token_select_dynamic
{

namespace
{
Error shapes(Attributes const& attributes, Shapes const& inputs, Shapes& outputs)
{
    Shape const& x = inputs[0];
    Error error = checkShape("score", inputs[1], {x[0], x[1]}, "BN");
    error = error.empty() ? checkTokens(x[1]) : error;
    if (!error.empty())
    {
        return error;
    }
    Sizes const sizes = sizesOf(attributes, inputs);
    auto const text = [](int64_t value) { return std::to_string(value); };
    int64_t const last = sizes.numTokens - 1;
    if (!std::isfinite(sizes.threshold))
    {
        return "threshold=" + std::to_string(sizes.threshold) + " is not a finite number; give one.";
    }
    if (sizes.byMass && !(sizes.threshold >= 0.0F && sizes.threshold < 1.0F))
    {
        return "threshold=" + std::to_string(sizes.threshold)
            + " is no share of the mass; give one in 0 <= threshold < 1.";
    }
    if (sizes.maxKept > sizes.numTokens)
    {
        return "max_kept=" + text(sizes.maxKept) + " is out of range; N=" + text(sizes.numTokens) + " tokens allow 1.."
            + text(sizes.numTokens) + ".";
    }
    if (sizes.minKept > sizes.maxKept)
    {
        return "min_kept=" + text(sizes.minKept) + " is out of range; max_kept=" + text(sizes.maxKept) + " allows 0.."
            + text(sizes.maxKept) + ".";
    }
    if (!sizes.forced.empty() && sizes.forced.back() > last)
    {
        return "the forced position " + text(sizes.forced.back()) + " is out of range; positions are 0.." + text(last)
            + ".";
    }
    auto const numForced = static_cast<int64_t>(sizes.forced.size());
    if (numForced > sizes.maxKept)
    {
        return "max_kept=" + text(sizes.maxKept) + " is less than the " + text(numForced) + " forced tokens.";
    }
    int64_t const length = sizes.trim ? kDATA_DEPENDENT : sizes.maxKept;
    outputs[0] = {sizes.batch, length, sizes.channels};
    outputs[1] = {sizes.batch, length};
    outputs[2] = {sizes.batch, length};
    outputs[3] = {sizes.batch};
    outputs[4] = {};
    return {};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "TokenSelectDynamic",
        1,
        {{"x", 3, floats()}, {"score", 2, floats()}},
        {{"y", 3, {}, "x"}, {"index", 2, {DType::kINT64}}, {"valid", 2, {}, "x"}, {"count", 1, {DType::kINT64}},
            {"largest", 0, {DType::kINT32}}},
        {{"mode", AttributeKind::kINT, 0, 1}, {"threshold", AttributeKind::kFLOAT},
            {"min_kept", AttributeKind::kINT, 0}, {"max_kept", AttributeKind::kINT, 1},
            {"forced", AttributeKind::kINTS, -1}, {"trim", AttributeKind::kINT, 0, 1}},
        &shapes,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    std::set<int64_t> places(attributes.integers("forced").begin(), attributes.integers("forced").end());
    places.erase(-1); // stands for none: ONNX has no empty lists everywhere
    return {inputs[0][0], inputs[0][1], inputs[0][2], attributes.integer("min_kept"), attributes.integer("max_kept"),
        attributes.integer("mode") == 1, attributes.integer("trim") == 1, attributes.real("threshold"),
        {places.begin(), places.end()}};
}

} // namespace trtc::token_select_dynamic
