#include "token_restore/contract.h"

namespace trtc::token_restore
{

namespace
{
Error check(Attributes const& attributes, Shapes const& inputs)
{
    Sizes const sizes = sizesOf(attributes, inputs);
    return checkShape("index", inputs[1], {sizes.batch, sizes.unpermute ? sizes.numRows : -1}, "BN");
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
        "TokenRestore",
        1,
        {{"y", 3, floats()}, {"index", 2, {DType::kINT64}}},
        {{"x", 3, {}, "y"}},
        {{"mode", AttributeKind::kINT, 0, 1}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    return {inputs[0][0], inputs[1][1], inputs[0][1], inputs[0][2], attributes.integer("mode") == 1};
}

} // namespace trtc::token_restore
