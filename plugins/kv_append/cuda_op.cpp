#include "common/cuda_op.h"
#include "kv_append/kernel.cuh"

namespace trtc::kv_append
{

namespace
{
Sizes sizesOfCall(GpuShapes const& shapes)
{
    return sizesOf(shapes.attributes, shapes.inputs, shapes.inputTypes[0]);
}

cudaError_t enqueue(GpuCall const& call)
{
    return launchKvAppend(sizesOfCall(call.shapes), call.inputs[0], call.inputs[1], call.input<int64_t>(2),
        call.outputs[0], call.fault, call.stream);
}

Error limits(GpuShapes const& shapes)
{
    Sizes const sizes = sizesOfCall(shapes);
    int64_t const bytes = sizes.length * sizes.rowBytes();
    return bytes <= kMOST_HEAD_BYTES ? Error{}
                                     : "the slots of one KV head take " + std::to_string(bytes)
            + " bytes, too much for the GPU form; at most " + std::to_string(kMOST_HEAD_BYTES) + " are allowed.";
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), nullptr, &enqueue, &limits});
}

} // namespace trtc::kv_append
