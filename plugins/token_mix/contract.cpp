#include "token_mix/contract.h"

namespace trtc::token_mix
{

namespace
{
Error check(Attributes const& /*attributes*/, Shapes const& inputs)
{
    Shape const& x = inputs[0];
    Shape const& weight = inputs[1];
    Error const error = checkShape("weight", weight, {-1, -1, x[1]}, "BMN");
    if (!error.empty())
    {
        return error;
    }
    if (weight[0] != 1 && weight[0] != x[0])
    {
        return "weight has shape " + textOf(weight) + "; its first axis must be 1, or B=" + std::to_string(x[0])
            + " as that of x.";
    }
    return {};
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& /*attributes*/, SizeLists<Size> const& inputs)
{
    return {{inputs[0][0], inputs[1][1], inputs[0][2]}};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "TokenMix",
        1,
        {{"x", 3, floats()}, {"weight", 3, floats()}},
        {{"y", 3, {}, "x"}},
        {{"normalize", AttributeKind::kINT, 0, 1}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    return {inputs[0][0], inputs[0][1], inputs[0][2], inputs[1][1], inputs[1][0], attributes.integer("normalize") == 1};
}

} // namespace trtc::token_mix
