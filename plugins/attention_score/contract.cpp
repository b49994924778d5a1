#include "attention_score/contract.h"

#include <algorithm>
#include <cmath>

namespace trtc::attention_score
{

namespace
{
Error checkAttributeValues(Attributes const& attributes)
{
    if (!std::isfinite(attributes.real("scale")))
    {
        return "scale=" + std::to_string(attributes.real("scale")) + " is not a finite number; give one.";
    }
    if (attributes.integer("causal") == 1 && attributes.integer("softmax") == static_cast<int64_t>(Softmax::kNONE))
    {
        return "causal=1 needs a softmax, since an unseen key has no logit; give causal=0.";
    }
    if (attributes.integer("normalize") != static_cast<int64_t>(Normalize::kNONE)
        && attributes.integer("rows") != static_cast<int64_t>(Rows::kSUM))
    {
        return "normalize=" + std::to_string(attributes.integer("normalize"))
            + " divides a sum, and rows=" + std::to_string(attributes.integer("rows")) + "; give rows=1.";
    }
    for (char const* const name : {"head_kernel", "kernel"})
    {
        std::vector<int64_t> const& width = attributes.integers(name);
        if (width.size() != 1 || width.front() % 2 == 0)
        {
            return std::string(name) + "=" + textOf(width) + " is not one odd number; give one, 1 for no pooling.";
        }
    }
    return {};
}

Error check(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& q = inputs[0];
    Shape const& k = inputs[1];
    Shape const& bias = inputs[3];
    Error error = checkAttributeValues(attributes);
    if (error.empty() && std::min({q[1], q[2], q[3]}) < 1)
    {
        return "q has shape " + textOf(q) + "; it must have at least one head, one row and one channel.";
    }
    error = error.empty() ? checkShape("k", k, {q[0], -1, -1, q[3]}, "BGND") : error;
    Shape const& position = inputs[2];
    bool const isOfItems = position.size() == 2 && (position[0] == 1 || position[0] == q[0]);
    error = !error.empty() ? error
        : isOfItems        ? checkShape("position", position, {-1, q[2]}, "BR")
                           : checkShape("position", position, {q[2]}, "R");
    bool const isOneLength = inputs[4][0] == 1;
    error = error.empty() && !isOneLength ? checkShape("length", inputs[4], {q[0]}, "B") : error;
    if (!error.empty())
    {
        return error;
    }
    if (k[1] == 0 || q[1] % k[1] != 0)
    {
        return "q has H=" + std::to_string(q[1]) + " heads and k has G=" + std::to_string(k[1])
            + "; H must be a multiple of G.";
    }
    Shape const wanted{q[0], q[1], q[2], k[2]};
    for (size_t axis = 0; axis < wanted.size(); ++axis)
    {
        if (bias[axis] != 1 && bias[axis] != wanted[axis])
        {
            return "bias has shape " + textOf(bias) + "; axis " + std::string(1, "BHRN"[axis]) + " must be 1 or "
                + std::to_string(wanted[axis]) + " to broadcast to BHRN.";
        }
    }
    Sizes const sizes = sizesOf(attributes, inputs);
    if (!(sizes.start < sizes.stop && sizes.stop <= sizes.numKeys))
    {
        return "start=" + std::to_string(sizes.start) + " and stop=" + std::to_string(attributes.integer("stop"))
            + " hold no span of N=" + std::to_string(sizes.numKeys)
            + " keys; give 0 <= start < stop <= N, or a stop that is counted from the end.";
    }
    return {};
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& attributes, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& q = inputs[0];
    std::vector<Size> const& k = inputs[1];
    return {{q[0], partsOf(attributes.integer("heads"), q[1], k[1]),
        spanOf(attributes.integer("start"), attributes.integer("stop"), k[2])}};
}
} // namespace

Contract const& contract()
{
    static Contract const sContract{
        "AttentionScore",
        1,
        {{"q", 4, floats()}, {"k", 4, floats()}, {"position", 2, {DType::kINT64}, nullptr, nullptr, nullptr, 1},
            {"bias", 4, floats()}, {"length", 1, {DType::kINT64}}},
        {{"score", 3, {DType::kFLOAT32}}},
        {{"scale", AttributeKind::kFLOAT}, {"causal", AttributeKind::kINT, 0, 1},
            {"softmax", AttributeKind::kINT, 0, 2}, {"start", AttributeKind::kINT, 0}, {"stop", AttributeKind::kINT},
            {"rows", AttributeKind::kINT, 0, 3}, {"heads", AttributeKind::kINT, 0, 6},
            {"normalize", AttributeKind::kINT, 0, 2}, {"pool", AttributeKind::kINT, 0, 1},
            {"head_kernel", AttributeKind::kINTS, 1}, {"kernel", AttributeKind::kINTS, 1},
            {"counted", AttributeKind::kINT, 0, 1}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& q = inputs[0];
    Shape const& k = inputs[1];
    int64_t const start = attributes.integer("start");
    int64_t const heads = attributes.integer("heads");
    return {q[0], q[1], k[1], q[2], q[3], k[2], start, start + spanOf(start, attributes.integer("stop"), k[2]),
        attributes.integer("stop") <= 0, attributes.real("scale"), attributes.integer("causal") == 1,
        static_cast<Softmax>(attributes.integer("softmax")), static_cast<Rows>(attributes.integer("rows")),
        static_cast<Normalize>(attributes.integer("normalize")),
        heads == 0 ? Reduce::kSUM : static_cast<Reduce>((heads - 1) % 3), partsOf(heads, q[1], k[1]),
        attributes.integer("pool") == 1, attributes.integers("head_kernel").front(),
        attributes.integers("kernel").front(), inputs[3], attributes.integer("counted") == 1, inputs[4][0] == 1,
        inputs[2].size() == 2 && inputs[2][0] > 1};
}

} // namespace trtc::attention_score
