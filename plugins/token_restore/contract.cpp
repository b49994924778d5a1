#include "token_restore/contract.h"

namespace trtc::token_restore
{

namespace
{
Error shapes(Attributes const& attributes, Shapes const& inputs, Shapes& outputs)
{
    Sizes const sizes = sizesOf(attributes, inputs);
    Error const error = checkShape("index", inputs[1], {sizes.batch, sizes.unpermute ? sizes.numRows : -1}, "BN");
    outputs[0] = {sizes.batch, sizes.numTokens, sizes.channels};
    return error;
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
        &shapes,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    return {inputs[0][0], inputs[1][1], inputs[0][1], inputs[0][2], attributes.integer("mode") == 1};
}

} // namespace trtc::token_restore
