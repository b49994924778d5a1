#include "common/cuda_op.h"
#include "token_restore/kernel.cuh"

namespace trtc::token_restore
{

namespace
{
cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    return launchTokenRestore(sizesOf(shapes.attributes, shapes.inputs), call.inputs[0], sizeOf(shapes.inputTypes[0]),
        call.input<int64_t>(1), call.outputs[0], call.fault, call.stream);
}

Error limits(GpuShapes const& shapes)
{
    Sizes const sizes = sizesOf(shapes.attributes, shapes.inputs);
    if (!sizes.unpermute || sizes.numTokens <= kMOST_PERMUTED)
    {
        return {};
    }
    return "a permutation of " + std::to_string(sizes.numTokens) + " tokens is too long for the GPU; at most "
        + std::to_string(kMOST_PERMUTED) + " are allowed.";
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), nullptr, &enqueue, &limits});
}

} // namespace trtc::token_restore
