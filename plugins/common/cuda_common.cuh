// The one door to CUDA: every .cu and .cuh includes this file and no CUDA header of its own.
//
// With TRTC_EMULATED_CUDA the same kernels compile as C++17 and run on the CPU (tests/native/emulation), where a
// missing or divergent barrier, a bad shuffle and an access beyond shared memory are found without a GPU. For that to
// work a kernel
// - is launched by launchKernel(), never by <<< >>>;
// - asks for dynamic shared memory by TRTC_DYNAMIC_SHARED, never by `extern __shared__`;
// - runs in blocks of whole warps, and names in a mask only lanes that are there;
// - keeps architecture-specific code (tensor cores, cp.async) behind TRTC_DEVICE_ARCH, with a plain path beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#ifdef TRTC_EMULATED_CUDA

#include "cuda_emulation.h"

#define TRTC_DEVICE_ARCH 0
#define TRTC_HAS_WARP_REDUCE 1
#define TRTC_DYNAMIC_SHARED(Type, name) Type* const name = reinterpret_cast<Type*>(::trtc::emulation::dynamicShared())

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// 0 in the host pass: code behind it is device code only.
#ifdef __CUDA_ARCH__
#define TRTC_DEVICE_ARCH __CUDA_ARCH__
#else
#define TRTC_DEVICE_ARCH 0
#endif

// __reduce_add_sync and its like on integers.
#if TRTC_DEVICE_ARCH >= 800
#define TRTC_HAS_WARP_REDUCE 1
#else
#define TRTC_HAS_WARP_REDUCE 0
#endif

// One name and type for all kernels: two declarations of different types would clash.
#define TRTC_DYNAMIC_SHARED(Type, name)                                                                                \
    extern __shared__ __align__(16) unsigned char trtcDynamicShared[];                                                 \
    Type* const name = reinterpret_cast<Type*>(trtcDynamicShared)

#endif

namespace trtc
{

constexpr unsigned kWARP_SIZE = 32U;
constexpr unsigned kFULL_MASK = 0xffffffffU;
// Above this a kernel must have opted in to dynamic shared memory; launchKernel does so.
constexpr size_t kPLAIN_SHARED_BYTES = 48U * 1024U;

#ifndef TRTC_EMULATED_CUDA
namespace detail
{
template <typename Tuple, size_t... I>
cudaError_t launchTuple(void const* kernel, dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t stream,
    Tuple& arguments, std::index_sequence<I...> /*indices*/) noexcept
{
    void* pointers[sizeof...(I) + 1] = {
        const_cast<void*>(static_cast<void const*>(&std::get<I>(arguments)))..., nullptr};
    return cudaLaunchKernel(kernel, grid, block, pointers, sharedBytes, stream);
}
} // namespace detail
#endif

// Launches `kernel`, whose arguments are converted as in a call. An empty grid is success: there is nothing to do.
// Never synchronises; the error returned is this launch's own, and none is left behind for cudaGetLastError().
template <typename... Parameters, typename... Arguments>
cudaError_t launchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t stream,
    Arguments&&... arguments) noexcept
{
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument for each parameter of the kernel");
    if (grid.x == 0U || grid.y == 0U || grid.z == 0U)
    {
        return cudaSuccess;
    }
    void const* const function = reinterpret_cast<void const*>(kernel);
    cudaError_t status = cudaSuccess;
    if (sharedBytes > kPLAIN_SHARED_BYTES)
    {
        status =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sharedBytes));
    }
#ifdef TRTC_EMULATED_CUDA
    return status != cudaSuccess
        ? status
        : emulation::launch(kernel, grid, block, sharedBytes, stream, std::forward<Arguments>(arguments)...);
#else
    if (status == cudaSuccess)
    {
        std::tuple<std::remove_cv_t<Parameters>...> converted{
            static_cast<std::remove_cv_t<Parameters>>(std::forward<Arguments>(arguments))...};
        status = detail::launchTuple(
            function, grid, block, sharedBytes, stream, converted, std::index_sequence_for<Parameters...>{});
    }
    if (status != cudaSuccess)
    {
        static_cast<void>(cudaGetLastError());
    }
    return status;
#endif
}

} // namespace trtc
