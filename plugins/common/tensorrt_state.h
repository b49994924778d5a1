// What a plugin knows and does, whatever the version of TensorRT's interfaces.
#pragma once

#include "common/cuda_op.h"
#include "common/tensorrt_fields.h"

namespace trtc
{

//! Everything about a plugin that is not TensorRT's interface.
struct Definition
{
    Contract const* contract;
    GpuForm const* gpu;
    uint32_t number;
    std::string opType;
    std::string version;
};

//! What a plugin knows and does, behind TensorRT's interfaces.
class State
{
public:
    State(Definition const& definition, Attributes attributes)
        : mDefinition(definition)
        , mAttributes(std::move(attributes))
    {
        mFields.set(mAttributes);
    }

    State(State const& other)
        : State(other.mDefinition, other.mAttributes)
    {
    }

    State& operator=(State const&) = delete;

    Definition const& definition() const noexcept
    {
        return mDefinition;
    }

    Contract const& contract() const noexcept
    {
        return *mDefinition.contract;
    }

    Attributes const& attributes() const noexcept
    {
        return mAttributes;
    }

    PluginFieldCollection const* fields() const noexcept
    {
        return mFields.get();
    }

    //! Whether tensor `index` may have `type`, given the types of the tensors before it.
    template <typename TypeAt>
    bool allows(size_t index, DataType type, TypeAt const& typeAt) const
    {
        size_t const numInputs = contract().inputs.size();
        DType dtype{};
        if (!fromTrtType(type, dtype))
        {
            return false;
        }
        TensorContract const& tensor =
            index < numInputs ? contract().inputs[index] : contract().outputs[index - numInputs];
        if (tensor.sameDtypeAs != nullptr)
        {
            return typeAt(indexOfInput(contract(), tensor.sameDtypeAs)) == type;
        }
        bool allowed = false;
        for (DType const known : tensor.dtypes)
        {
            bool const isChosen =
                tensor.dtypeAttribute == nullptr || onnxNumber(known) == mAttributes.integer(tensor.dtypeAttribute);
            allowed = allowed || (known == dtype && isChosen);
        }
        return allowed;
    }

    Error outputTypes(DataType* outputs, int32_t numOutputs, DataType const* inputs, int32_t numInputs) const
    {
        Error const error = checkCounts(numInputs, numOutputs);
        if (!error.empty())
        {
            return error;
        }
        DTypes types;
        for (int32_t i = 0; i < numInputs; ++i)
        {
            DType dtype{};
            if (!allows(static_cast<size_t>(i), inputs[i], [&](size_t leader) { return inputs[leader]; }))
            {
                return mDefinition.opType + ": " + contract().inputs[static_cast<size_t>(i)].name
                    + " has a type that the operator does not take.";
            }
            fromTrtType(inputs[i], dtype);
            types.push_back(dtype);
        }
        DTypes const found = outputTypesOf(contract(), mAttributes, types);
        for (size_t i = 0; i < found.size(); ++i)
        {
            outputs[i] = trtType(found[i]);
        }
        return {};
    }

    Error checkCounts(int32_t numInputs, int32_t numOutputs) const
    {
        size_t const wantedInputs = contract().inputs.size();
        size_t const wantedOutputs = contract().outputs.size();
        if (static_cast<size_t>(numInputs) == wantedInputs && static_cast<size_t>(numOutputs) == wantedOutputs)
        {
            return {};
        }
        return mDefinition.opType + ": it has " + std::to_string(wantedInputs) + " inputs and "
            + std::to_string(wantedOutputs) + " outputs; given are " + std::to_string(numInputs) + " and "
            + std::to_string(numOutputs) + ".";
    }

    //! Takes over shapes and types, and checks them. `at` gives the dimensions and the type of tensor i.
    template <typename At>
    Error take(At const& at)
    {
        Error error = read(at);
        if (!error.empty())
        {
            mInputs.clear(); // so that an enqueue after it finds out by itself, and does not run
        }
        return error;
    }

    size_t workspaceBytes() const
    {
        return mDefinition.gpu->workspaceBytes == nullptr ? 0 : mDefinition.gpu->workspaceBytes(shapes());
    }

    Error enqueue(nvinfer1::PluginTensorDesc const* inputs, void const* const* inputData, void* const* outputData,
        void* workspace, cudaStream_t stream)
    {
        if (hasFault())
        {
            return takeFault(cudaRegistry().contracts());
        }
        bool known = mInputs.size() == contract().inputs.size();
        for (size_t i = 0; known && i < mInputs.size(); ++i)
        {
            known = isSame(mInputs[i], inputs[i].dims);
        }
        if (!known) // a size that an operator before this one decided
        {
            Error const error = take([&](size_t i) { return inputs[i]; });
            if (!error.empty())
            {
                return error;
            }
        }
        FaultSlot const slot = faultSlot(mDefinition.number);
        if (slot.word == nullptr)
        {
            return mDefinition.opType + ": no mapped host memory could be had for reporting errors.";
        }
        cudaError_t const status = mDefinition.gpu->enqueue({shapes(), inputData, outputData, workspace, slot, stream});
        return status == cudaSuccess ? Error{}
                                     : mDefinition.opType + ": the launch failed: " + cudaGetErrorString(status) + ".";
    }

    int32_t aliasedInput(int32_t output) const noexcept
    {
        char const* const name = contract().outputs[static_cast<size_t>(output)].aliasOf;
        return name == nullptr ? -1 : static_cast<int32_t>(indexOfInput(contract(), name));
    }

private:
    GpuShapes const& shapes() const
    {
        return mShapes;
    }

    template <typename At>
    Error read(At const& at)
    {
        mInputs.clear();
        mInputTypes.clear();
        for (size_t i = 0; i < contract().inputs.size(); ++i)
        {
            DType dtype{};
            mInputs.push_back(shapeOf(at(i).dims));
            if (!fromTrtType(at(i).type, dtype))
            {
                return mDefinition.opType + ": " + contract().inputs[i].name
                    + " has a type that the operator does not take.";
            }
            mInputTypes.push_back(dtype);
        }
        mOutputTypes = outputTypesOf(contract(), mAttributes, mInputTypes);
        Error error = shapesOf(contract(), mAttributes, mInputs, mOutputs);
        return error.empty() ? checkGpuLimits(*mDefinition.gpu, shapes()) : error;
    }

    Definition const& mDefinition;
    Attributes mAttributes;
    Fields mFields;
    Shapes mInputs;
    Shapes mOutputs;
    DTypes mInputTypes;
    DTypes mOutputTypes;
    GpuShapes mShapes{mAttributes, mInputs, mOutputs, mInputTypes, mOutputTypes};
};

} // namespace trtc
