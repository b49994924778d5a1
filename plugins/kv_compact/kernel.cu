// In place a block owns some columns of one head, 32 to 256 bytes of every row, so that no other block touches what it
// moves. It goes through the kept rows in tiles: a thread holds kIN_FLIGHT accesses in registers, all of the block have
// loaded before any stores, and as a row never moves back, later tiles load from behind what earlier ones stored. Rows
// that stay where they are are not touched. Before that every block looks at the whole index of its head, so that a
// wrong one leaves the head as it was.
//
// In place: 2 * B * G * K * W elements and the index, which is in the L2 cache after its first reading. Into another
// buffer one pass writes each slot once: 2 * B * G * L * W elements. Accesses have 16 bytes where rows and addresses
// allow.
#include "kv_compact/kernel.cuh"

#include <algorithm>

#include "common/cuda_device.cuh"

namespace trtc::kv_compact
{

namespace
{
constexpr int32_t kTHREADS = 256;
// Blocks of an SM, said to the compiler: left alone it saves registers until it spills.
constexpr int32_t kHEAVY_BLOCKS = 3;
constexpr int32_t kLIGHT_BLOCKS = 4;
constexpr int32_t kIN_FLIGHT = 8;     // accesses that a thread holds in registers
constexpr uint32_t kLEAST_BYTES = 32; // columns of a block: one sector of DRAM
constexpr uint32_t kMOST_BYTES = 256;
constexpr int64_t kENOUGH_BLOCKS = 256;
constexpr uint32_t kSHARE_ACCESSES = 4096; // of a block that copies into another buffer, at least
constexpr uint32_t kMOST_BLOCKS = 65535;   // in y

//! Sizes in accesses of the width that was chosen.
struct Problem
{
    uint32_t length;
    uint32_t kept;
    uint32_t rowAccesses;
    uint32_t columns; //!< accesses of a row that a block owns, a power of two
};

//! Whether the index of this block's head may be used; every thread must call it.
__device__ bool isGood(Problem const& problem, int64_t const* index, FaultSlot fault)
{
    int outside = 0;
    int disorder = 0;
    for (uint32_t k = threadIdx.x; k < problem.kept; k += kTHREADS)
    {
        int64_t const slot = index[k];
        outside |= slot < 0 || slot >= static_cast<int64_t>(problem.length) ? 1 : 0;
        disorder |= k > 0U && slot <= index[k - 1U] ? 1 : 0;
    }
    bool const isOutside = __syncthreads_or(outside) != 0;
    bool const isDisordered = __syncthreads_or(disorder) != 0;
    if (threadIdx.x == 0U && (isOutside || isDisordered))
    {
        report(fault, isOutside ? Fault::kINDEX_RANGE : Fault::kINDEX_ORDER);
    }
    return !isOutside && !isDisordered;
}

//! Block (head and columns).
template <typename T>
__global__ void __launch_bounds__(kTHREADS, kHEAVY_BLOCKS)
    compactInPlaceKernel(Problem problem, uint32_t blocksOfHead, int64_t const* allIndices, T* cache, FaultSlot fault)
{
    int64_t const head = blockIdx.x / blocksOfHead;
    int64_t const* const index = allIndices + head * problem.kept;
    if (!isGood(problem, index, fault))
    {
        return;
    }
    uint32_t const accesses = problem.rowAccesses;
    uint32_t const column = blockIdx.x % blocksOfHead * problem.columns + threadIdx.x % problem.columns;
    uint32_t const row = threadIdx.x / problem.columns;
    uint32_t const rows = kTHREADS / problem.columns;
    T* const mine = cache + head * problem.length * accesses + column;
    for (uint32_t tile = 0; tile < problem.kept; tile += rows * kIN_FLIGHT)
    {
        T held[kIN_FLIGHT];
        bool moves[kIN_FLIGHT];
#pragma unroll
        for (int32_t i = 0; i < kIN_FLIGHT; ++i)
        {
            uint32_t const to = tile + static_cast<uint32_t>(i) * rows + row;
            uint32_t const from = to < problem.kept ? static_cast<uint32_t>(index[to]) : to;
            moves[i] = from != to && column < accesses;
            if (moves[i])
            {
                held[i] = mine[from * accesses];
            }
        }
        __syncthreads();
#pragma unroll
        for (int32_t i = 0; i < kIN_FLIGHT; ++i)
        {
            if (moves[i])
            {
                mine[(tile + static_cast<uint32_t>(i) * rows + row) * accesses] = held[i];
            }
        }
    }
}

//! Block (head, share of its accesses).
template <typename T>
__global__ void __launch_bounds__(kTHREADS, kLIGHT_BLOCKS)
    compactCopyKernel(Problem problem, T const* cache, int64_t const* allIndices, T* out, FaultSlot fault)
{
    int64_t const head = blockIdx.x;
    int64_t const* const index = allIndices + head * problem.kept;
    if (!isGood(problem, index, fault))
    {
        return;
    }
    uint32_t const accesses = problem.rowAccesses;
    uint32_t const count = problem.length * accesses;
    T const* const from = cache + head * count;
    T* const to = out + head * count;
#pragma unroll 4
    for (uint32_t i = blockIdx.y * kTHREADS + threadIdx.x; i < count; i += gridDim.y * kTHREADS)
    {
        uint32_t const slot = i / accesses;
        to[i] = from[slot < problem.kept ? static_cast<uint32_t>(index[slot]) * accesses + i % accesses : i];
    }
}

template <typename T>
cudaError_t launchWide(
    Sizes const& sizes, void const* cache, int64_t const* index, void* out, FaultSlot fault, cudaStream_t stream)
{
    auto const heads = static_cast<unsigned>(sizes.numHeads);
    Problem problem{static_cast<uint32_t>(sizes.length), static_cast<uint32_t>(sizes.kept),
        static_cast<uint32_t>(sizes.rowBytes / static_cast<int64_t>(sizeof(T))), 1U};
    if (out != cache)
    {
        uint32_t const shares = problem.length * problem.rowAccesses / kSHARE_ACCESSES + 1U;
        return launchKernel(compactCopyKernel<T>, dim3(heads, std::min(shares, kMOST_BLOCKS)), dim3(kTHREADS), 0,
            stream, problem, static_cast<T const*>(cache), index, static_cast<T*>(out), fault);
    }
    if (sizes.kept == 0)
    {
        return cudaSuccess;
    }
    auto const blocks = [&](uint32_t columns)
    { return std::max(problem.rowAccesses + columns - 1U, columns) / columns; };
    // More than the row has would leave threads idle; fewer than a sector would read it twice.
    while (problem.columns < problem.rowAccesses && problem.columns * sizeof(T) < kMOST_BYTES)
    {
        problem.columns *= 2U;
    }
    // A block moves its columns alone: give it fewer as long as some SM has nothing to do.
    while (problem.columns * sizeof(T) > kLEAST_BYTES && sizes.numHeads * blocks(problem.columns) < kENOUGH_BLOCKS)
    {
        problem.columns /= 2U;
    }
    uint32_t const blocksOfHead = blocks(problem.columns);
    return launchKernel(compactInPlaceKernel<T>, dim3(heads * blocksOfHead), dim3(kTHREADS), 0, stream, problem,
        blocksOfHead, index, static_cast<T*>(out), fault);
}
} // namespace

cudaError_t launchKvCompact(
    Sizes const& sizes, void const* cache, int64_t const* index, void* out, FaultSlot fault, cudaStream_t stream)
{
    auto const bits =
        reinterpret_cast<uintptr_t>(cache) | reinterpret_cast<uintptr_t>(out) | static_cast<uintptr_t>(sizes.rowBytes);
    if (bits % sizeof(uint4) == 0U)
    {
        return launchWide<uint4>(sizes, cache, index, out, fault, stream);
    }
    if (bits % sizeof(uint32_t) == 0U)
    {
        return launchWide<uint32_t>(sizes, cache, index, out, fault, stream);
    }
    return bits % sizeof(uint16_t) == 0U ? launchWide<uint16_t>(sizes, cache, index, out, fault, stream)
                                         : launchWide<uint8_t>(sizes, cache, index, out, fault, stream);
}

} // namespace trtc::kv_compact
