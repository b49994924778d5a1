#include "token_merge/contract.h"

namespace trtc::token_merge
{

namespace
{
Error check(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& x = inputs[0];
    Sizes const sizes = sizesOf(attributes, inputs);
    Error error = checkShape("metric", inputs[1], {x[0], x[1], -1}, "BND");
    error = error.empty() ? checkShape("size", inputs[2], {x[0], x[1], 1}, "BN1") : error;
    error = error.empty() ? checkTokens(x[1]) : error;
    if (!error.empty())
    {
        return error;
    }
    int64_t const numFree = sizes.numTokens - sizes.numProtected;
    if (numFree < 2)
    {
        return "num_protected=" + std::to_string(sizes.numProtected) + " leaves " + std::to_string(numFree)
            + " of N=" + std::to_string(sizes.numTokens) + " tokens to merge; at least two must be free.";
    }
    if (sizes.numMerged > numFree / 2)
    {
        return "num_merged=" + std::to_string(sizes.numMerged) + " is out of range; with N="
            + std::to_string(sizes.numTokens) + " tokens of which " + std::to_string(sizes.numProtected)
            + " are protected at most every second one can merge: 0.." + std::to_string(numFree / 2) + ".";
    }
    return {};
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& attributes, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& x = inputs[0];
    Size const numOut = rowsLeft(x[1], attributes.integer("num_merged"));
    return {{x[0], numOut, x[2]}, {x[0], numOut, 1}, {x[0], x[1]}};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "TokenMerge",
        1,
        {{"x", 3, floats()}, {"metric", 3, floats()}, {"size", 3, {DType::kFLOAT32}}},
        {{"y", 3, {}, "x"}, {"y_size", 3, {}, "size"}, {"dest", 2, {DType::kINT64}}},
        {{"num_merged", AttributeKind::kINT, 0}, {"num_protected", AttributeKind::kINT, 0},
            {"order", AttributeKind::kINT, 0, 1}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    return {inputs[0][0], inputs[0][1], inputs[0][2], inputs[1][2], attributes.integer("num_merged"),
        attributes.integer("num_protected"), attributes.integer("order") == 1};
}

} // namespace trtc::token_merge
