#include "token_select_dynamic/contract.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace trtc::token_select_dynamic
{

namespace
{
constexpr int32_t kLARGEST = 4; // the output that holds the length of the others if they are trimmed

Error check(Attributes const& attributes, Shapes const& inputs)
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
    return {};
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& attributes, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& x = inputs[0];
    int64_t const most = attributes.integer("max_kept");
    // What kernels behind this one are tuned for: nobody knows the data, so the middle.
    int64_t const usual = std::max<int64_t>((attributes.integer("min_kept") + most) / 2, 1);
    Size const length = attributes.integer("trim") == 1 ? decidedByData(x[0], kLARGEST, usual, most) : Size{most};
    return {{x[0], length, x[2]}, {x[0], length}, {x[0], length}, {x[0]}, {}};
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
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
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
