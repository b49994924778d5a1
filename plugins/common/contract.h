// The contract of an operator as C++ has it: names, types, attributes and shapes. A test holds it against SPEC.
// Both adapters (ONNX Runtime, TensorRT) read it, so that an operator says each thing once. Host code only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common/size.h"

namespace trtc
{

constexpr char const* kDOMAIN = "trt_compress";
constexpr char const* kOP_TYPE_PREFIX = "Trtc";

//! One sentence for the user: what was given, what is allowed. Empty: nothing is wrong.
using Error = std::string;

using Shape = std::vector<int64_t>;
using Shapes = SizeLists<int64_t>;

enum class DType : int32_t
{
    kFLOAT32,
    kFLOAT16,
    kBFLOAT16,
    kINT64,
    kINT32,
    kUINT8,
};

constexpr DType kDTYPES[] = {
    DType::kFLOAT32, DType::kFLOAT16, DType::kBFLOAT16, DType::kINT64, DType::kINT32, DType::kUINT8};

using DTypes = std::vector<DType>;

inline DTypes floats()
{
    return {DType::kFLOAT32, DType::kFLOAT16, DType::kBFLOAT16};
}

char const* nameOf(DType dtype) noexcept;
size_t sizeOf(DType dtype) noexcept;

//! The number ONNX knows a type by, as attributes like `to` hold it.
int32_t onnxNumber(DType dtype) noexcept;

//! One input or output.
struct TensorContract
{
    char const* name;
    int32_t rank;
    DTypes dtypes{};                      //!< Allowed types; empty if it follows another tensor or an attribute.
    char const* sameDtypeAs = nullptr;    //!< An input whose type it has.
    char const* dtypeAttribute = nullptr; //!< An attribute that holds its type as ONNX's number, one of `dtypes`.
    char const* aliasOf = nullptr;        //!< An output: the input that it may be written into.
    int32_t leastRank = 0;                //!< Not 0: axes that may be 1 may be left out, down to so many.

    bool allowsRank(size_t given) const noexcept
    {
        return given == static_cast<size_t>(rank) || (leastRank != 0 && given == static_cast<size_t>(leastRank));
    }

    //! `2`, or `1 or 2`.
    std::string ranks() const
    {
        return (leastRank == 0 ? "" : std::to_string(leastRank) + " or ") + std::to_string(rank);
    }
};

enum class AttributeKind : int32_t
{
    kINT,
    kINTS,
    kFLOAT,
};

struct AttributeContract
{
    char const* name;
    AttributeKind kind;
    double minimum = -std::numeric_limits<double>::infinity();
    double maximum = std::numeric_limits<double>::infinity();
};

//! The attributes of one node, in the order of the contract.
class Attributes
{
public:
    struct Value
    {
        char const* name;
        AttributeKind kind;
        std::vector<int64_t> integers; //!< One for kINT.
        float real;
    };

    void add(AttributeContract const& contract, std::vector<int64_t> integers, float real)
    {
        mValues.push_back({contract.name, contract.kind, std::move(integers), real});
    }

    int64_t integer(char const* name) const noexcept;
    std::vector<int64_t> const& integers(char const* name) const noexcept;
    float real(char const* name) const noexcept;

    std::vector<Value> const& values() const noexcept
    {
        return mValues;
    }

private:
    Value const& find(char const* name) const noexcept;

    std::vector<Value> mValues;
};

struct Contract
{
    char const* name; //!< Without the prefix, as SPEC.name.
    int32_t version;
    std::vector<TensorContract> inputs;
    std::vector<TensorContract> outputs;
    std::vector<AttributeContract> attributes;
    //! Checks the shapes of the inputs against each other and the attributes. Ranks have been checked already.
    Error (*check)(Attributes const& attributes, Shapes const& inputs);
    //! The shapes of the outputs, for inputs that passed `check`: one template over numbers and expressions.
    Shapes (*shapes)(Attributes const& attributes, Shapes const& inputs);
    SizeLists<SymbolicSize> (*symbolicShapes)(Attributes const& attributes, SizeLists<SymbolicSize> const& inputs);

    std::string opType() const
    {
        return std::string(kOP_TYPE_PREFIX) + name;
    }
};

//! Whether a node's attributes are what the contract allows.
Error checkAttributes(Contract const& contract, Attributes const& attributes);

//! Ranks, then the contract's own check, then that no product of sizes overflows. The sentence starts with the op type.
Error shapesOf(Contract const& contract, Attributes const& attributes, Shapes const& inputs, Shapes& outputs);

//! Types of the outputs that follow from those of the inputs and the attributes.
DTypes outputTypesOf(Contract const& contract, Attributes const& attributes, DTypes const& inputTypes);

//! `[2, 197, 384]`
std::string textOf(Shape const& shape);

//! An error unless `shape` is `wanted`; -1 in `wanted` is any size.
Error checkShape(char const* name, Shape const& shape, Shape const& wanted, char const* letters);

//! An error unless each axis of `shape` has one of its `allowed` sizes.
Error checkBroadcast(char const* name, Shape const& shape, std::vector<Shape> const& allowed, char const* axes);

//! Most tokens of operators whose bodies count them in float32; SPEC says it too.
constexpr int64_t kMOST_TOKENS = (int64_t{1} << 24) - 1;

//! An error if there are more.
Error checkTokens(int64_t numTokens);

//! The contracts as JSON: what the exported function trtcDescribe() returns.
std::string describe(char const* kind, std::vector<Contract const*> const& contracts);

} // namespace trtc
