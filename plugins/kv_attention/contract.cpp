#include "kv_attention/contract.h"

#include <cmath>

namespace trtc::kv_attention
{

namespace
{
//! `1 | 2 | 4`, each once.
std::string choices(std::initializer_list<int64_t> sizes)
{
    std::vector<int64_t> once;
    std::string text;
    for (int64_t const size : sizes)
    {
        if (std::find(once.begin(), once.end(), size) == once.end())
        {
            text += (once.empty() ? "" : " | ") + std::to_string(size);
            once.push_back(size);
        }
    }
    return text;
}

Error checkBias(Shape const& bias, int64_t batch, int64_t kvHeads, int64_t heads, int64_t queries, int64_t length)
{
    bool const fits = (bias[0] == 1 || bias[0] == batch) && (bias[1] == 1 || bias[1] == kvHeads || bias[1] == heads)
        && (bias[2] == 1 || bias[2] == queries) && (bias[3] == 1 || bias[3] == length);
    return fits ? Error{}
                : "bias has shape " + textOf(bias) + "; it must be [" + choices({1, batch}) + ", "
            + choices({1, kvHeads, heads}) + ", " + choices({1, queries}) + ", " + choices({1, length})
            + "] with axes B, G or H, T, L.";
}

Error check(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& q = inputs[0];
    Error error = kv::checkBits(attributes, "k_");
    error = error.empty() ? kv::checkBits(attributes, "v_") : error;
    if (!error.empty())
    {
        return error;
    }
    if (q[3] < 1)
    {
        return "q has D=0 channels; give at least one.";
    }
    error = kv::checkPacking("q", q[3], std::min(attributes.integer("k_bits"), attributes.integer("v_bits")));
    error = error.empty() ? kv::checkPacked(attributes, "k_", inputs[1], inputs[2], inputs[3], {q[0], -1, -1, q[3]})
                          : error;
    Shape const& code = inputs[1];
    error = error.empty()
        ? kv::checkPacked(attributes, "v_", inputs[4], inputs[5], inputs[6], {q[0], code[1], code[2], q[3]})
        : error;
    if (!error.empty())
    {
        return error;
    }
    if (code[1] < 1 || q[1] % code[1] != 0)
    {
        return "q has H=" + std::to_string(q[1]) + " heads and the cache G=" + std::to_string(code[1])
            + " KV heads; H must be a multiple of G.";
    }
    error = checkShape("length", inputs[7], {q[0]}, "B");
    error = error.empty() ? checkBias(inputs[8], q[0], code[1], q[1], q[2], code[2]) : error;
    if (!error.empty())
    {
        return error;
    }
    if (!std::isfinite(attributes.real("scale")))
    {
        return "scale=inf is not allowed; give a positive number, or 0 for 1 / sqrt(D).";
    }
    return {};
}

constexpr int64_t stepOf(int64_t size, int64_t step)
{
    return size == 1 ? 0 : step;
}
template <typename Size>
SizeLists<Size> outputShapes(Attributes const& /*attributes*/, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& q = inputs[0];
    return {q, {q[0], q[1], q[2]}};
}
} // namespace

Contract const& contract()
{
    static DTypes const sCODES{DType::kUINT8};
    static DTypes const sSCALES{DType::kFLOAT32, DType::kFLOAT16};
    static Contract const sContract{
        "KVAttention",
        1,
        {{"q", 4, floats()}, {"k_code", 4, sCODES}, {"k_scale", 4, sSCALES}, {"k_minimum", 4, {}, "k_scale"},
            {"v_code", 4, sCODES}, {"v_scale", 4, sSCALES}, {"v_minimum", 4, {}, "v_scale"},
            {"length", 1, {DType::kINT64}}, {"bias", 4, floats()}},
        {{"y", 4, {}, "q"}, {"lse", 3, {DType::kFLOAT32}}},
        {{"k_bits", AttributeKind::kINT, 2, 8}, {"k_axis", AttributeKind::kINT, 0, 1},
            {"k_group", AttributeKind::kINT, 0}, {"v_bits", AttributeKind::kINT, 2, 8},
            {"v_axis", AttributeKind::kINT, 0, 1}, {"v_group", AttributeKind::kINT, 0},
            {"scale", AttributeKind::kFLOAT, 0}, {"causal", AttributeKind::kINT, 0, 1},
            {"window", AttributeKind::kINT, 0, 2147483647}},
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& q = inputs[0];
    Shape const& code = inputs[1];
    Shape const& bias = inputs[8];
    float const given = attributes.real("scale");
    auto const usual = static_cast<float>(1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(q[3], 1))));
    bool const ofKvHeads = bias[1] != 1 && bias[1] != q[1];
    BiasSteps const steps{stepOf(bias[0], bias[1] * bias[2] * bias[3]), stepOf(bias[1], bias[2] * bias[3]),
        ofKvHeads ? q[1] / code[1] : 1, stepOf(bias[2], bias[3]), stepOf(bias[3], 1)};
    return {q[0], q[1], code[1], q[2], code[2], q[3], kv::formatOf(attributes, "k_", code[2], q[3]),
        kv::formatOf(attributes, "v_", code[2], q[3]), steps, given == 0.0F ? usual : given,
        attributes.integer("causal") == 1, attributes.integer("window")};
}

} // namespace trtc::kv_attention
