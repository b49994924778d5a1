#include "common/cuda_op.h"

namespace trtc
{

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
