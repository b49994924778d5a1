// Dimension expressions as TensorRT's builder hands them to a plugin: an expression tree that can be evaluated for any
// sizes, and that notices what a plugin may not do.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace trtc::harness
{

using Problems = std::vector<std::string>;
using Sizes = std::map<std::string, int64_t>;
using Measured = std::map<int32_t, int64_t>; // of size tensors, by the index of the output

enum class Kind
{
    kCONSTANT,
    kSYMBOL,
    kOPERATION,
    kSIZE_TENSOR,
};

// One object plays both parts: the class that plugins see, and the implementation that it points to.
class Expression final : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr
{
public:
    explicit Expression(Problems& problems)
        : mProblems(problems)
    {
        IDimensionExpr::mImpl = this;
    }

    ~Expression() noexcept override = default;

    bool isConstant() const override
    {
        return kind == Kind::kCONSTANT;
    }

    int64_t getConstantValue() const override
    {
        if (kind != Kind::kCONSTANT)
        {
            mProblems.push_back("asked for the value of a dimension that is not constant");
            return std::numeric_limits<int64_t>::min();
        }
        return value;
    }

    bool isSizeTensor() const override
    {
        return kind == Kind::kSIZE_TENSOR;
    }

    // A size tensor counts as what was measured, else as its upper bound: that is what memory is made for.
    int64_t evaluate(Sizes const& sizes, Measured const& measured = {}) const;
    bool holdsSizeTensor() const;

    Kind kind{Kind::kCONSTANT};
    int64_t value{0};
    std::string symbol;
    nvinfer1::DimensionOperation operation{nvinfer1::DimensionOperation::kSUM};
    Expression const* first{nullptr};
    Expression const* second{nullptr};
    int32_t outputIndex{-1};

private:
    Problems& mProblems;
};

inline int64_t floorDivision(int64_t a, int64_t b)
{
    return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

inline int64_t Expression::evaluate(Sizes const& sizes, Measured const& measured) const
{
    using Operation = nvinfer1::DimensionOperation;
    switch (kind)
    {
    case Kind::kCONSTANT: return value;
    case Kind::kSYMBOL: return sizes.at(symbol);
    case Kind::kSIZE_TENSOR:
        return measured.count(outputIndex) != 0U ? measured.at(outputIndex) : second->evaluate(sizes);
    case Kind::kOPERATION: break;
    }
    int64_t const a = first->evaluate(sizes, measured);
    int64_t const b = second->evaluate(sizes, measured);
    bool const divides = operation == Operation::kFLOOR_DIV || operation == Operation::kCEIL_DIV;
    if (divides && b == 0)
    {
        mProblems.push_back("a dimension is divided by zero");
        return 0;
    }
    switch (operation)
    {
    case Operation::kSUM: return a + b;
    case Operation::kPROD: return a * b;
    case Operation::kMAX: return std::max(a, b);
    case Operation::kMIN: return std::min(a, b);
    case Operation::kSUB: return a - b;
    case Operation::kEQUAL: return a == b ? 1 : 0;
    case Operation::kLESS: return a < b ? 1 : 0;
    case Operation::kFLOOR_DIV: return floorDivision(a, b);
    case Operation::kCEIL_DIV: return -floorDivision(-a, b);
    }
    return 0;
}

inline bool Expression::holdsSizeTensor() const
{
    return kind == Kind::kSIZE_TENSOR
        || (kind == Kind::kOPERATION && (first->holdsSizeTensor() || second->holdsSizeTensor()));
}

class Expressions final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder
{
public:
    Expressions(int32_t nbOutputs, Problems& problems)
        : mNbOutputs(nbOutputs)
        , mProblems(problems)
    {
        IExprBuilder::mImpl = this;
    }

    ~Expressions() noexcept override = default;

    nvinfer1::IDimensionExpr const* constant(int64_t value) override
    {
        Expression& made = make(Kind::kCONSTANT);
        made.value = value;
        return &made;
    }

    nvinfer1::IDimensionExpr const* symbol(std::string const& name)
    {
        Expression& made = make(Kind::kSYMBOL);
        made.symbol = name;
        return &made;
    }

    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& first,
        nvinfer1::IDimensionExpr const& second) override
    {
        Expression const* const a = find(&first);
        Expression const* const b = find(&second);
        auto const number = static_cast<int32_t>(op);
        if (a == nullptr || b == nullptr || number < 0
            || number > static_cast<int32_t>(nvinfer1::DimensionOperation::kCEIL_DIV))
        {
            mProblems.push_back("an operation on dimensions that are not this builder's, or one that does not exist");
            return nullptr;
        }
        Expression& made = make(Kind::kOPERATION);
        made.operation = op;
        made.first = a;
        made.second = b;
        // As TensorRT does: what is known is a constant.
        if (a->isConstant() && b->isConstant())
        {
            made.value = made.evaluate({});
            made.kind = Kind::kCONSTANT;
        }
        return &made;
    }

    nvinfer1::IDimensionExpr const* declareSizeTensor(
        int32_t outputIndex, nvinfer1::IDimensionExpr const& opt, nvinfer1::IDimensionExpr const& upper) override
    {
        Expression const* const a = find(&opt);
        Expression const* const b = find(&upper);
        if (a == nullptr || b == nullptr || a->holdsSizeTensor() || b->holdsSizeTensor())
        {
            mProblems.push_back("a size tensor whose bounds are not expressions of the inputs' sizes");
            return nullptr;
        }
        if (outputIndex < 0 || outputIndex >= mNbOutputs || !mSizeTensors.insert(outputIndex).second)
        {
            mProblems.push_back("output " + std::to_string(outputIndex) + " cannot be a size tensor (again)");
            return nullptr;
        }
        Expression& made = make(Kind::kSIZE_TENSOR);
        made.outputIndex = outputIndex;
        made.first = a;
        made.second = b;
        return &made;
    }

    // The expression behind a pointer that a plugin gave back; null if this builder did not make it.
    Expression const* find(nvinfer1::IDimensionExpr const* pointer) const
    {
        auto const found = mByPointer.find(pointer);
        return found == mByPointer.end() ? nullptr : found->second;
    }

    std::set<int32_t> const& sizeTensors() const
    {
        return mSizeTensors;
    }

private:
    Expression& make(Kind kind)
    {
        mAll.push_back(std::make_unique<Expression>(mProblems));
        mAll.back()->kind = kind;
        mByPointer[mAll.back().get()] = mAll.back().get();
        return *mAll.back();
    }

    int32_t mNbOutputs;
    Problems& mProblems;
    std::vector<std::unique_ptr<Expression>> mAll;
    std::map<nvinfer1::IDimensionExpr const*, Expression const*> mByPointer;
    std::set<int32_t> mSizeTensors;
};

} // namespace trtc::harness
