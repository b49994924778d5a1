#include "common/cuda_op.h"

#include <algorithm>
#include <limits>

namespace trtc
{

Error checkGpuLimits(GpuForm const& form, GpuShapes const& shapes)
{
    auto const isTooLarge = [](int64_t size) { return size > std::numeric_limits<int32_t>::max(); };
    std::string const name = form.contract->opType() + ": ";
    for (size_t i = 0; i < shapes.inputs.size(); ++i)
    {
        Shape const& shape = shapes.inputs[i];
        if (std::any_of(shape.begin(), shape.end(), isTooLarge))
        {
            return name + form.contract->inputs[i].name + " has shape " + textOf(shape)
                + "; on a GPU every axis must be below 2**31.";
        }
    }
    Error const error = form.limits == nullptr ? Error{} : form.limits(shapes);
    return error.empty() ? error : name + error;
}

int32_t CudaRegistry::find(char const* opType) const
{
    for (size_t i = 0; i < mContracts.size(); ++i)
    {
        if (mContracts[i]->opType() == opType)
        {
            return static_cast<int32_t>(i);
        }
    }
    return -1;
}

CudaRegistry const& cudaRegistry()
{
    static CudaRegistry const* const sRegistry = []
    {
        auto* made = new CudaRegistry; // no destructor may run while a kernel does
        registerAllCuda(*made);
        return made;
    }();
    return *sRegistry;
}

} // namespace trtc
