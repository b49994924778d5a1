// The kernels of KVAttention for caches whose rows are not their codes alone: products of low rank are added, or keys
// are turned. A file of its own, so that it compiles beside the other kernels.
#include "kv_attention/part.cuh"

namespace trtc::kv_attention
{

namespace
{
using namespace gpu;

template <int32_t kLANES, int32_t kRUNS, int32_t kBLOCKS_OF_SM, bool kINDEXED>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) kvAttentionSidesKernel(Problem problem)
{
    __shared__ Shared<Shape<kINDEXED_ROWS, kLANES, kRUNS>, kINDEXED_ROWS, kRUNS, true> shared;
    attendPart<kINDEXED_ROWS, kLANES, kRUNS, false, kINDEXED, true>(problem, shared);
}

template <int32_t kLANES, int32_t kRUNS, int32_t kBLOCKS_OF_SM>
cudaError_t launch(Problem const& problem, bool isIndexed, int64_t units, cudaStream_t stream)
{
    dim3 const grid(static_cast<unsigned>(units), static_cast<unsigned>(problem.splits));
    auto const kernel = isIndexed ? kvAttentionSidesKernel<kLANES, kRUNS, kBLOCKS_OF_SM, true>
                                  : kvAttentionSidesKernel<kLANES, kRUNS, kBLOCKS_OF_SM, false>;
    return launchKernel(kernel, grid, dim3(kTHREADS), 0, stream, problem);
}
} // namespace

cudaError_t gpu::launchWithSides(Problem const& problem, bool isIndexed, int64_t units, cudaStream_t stream)
{
    if (problem.width <= 8 * kRUN)
    {
        return launch<8, 1, 3>(problem, isIndexed, units, stream);
    }
    if (problem.width <= 16 * kRUN)
    {
        return launch<16, 1, 3>(problem, isIndexed, units, stream);
    }
    if (problem.width <= 32 * kRUN)
    {
        return launch<32, 1, 3>(problem, isIndexed, units, stream);
    }
    return launch<32, 2, 2>(problem, isIndexed, units, stream);
}

} // namespace trtc::kv_attention
