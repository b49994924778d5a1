// A group of 1 to 256 threads copies accesses of one head, as wide as rows and addresses allow (16 bytes where they
// do): one decoded token of 64 bytes takes 4 threads, so that a block serves 64 heads. Every block looks at all
// positions first, so that a position out of range leaves the whole cache as it was.
//
// In place: 2 * B * G * T * W elements and 8 * B bytes, whatever the length of the cache. Into another buffer one pass
// writes each slot once, from the new rows or from the old cache: 2 * B * G * L * W elements.
#include "kv_append/kernel.cuh"

#include <algorithm>

#include "common/cuda_device.cuh"

namespace trtc::kv_append
{

namespace
{
constexpr int32_t kTHREADS = 256;
constexpr int32_t kBLOCKS_OF_SM = 4;     // said to the compiler: left alone it saves registers until it spills
constexpr uint32_t kACCESSES = 4;        // of a thread, at least, before another block is worth it
constexpr uint32_t kMOST_BLOCKS = 65535; // in y

//! Sizes in accesses of the width that was chosen.
struct Problem
{
    int64_t positions;
    int64_t numHeads;         //!< batch * heads
    uint32_t headsOfPosition; //!< that share one
    uint32_t length;
    uint32_t tokens;
    uint32_t sinks;
    uint32_t rowAccesses;
    uint32_t lanes; //!< threads of a head in a block, a power of two
    bool isRing;

    __device__ bool allows(int64_t position) const
    {
        return position >= 0 && (isRing || position <= static_cast<int64_t>(length) - static_cast<int64_t>(tokens));
    }

    __device__ uint32_t firstSlot(int64_t position) const
    {
        bool const isSlot = !isRing || position < static_cast<int64_t>(sinks);
        return static_cast<uint32_t>(isSlot ? position : sinks + (position - sinks) % (length - sinks));
    }

    //! The slot of token `token`, given that of the first one.
    __device__ uint32_t slotOf(uint32_t first, uint32_t token) const
    {
        uint32_t const slot = first + token;
        return slot < length ? slot : slot - length + sinks;
    }

    //! The token that goes to `slot`, or one that there is not.
    __device__ uint32_t tokenOf(uint32_t first, uint32_t slot) const
    {
        bool const wrapped = slot < first && slot >= sinks;
        return wrapped ? length - first + slot - sinks : slot - first;
    }
};

//! Block (heads, share of their accesses).
template <typename T, bool kIN_PLACE>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM)
    kvAppendKernel(Problem problem, T const* cache, T const* rows, int64_t const* position, T* out, FaultSlot fault)
{
    int wrong = 0;
    for (int64_t item = threadIdx.x; item < problem.positions; item += kTHREADS)
    {
        wrong |= problem.allows(position[item]) ? 0 : 1;
    }
    if (__syncthreads_or(wrong) != 0)
    {
        if (threadIdx.x == 0U)
        {
            report(fault, Fault::kPOSITION_RANGE);
        }
        return;
    }
    int64_t const head = static_cast<int64_t>(blockIdx.x) * (kTHREADS / problem.lanes) + threadIdx.x / problem.lanes;
    if (head >= problem.numHeads)
    {
        return;
    }
    uint32_t const first = problem.firstSlot(position[head / problem.headsOfPosition]);
    uint32_t const accesses = problem.rowAccesses;
    uint32_t const newAccesses = problem.tokens * accesses;
    uint32_t const allAccesses = problem.length * accesses;
    T const* const from = rows + head * newAccesses;
    T* const to = out + head * allAccesses;
    uint32_t const start = blockIdx.y * problem.lanes + threadIdx.x % problem.lanes;
    uint32_t const step = gridDim.y * problem.lanes;
    if (kIN_PLACE)
    {
#pragma unroll 4
        for (uint32_t i = start; i < newAccesses; i += step)
        {
            uint32_t const token = i / accesses;
            to[problem.slotOf(first, token) * accesses + i % accesses] = from[i];
        }
        return;
    }
    T const* const old = cache + head * allAccesses;
#pragma unroll 4
    for (uint32_t i = start; i < allAccesses; i += step)
    {
        uint32_t const token = problem.tokenOf(first, i / accesses);
        to[i] = token < problem.tokens ? from[token * accesses + i % accesses] : old[i];
    }
}

template <typename T>
cudaError_t launchWide(Sizes const& sizes, void const* cache, void const* rows, int64_t const* position, void* out,
    FaultSlot fault, cudaStream_t stream)
{
    bool const inPlace = out == cache;
    auto const accesses = static_cast<uint32_t>(sizes.rowBytes() / static_cast<int64_t>(sizeof(T)));
    uint32_t const ofHead = accesses * static_cast<uint32_t>(inPlace ? sizes.tokens : sizes.length);
    uint32_t lanes = 1;
    while (lanes < kTHREADS && lanes < ofHead)
    {
        lanes *= 2;
    }
    auto const headsOfPosition = static_cast<uint32_t>(sizes.positions == sizes.batch ? sizes.heads : 1);
    Problem const problem{sizes.positions, sizes.batch * sizes.heads, headsOfPosition,
        static_cast<uint32_t>(sizes.length), static_cast<uint32_t>(sizes.tokens), static_cast<uint32_t>(sizes.sinks),
        accesses, lanes, sizes.isRing};
    uint32_t const perBlock = kTHREADS / lanes;
    dim3 const grid(static_cast<unsigned>((problem.numHeads + perBlock - 1) / perBlock),
        std::min(ofHead / (lanes * kACCESSES) + 1, kMOST_BLOCKS));
    auto const kernel = inPlace ? kvAppendKernel<T, true> : kvAppendKernel<T, false>;
    return launchKernel(kernel, grid, dim3(kTHREADS), 0, stream, problem, static_cast<T const*>(cache),
        static_cast<T const*>(rows), position, static_cast<T*>(out), fault);
}
} // namespace

cudaError_t launchKvAppend(Sizes const& sizes, void const* cache, void const* rows, int64_t const* position, void* out,
    FaultSlot fault, cudaStream_t stream)
{
    auto const bits = reinterpret_cast<uintptr_t>(cache) | reinterpret_cast<uintptr_t>(rows)
        | reinterpret_cast<uintptr_t>(out) | static_cast<uintptr_t>(sizes.rowBytes());
    if (bits % sizeof(uint4) == 0U)
    {
        return launchWide<uint4>(sizes, cache, rows, position, out, fault, stream);
    }
    if (bits % sizeof(uint32_t) == 0U)
    {
        return launchWide<uint32_t>(sizes, cache, rows, position, out, fault, stream);
    }
    return bits % sizeof(uint16_t) == 0U ? launchWide<uint16_t>(sizes, cache, rows, position, out, fault, stream)
                                         : launchWide<uint8_t>(sizes, cache, rows, position, out, fault, stream);
}

} // namespace trtc::kv_append
