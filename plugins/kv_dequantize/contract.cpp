#include "kv_dequantize/contract.h"

namespace trtc::kv_dequantize
{

namespace
{
Error check(Attributes const& attributes, Shapes const& inputs)
{
    int64_t const to = attributes.integer("to");
    Error error = kv::checkBits(attributes, "");
    if (error.empty() && to != onnxNumber(DType::kFLOAT32) && to != onnxNumber(DType::kFLOAT16)
        && to != onnxNumber(DType::kBFLOAT16))
    {
        error = "to=" + std::to_string(to) + " is not known; give 1 (float32), 10 (float16) or 16 (bfloat16).";
    }
    return error.empty() ? kv::checkPacked(attributes, "", inputs[0], inputs[1], inputs[2], {-1, -1, -1, -1}) : error;
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& attributes, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& code = inputs[0];
    return {{code[0], code[1], code[2], kv::widthOf(code[3], kv::bitsOf(attributes, ""))}};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "KVDequantize",
        1,
        {{"code", 4, {DType::kUINT8}}, {"scale", 4, {DType::kFLOAT32, DType::kFLOAT16}}, {"minimum", 4, {}, "scale"}},
        {{"x", 4, floats(), nullptr, "to"}},
        {{"bits", AttributeKind::kINT, 2, 8}, {"axis", AttributeKind::kINT, 0, 1}, {"group", AttributeKind::kINT, 0},
            {"to", AttributeKind::kINT, 1, 16}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& code = inputs[0];
    return {code[0] * code[1], kv::formatOf(attributes, "", code, inputs[1])};
}

} // namespace trtc::kv_dequantize
