#include "kv_attention_plain/contract.h"

namespace trtc::kv_attention_plain
{

namespace
{
Error check(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& q = inputs[0];
    Shape const& k = inputs[1];
    if (q[3] < 1)
    {
        return "q has D=0 channels; give at least one.";
    }
    Error error = checkShape("k", k, {q[0], -1, -1, q[3]}, "BGLD");
    error = error.empty() ? checkShape("v", inputs[2], k, "BGLD") : error;
    return error.empty() ? kv_attention::checkAttending(attributes, q, k, {inputs[3], inputs[4], inputs[5]}) : error;
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "KVAttentionPlain",
        1,
        kv_attention::withAttending(
            std::vector<TensorContract>{{"q", 4, floats()}, {"k", 4, floats()}, {"v", 4, {}, "k"}}),
        {{"y", 4, {}, "q"}, {"lse", 3, {DType::kFLOAT32}}},
        kv_attention::withAttending(std::vector<AttributeContract>{}),
        &check,
        &kv_attention::outputShapes<int64_t>,
        &kv_attention::outputShapes<SymbolicSize>,
    };
    return sContract;
}

kv_attention::Sizes sizesOf(Attributes const& attributes, Shapes const& inputs, DType cacheType)
{
    kv_attention::Sizes sizes =
        kv_attention::attendingSizes(attributes, inputs[0], inputs[1], {inputs[3], inputs[4], inputs[5]});
    auto const bits = static_cast<int32_t>(8 * sizeOf(cacheType));
    sizes.keys = {bits, true, sizes.width, sizes.length, sizes.width};
    sizes.values = sizes.keys;
    sizes.rowType = cacheType;
    return sizes;
}

} // namespace trtc::kv_attention_plain
