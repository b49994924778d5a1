#include "common/cuda_op.h"
#include "codebook_decode/kernel.cuh"

namespace trtc::codebook_decode
{

namespace
{
cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    return launchCodebookDecode(sizesOf(shapes.attributes, shapes.inputs), call.input<int64_t>(0), call.inputs[1],
        shapes.inputTypes[1], call.outputs[0], call.fault, call.stream);
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), nullptr, &enqueue});
}

} // namespace trtc::codebook_decode
