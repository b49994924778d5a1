#include "codebook_decode/contract.h"

namespace trtc::codebook_decode
{

namespace
{
Error check(Attributes const& attributes, Shapes const& inputs)
{
    Error error = codebook_encode::checkCodebook(attributes, inputs[1], -1);
    if (error.empty())
    {
        error = checkShape("code", inputs[0], {-1, -1, sizesOf(attributes, inputs).perToken}, "BNS");
    }
    return error;
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& /*attributes*/, SizeLists<Size> const& inputs)
{
    return {{inputs[0][0], inputs[0][1], inputs[1][2]}};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "CodebookDecode",
        1,
        {{"code", 3, {DType::kINT64}}, {"codebook", 3, floats()}},
        {{"y", 3, {}, "codebook"}},
        {{"kind", AttributeKind::kINT, 0, 3},
            {"group", AttributeKind::kINT, 1, static_cast<double>(codebook_encode::kMOST_BITS)}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& code = inputs[0];
    Shape const& codebook = inputs[1];
    Kind const kind = codebook_encode::kindOf(attributes);
    int64_t const group = attributes.integer("group");
    return {kind, code[0] * code[1], codebook[2], codebook[0], codebook[1], group,
        codebook_encode::codesPerToken(kind, codebook[0], codebook[2], group)};
}

} // namespace trtc::codebook_decode
