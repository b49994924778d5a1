#include "kv_quantize/contract.h"

namespace trtc::kv_quantize
{

namespace
{
Error check(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& x = inputs[0];
    int64_t const scaleType = attributes.integer("scale_type");
    Error error = kv::checkBits(attributes, "");
    if (error.empty() && scaleType != onnxNumber(DType::kFLOAT32) && scaleType != onnxNumber(DType::kFLOAT16))
    {
        error = "scale_type=" + std::to_string(scaleType) + " is not known; give 1 (float32) or 10 (float16).";
    }
    error = error.empty() ? kv::checkPacking("x", x[3], attributes.integer("bits")) : error;
    error = error.empty() ? kv::checkGroup(attributes, "", x[2], x[3]) : error;
    if (!error.empty())
    {
        return error;
    }
    kv::Format const format = sizesOf(attributes, inputs).format;
    if (format.group == 0)
    {
        return std::string("x has no ") + (format.byToken ? "channels" : "tokens") + ", shape " + textOf(x)
            + "; a group of nothing has no least value.";
    }
    return {};
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& attributes, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& x = inputs[0];
    bool const byToken = kv::isByToken(attributes, "");
    int64_t const group = attributes.integer("group");
    std::vector<Size> const scale{
        x[0], x[1], kv::scaleRows(byToken, group, x[2]), kv::scaleColumns(byToken, group, x[3])};
    return {{x[0], x[1], x[2], kv::rowBytes(x[3], kv::bitsOf(attributes, ""))}, scale, scale};
}
} // namespace

Contract const& contract()
{
    static DTypes const sSCALES{DType::kFLOAT32, DType::kFLOAT16};
    static Contract const sContract{
        "KVQuantize",
        1,
        {{"x", 4, floats()}},
        {{"code", 4, {DType::kUINT8}}, {"scale", 4, sSCALES, nullptr, "scale_type"},
            {"minimum", 4, sSCALES, nullptr, "scale_type"}},
        {{"bits", AttributeKind::kINT, 2, 8}, {"axis", AttributeKind::kINT, 0, 1}, {"group", AttributeKind::kINT, 0},
            {"scale_type", AttributeKind::kINT, 1, 10}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& x = inputs[0];
    return {x[0] * x[1], kv::formatOf(attributes, "", x[2], x[3])};
}

} // namespace trtc::kv_quantize
