#include "token_select/contract.h"

#include <algorithm>
#include <set>

namespace trtc::token_select
{

namespace
{
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
    std::string const numTokens = std::to_string(sizes.numTokens);
    if (sizes.numKept > sizes.numTokens)
    {
        return "num_kept=" + std::to_string(sizes.numKept) + " is out of range; N=" + numTokens + " tokens allow 0.."
            + numTokens + ".";
    }
    if (sizes.fuse && sizes.numKept == sizes.numTokens)
    {
        return "num_kept=" + numTokens + " keeps all N=" + numTokens + " tokens, so nothing is left to fuse; drop it.";
    }
    std::set<int64_t> const places(sizes.forced.begin(), sizes.forced.end());
    if (!places.empty() && *places.rbegin() >= sizes.numTokens)
    {
        return "the forced position " + std::to_string(*places.rbegin()) + " is out of range; positions are 0.."
            + std::to_string(sizes.numTokens - 1) + ".";
    }
    if (static_cast<int64_t>(places.size()) > sizes.numKept)
    {
        return "num_kept=" + std::to_string(sizes.numKept) + " is less than the " + std::to_string(places.size())
            + " forced tokens.";
    }
    return {};
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& attributes, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& x = inputs[0];
    Size const numKept = attributes.integer("num_kept");
    return {{x[0], rowsOut(numKept, attributes.integer("remainder") == 1), x[2]}, {x[0], numKept},
        {x[0], rowsLeft(x[1], numKept)}};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "TokenSelect",
        1,
        {{"x", 3, floats()}, {"score", 2, floats()}},
        {{"y", 3, {}, "x"}, {"index", 2, {DType::kINT64}}, {"rest", 2, {DType::kINT64}}},
        {{"num_kept", AttributeKind::kINT, 0}, {"forced", AttributeKind::kINTS, -1},
            {"order", AttributeKind::kINT, 0, 1}, {"remainder", AttributeKind::kINT, 0, 1}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    Sizes sizes{inputs[0][0], inputs[0][1], inputs[0][2], attributes.integer("num_kept"),
        attributes.integer("order") == 1, attributes.integer("remainder") == 1, {}};
    for (int64_t const position : attributes.integers("forced"))
    {
        if (position >= 0) // -1 stands for none: ONNX has no empty lists everywhere
        {
            sizes.forced.push_back(position);
        }
    }
    return sizes;
}

} // namespace trtc::token_select
