#include "codebook_encode/contract.h"

namespace trtc::codebook_encode
{

namespace
{
Error check(Attributes const& attributes, Shapes const& inputs)
{
    return checkCodebook(attributes, inputs[1], inputs[0][2]);
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& attributes, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& x = inputs[0];
    return {{x[0], x[1], codesPerToken(kindOf(attributes), inputs[1][0], x[2], attributes.integer("group"))}};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "CodebookEncode",
        1,
        {{"x", 3, floats()}, {"codebook", 3, floats()}},
        {{"code", 3, {DType::kINT64}}},
        {{"kind", AttributeKind::kINT, 0, 3}, {"group", AttributeKind::kINT, 1, static_cast<double>(kMOST_BITS)}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& x = inputs[0];
    Shape const& codebook = inputs[1];
    return {kindOf(attributes), x[0] * x[1], x[2], codebook[0], codebook[1], attributes.integer("group")};
}

} // namespace trtc::codebook_encode
