#include "kv_attention/contract.h"

#include <cmath>
#include <iterator>
#include <utility>

namespace trtc::kv_attention
{

namespace
{
constexpr double kMOST_WINDOW = 2147483647; // SPEC says it too

Error checkLength(Shape const& length, int64_t batch, int64_t kvHeads)
{
    bool const isOfHeads = length.size() == 2 && (length[1] == 1 || length[1] == kvHeads);
    return isOfHeads ? checkShape("length", length, {batch, -1}, "BG") : checkShape("length", length, {batch}, "B");
}

int64_t blocksOf(Attributes const& attributes, int64_t length)
{
    int64_t const block = attributes.integer("block");
    return block == 0 ? 1 : length / block;
}

Error checkBlock(Attributes const& attributes, Shape const& cache)
{
    int64_t const block = attributes.integer("block");
    return block == 0 || cache[2] % block == 0 ? Error{}
                                               : "block=" + std::to_string(block)
            + " does not divide L=" + std::to_string(cache[2]) + "; give 0 (all of it) or a divisor.";
}

//! What nobody looks at has one number for each item and KV head, or for all.
Error checkUnused(std::string const& name, Shape const& shape, Shape const& cache, char const* letters)
{
    return checkBroadcast(name.c_str(), shape, {{1, cache[0]}, {1, cache[1]}, {1}, {1}}, letters);
}

Error checkFactors(Attributes const& attributes, std::string const& prefix, Shape const& factor, Shape const& basis,
    Shape const& cache)
{
    int64_t const rank = attributes.integer((prefix + "rank").c_str());
    if (rank == 0)
    {
        Error const error = checkUnused(prefix + "factor", factor, cache, "BGLR");
        return error.empty() ? checkUnused(prefix + "basis", basis, cache, "BGPW") : error;
    }
    Shape const bases{cache[0], cache[1], blocksOf(attributes, cache[2]), rank * cache[3]};
    Error const error = checkShape((prefix + "factor").c_str(), factor, {cache[0], cache[1], cache[2], rank}, "BGLR");
    return error.empty() ? checkShape((prefix + "basis").c_str(), basis, bases, "BGPW") : error;
}

Error checkRope(Attributes const& attributes, Shape const& rope, Shape const& cache)
{
    int64_t const turned = attributes.integer("turned");
    if (turned == 0)
    {
        return checkUnused("rope", rope, cache, "BGLD");
    }
    if (turned % 2 != 0 || turned > cache[3])
    {
        return "rope turns " + std::to_string(turned)
            + " channels; it must be an even number of them, at most D=" + std::to_string(cache[3]) + ".";
    }
    return checkBroadcast("rope", rope, {{1, cache[0]}, {1, cache[1]}, {cache[2]}, {turned}}, "BGLD");
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
    error = checkAttending(attributes, q, code, {inputs[7], inputs[8], inputs[9]});
    Shape const cache{q[0], code[1], code[2], q[3]};
    error = error.empty() ? checkBlock(attributes, cache) : error;
    error = error.empty() ? checkFactors(attributes, "k_", inputs[10], inputs[11], cache) : error;
    error = error.empty() ? checkFactors(attributes, "v_", inputs[12], inputs[13], cache) : error;
    return error.empty() ? checkRope(attributes, inputs[14], cache) : error;
}

constexpr int64_t stepOf(int64_t size, int64_t step)
{
    return size == 1 ? 0 : step;
}

Contract made()
{
    static DTypes const sCODES{DType::kUINT8};
    static DTypes const sSCALES{DType::kFLOAT32, DType::kFLOAT16};
    std::vector<TensorContract> inputs = withAttending(std::vector<TensorContract>{{"q", 4, floats()},
        {"k_code", 4, sCODES}, {"k_scale", 4, sSCALES}, {"k_minimum", 4, {}, "k_scale"}, {"v_code", 4, sCODES},
        {"v_scale", 4, sSCALES}, {"v_minimum", 4, {}, "v_scale"}});
    TensorContract const sides[] = {{"k_factor", 4, sSCALES}, {"k_basis", 4, {}, "k_factor"},
        {"v_factor", 4, {}, "k_factor"}, {"v_basis", 4, {}, "k_factor"}, {"rope", 4, {DType::kFLOAT32}}};
    inputs.insert(inputs.end(), std::begin(sides), std::end(sides));
    std::vector<AttributeContract> attributes = withAttending(
        std::vector<AttributeContract>{{"k_bits", AttributeKind::kINT, 2, 8}, {"k_axis", AttributeKind::kINT, 0, 1},
            {"k_group", AttributeKind::kINT, 0}, {"v_bits", AttributeKind::kINT, 2, 8},
            {"v_axis", AttributeKind::kINT, 0, 1}, {"v_group", AttributeKind::kINT, 0}});
    AttributeContract const ofSides[] = {{"k_rank", AttributeKind::kINT, 0}, {"v_rank", AttributeKind::kINT, 0},
        {"block", AttributeKind::kINT, 0}, {"turned", AttributeKind::kINT, 0}};
    attributes.insert(attributes.end(), std::begin(ofSides), std::end(ofSides));
    return Contract{
        "KVAttention",
        1,
        std::move(inputs),
        {{"y", 4, {}, "q"}, {"lse", 3, {DType::kFLOAT32}}},
        std::move(attributes),
        &check,
        &outputShapes<int64_t>,
        &outputShapes<SymbolicSize>,
    };
}
} // namespace

Contract const& contract()
{
    static Contract const sContract = made();
    return sContract;
}

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs)
{
    Shape const& q = inputs[0];
    Sizes sizes = attendingSizes(attributes, q, inputs[1], {inputs[7], inputs[8], inputs[9]});
    sizes.keys = kv::formatOf(attributes, "k_", inputs[1], inputs[2]);
    sizes.values = kv::formatOf(attributes, "v_", inputs[4], inputs[5]);
    int64_t const blocks = blocksOf(attributes, sizes.length);
    int64_t const block = std::max<int64_t>(sizes.length / std::max<int64_t>(blocks, 1), 1);
    sizes.ofKeys = {attributes.integer("k_rank"), block, blocks};
    sizes.ofValues = {attributes.integer("v_rank"), block, blocks};
    Shape const& rope = inputs[14];
    sizes.turning = {attributes.integer("turned"), stepOf(rope[0], rope[1]), stepOf(rope[1], 1)};
    return sizes;
}

std::vector<AttributeContract> withAttending(std::vector<AttributeContract> attributes)
{
    AttributeContract const attending[] = {{"scale", AttributeKind::kFLOAT, 0}, {"causal", AttributeKind::kINT, 0, 1},
        {"window", AttributeKind::kINT, 0, kMOST_WINDOW}, {"softcap", AttributeKind::kFLOAT, 0},
        {"layout", AttributeKind::kINT, 0, 1}, {"sinks", AttributeKind::kINT, 0, kMOST_WINDOW},
        {"indexed", AttributeKind::kINT, 0, 1}};
    attributes.insert(attributes.end(), std::begin(attending), std::end(attending));
    return attributes;
}

std::vector<TensorContract> withAttending(std::vector<TensorContract> inputs)
{
    inputs.push_back({"length", 2, {DType::kINT64}, nullptr, nullptr, nullptr, 1});
    inputs.push_back({"bias", 4, floats()});
    inputs.push_back({"index", 3, {DType::kINT64}});
    return inputs;
}

Error checkAttending(Attributes const& attributes, Shape const& q, Shape const& cache, AttendingShapes const& others)
{
    if (cache[1] < 1 || q[1] % cache[1] != 0)
    {
        return "q has H=" + std::to_string(q[1]) + " heads and the cache G=" + std::to_string(cache[1])
            + " KV heads; H must be a multiple of G.";
    }
    Error error = checkLength(others.length, q[0], cache[1]);
    std::string const letters = "B, G or H, T, L";
    error = error.empty() ? checkBroadcast("bias", others.bias,
                                {{1, q[0]}, {1, cache[1], q[1]}, {1, q[2]}, {1, cache[2]}}, letters.c_str())
                          : error;
    error = error.empty()
        ? checkBroadcast("index", others.index, {{1, q[0]}, {1, cache[1]}, {others.index[2]}}, "B, G, K")
        : error;
    if (!error.empty())
    {
        return error;
    }
    if (!std::isfinite(attributes.real("scale")))
    {
        return "scale=inf is not allowed; give a positive number, or 0 for 1 / sqrt(D).";
    }
    if (!std::isfinite(attributes.real("softcap")))
    {
        return "softcap=inf is not allowed; give a positive number, or 0 for no cap.";
    }
    int64_t const sinks = attributes.integer("sinks");
    if (attributes.integer("layout") == 1 && sinks >= cache[2])
    {
        return "sinks=" + std::to_string(sinks) + " is out of range; a ring of L=" + std::to_string(cache[2])
            + " slots allows 0.." + std::to_string(cache[2] - 1) + ".";
    }
    return {};
}

Sizes attendingSizes(Attributes const& attributes, Shape const& q, Shape const& cache, AttendingShapes const& others)
{
    Shape const& bias = others.bias;
    Shape const& index = others.index;
    float const given = attributes.real("scale");
    auto const usual = static_cast<float>(1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(q[3], 1))));
    bool const ofKvHeads = bias[1] != 1 && bias[1] != q[1];
    Sizes sizes{};
    sizes.batch = q[0];
    sizes.heads = q[1];
    sizes.kvHeads = cache[1];
    sizes.queries = q[2];
    sizes.length = cache[2];
    sizes.isIndexed = attributes.integer("indexed") == 1;
    sizes.columns = sizes.isIndexed ? index[2] : cache[2];
    sizes.index = {stepOf(index[0], index[1]), stepOf(index[1], 1), index[0] * index[1]};
    sizes.lengthHeads = others.length.size() == 2 ? others.length[1] : 1;
    sizes.width = q[3];
    sizes.bias = {stepOf(bias[0], bias[1] * bias[2] * bias[3]), stepOf(bias[1], bias[2] * bias[3]),
        ofKvHeads ? q[1] / cache[1] : 1, stepOf(bias[2], bias[3]), stepOf(bias[3], 1)};
    sizes.scale = given == 0.0F ? usual : given;
    sizes.softcap = attributes.real("softcap");
    sizes.rowType = DType::kUINT8;
    sizes.sight = {cache[2], q[2], attributes.integer("window"), attributes.integer("sinks"),
        attributes.integer("causal") == 1, attributes.integer("layout") == 1};
    return sizes;
}

} // namespace trtc::kv_attention
