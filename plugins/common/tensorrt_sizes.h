// Sizes that are not known while an engine is built.
#pragma once

#include <vector>

#include <NvInferRuntime.h>

#include "common/size.h"

namespace trtc
{

//! Expressions by TensorRT's own builder.
class TrtSizes final : public SizeBuilder
{
public:
    explicit TrtSizes(nvinfer1::IExprBuilder& builder)
        : mBuilder(builder)
    {
    }

    SizeLists<SymbolicSize> sizesOf(nvinfer1::DimsExprs const* tensors, int32_t count)
    {
        SizeLists<SymbolicSize> lists(static_cast<size_t>(count));
        for (size_t i = 0; i < lists.size(); ++i)
        {
            for (int32_t axis = 0; axis < tensors[i].nbDims; ++axis)
            {
                lists[i].emplace_back(tensors[i].d[axis], *this);
            }
        }
        return lists;
    }

    void set(nvinfer1::DimsExprs& tensor, std::vector<SymbolicSize> const& sizes)
    {
        tensor.nbDims = static_cast<int32_t>(sizes.size());
        for (size_t axis = 0; axis < sizes.size(); ++axis)
        {
            tensor.d[axis] = of(sizes[axis].in(*this));
        }
    }

    Expression constant(int64_t value) override
    {
        return mBuilder.constant(value);
    }

    Expression sum(Expression a, Expression b) override
    {
        return operation(nvinfer1::DimensionOperation::kSUM, a, b);
    }

    Expression difference(Expression a, Expression b) override
    {
        return operation(nvinfer1::DimensionOperation::kSUB, a, b);
    }

    Expression product(Expression a, Expression b) override
    {
        return operation(nvinfer1::DimensionOperation::kPROD, a, b);
    }

    Expression quotient(Expression a, Expression b) override
    {
        return operation(nvinfer1::DimensionOperation::kFLOOR_DIV, a, b);
    }

    Expression decidedByData(int32_t output, int64_t usual, int64_t largest) override
    {
        return mBuilder.declareSizeTensor(output, *mBuilder.constant(usual), *mBuilder.constant(largest));
    }

private:
    static nvinfer1::IDimensionExpr const* of(Expression expression) noexcept
    {
        return static_cast<nvinfer1::IDimensionExpr const*>(expression);
    }

    Expression operation(nvinfer1::DimensionOperation which, Expression a, Expression b)
    {
        return mBuilder.operation(which, *of(a), *of(b));
    }

    nvinfer1::IExprBuilder& mBuilder;
};

} // namespace trtc
