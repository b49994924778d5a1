// A radix selection over the scores' keys finds the key of the last kept token, and of equal ones the last index that
// is kept. Every block of an item does that by itself, and then copies its share of the rows, or sums its channels of
// the rest. Nothing depends on the order in which blocks or threads run.
#include "token_select/kernel.cuh"

#include <algorithm>

#include "common/cuda_device.cuh"
#include "common/order.h"

namespace trtc::token_select
{

namespace
{
constexpr int32_t kTHREADS = 256;
constexpr int32_t kWARPS = kTHREADS / static_cast<int32_t>(kWARP_SIZE);
constexpr int32_t kBLOCKS_OF_SM = 4; // said to the compiler: left alone it saves registers until it spills
constexpr int32_t kBINS = 256;
constexpr int32_t kDIGIT_BITS = 8;
constexpr int32_t kFUSED_CHANNELS = static_cast<int32_t>(kWARP_SIZE); // channels of a block that fuses
constexpr int64_t kMOST_ROWS = 1024;                                  // rows of a block that copies
constexpr int64_t kSHARE_BYTES = 32 << 10;                            // of y, that are worth a block that selects again
constexpr int64_t kENOUGH_BLOCKS = 256;
constexpr uint32_t kBEFORE_ALL = 0x007fffffU; // the key of +infinity

struct Forced
{
    int32_t count;
    int32_t positions[kMOST_FORCED];
};

struct Problem
{
    int32_t numTokens;
    int32_t channels;
    int32_t numKept;
    int32_t copyBlocks; //!< blocks of an item that copy; those after them fuse
    bool byScore;
    bool fuse;
    DType scoreType;
    void const* score;
};

//! Ascending keys: larger scores first.
__device__ inline uint32_t keyOf(Problem const& problem, int64_t item, int32_t token)
{
    return ~sortable(ordinary(loadFloat(problem.score, problem.scoreType, item * problem.numTokens + token)));
}

//! The keys of one item, by one block.
__device__ void makeKeys(Problem const& problem, Forced const& forced, int64_t item, uint32_t* keys)
{
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < problem.numTokens; i += kTHREADS)
    {
        keys[i] = keyOf(problem, item, i);
    }
    __syncthreads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < forced.count; i += kTHREADS)
    {
        keys[forced.positions[i]] = kBEFORE_ALL;
    }
    __syncthreads();
}

//! The kept tokens: those of a smaller key than `key`, and of that key those up to index `lastEqual`.
struct Cut
{
    uint32_t key;
    int32_t lastEqual;

    __device__ bool keeps(uint32_t other, int32_t token) const
    {
        return other < key || (other == key && token <= lastEqual);
    }
};

struct Scratch
{
    int32_t bins[kBINS];
    int32_t warps[kWARPS];
    uint32_t digit;
    int32_t left;
    int32_t lastEqual;
    int32_t tokens[kMOST_ROWS]; //!< what this block copies
    float sums[kWARPS][kFUSED_CHANNELS];
};

//! Finds the cut, digit by digit from the highest.
__device__ Cut findCut(Problem const& problem, uint32_t const* keys, Scratch& scratch)
{
    if (problem.numKept == 0)
    {
        return {0U, -1};
    }
    uint32_t prefix = 0;
    uint32_t mask = 0;
    int32_t left = problem.numKept; // kept tokens among those with the prefix
    for (int32_t shift = 32 - kDIGIT_BITS; shift >= 0; shift -= kDIGIT_BITS)
    {
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kBINS; i += kTHREADS)
        {
            scratch.bins[i] = 0;
        }
        __syncthreads();
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < problem.numTokens; i += kTHREADS)
        {
            if ((keys[i] & mask) == prefix)
            {
                atomicAdd(&scratch.bins[(keys[i] >> static_cast<uint32_t>(shift)) % kBINS], 1);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0U)
        {
            uint32_t digit = 0;
            while (scratch.bins[digit] < left)
            {
                left -= scratch.bins[digit];
                ++digit;
            }
            scratch.digit = digit;
            scratch.left = left;
        }
        __syncthreads();
        prefix |= scratch.digit << static_cast<uint32_t>(shift);
        mask |= static_cast<uint32_t>(kBINS - 1) << static_cast<uint32_t>(shift);
        left = scratch.left;
    }
    // Of the tokens with this very key the first `left` stay.
    int32_t before = 0;
    for (int32_t start = 0; start < problem.numTokens && before < left; start += kTHREADS)
    {
        int32_t const i = start + static_cast<int32_t>(threadIdx.x);
        bool const equal = i < problem.numTokens && keys[i] == prefix;
        int32_t count = 0;
        int32_t const position = before + blockCountBefore(equal, scratch.warps, count);
        if (equal && position == left - 1)
        {
            scratch.lastEqual = i;
        }
        before += count;
    }
    __syncthreads();
    return {prefix, scratch.lastEqual};
}

//! Where the tokens go by position: writes `index` and `rest` if they are not null, and notes the tokens of this block.
__device__ int32_t listTokens(Problem const& problem, uint32_t const* keys, Cut const& cut, Scratch& scratch,
    int32_t share, int64_t* index, int64_t* rest)
{
    int32_t before = 0;
    for (int32_t start = 0; start < problem.numTokens; start += kTHREADS)
    {
        int32_t const i = start + static_cast<int32_t>(threadIdx.x);
        bool const kept = i < problem.numTokens && cut.keeps(keys[i], i);
        int32_t count = 0;
        int32_t const position = before + blockCountBefore(kept, scratch.warps, count);
        before += count;
        if (kept && position % problem.copyBlocks == share)
        {
            scratch.tokens[position / problem.copyBlocks] = i;
        }
        if (share == 0 && i < problem.numTokens)
        {
            if (!kept)
            {
                rest[i - position] = i;
            }
            else if (!problem.byScore)
            {
                index[position] = i;
            }
        }
    }
    __syncthreads();
    return (problem.numKept - share + problem.copyBlocks - 1) / problem.copyBlocks;
}

//! How many tokens come before `token` by key, then by index; by one warp.
__device__ int32_t rankOf(Problem const& problem, uint32_t const* keys, int32_t token)
{
    uint32_t const key = keys[token];
    int32_t rank = 0;
    for (int32_t i = static_cast<int32_t>(threadIdx.x % kWARP_SIZE); i < problem.numTokens;
        i += static_cast<int32_t>(kWARP_SIZE))
    {
        rank += keys[i] < key || (keys[i] == key && i < token) ? 1 : 0;
    }
    for (int32_t offset = 16; offset > 0; offset /= 2)
    {
        rank += __shfl_xor_sync(kFULL_MASK, rank, offset);
    }
    return rank;
}

//! kFUSED_CHANNELS channels of the sum of score * x over the rest: a lane has a channel, a warp every kWARPS-th token.
template <typename T>
__device__ void fuseRest(
    Problem const& problem, uint32_t const* keys, Cut const& cut, Scratch& scratch, int64_t item, T const* x, T* y)
{
    int32_t const lane = static_cast<int32_t>(threadIdx.x % kWARP_SIZE);
    int32_t const warp = static_cast<int32_t>(threadIdx.x / kWARP_SIZE);
    int32_t const channel = (static_cast<int32_t>(blockIdx.y) - problem.copyBlocks) * kFUSED_CHANNELS + lane;
    float sum = 0.0F;
    for (int32_t i = warp; channel < problem.channels && i < problem.numTokens; i += kWARPS)
    {
        if (!cut.keeps(keys[i], i))
        {
            float const weight = loadFloat(problem.score, problem.scoreType, item * problem.numTokens + i);
            sum = fmaf(weight, toFloat(x[static_cast<int64_t>(i) * problem.channels + channel]), sum);
        }
    }
    scratch.sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && channel < problem.channels)
    {
        for (int32_t i = 1; i < kWARPS; ++i)
        {
            sum += scratch.sums[i][lane];
        }
        y[static_cast<int64_t>(problem.numKept) * problem.channels + channel] = fromFloat<T>(sum);
    }
}

//! Block (item): the keys, where they do not fit shared memory.
__global__ void __launch_bounds__(kTHREADS) tokenSelectKeysKernel(Problem problem, Forced forced, uint32_t* keys)
{
    makeKeys(problem, forced, blockIdx.x, keys + static_cast<int64_t>(blockIdx.x) * problem.numTokens);
}

//! Block (item, share). `given`: keys that are there already, or null.
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) tokenSelectKernel(
    Problem problem, Forced forced, T const* x, T* y, int64_t* index, int64_t* rest, uint32_t const* given)
{
    __shared__ Scratch scratch;
    TRTC_DYNAMIC_SHARED(uint32_t, shared);
    int64_t const item = blockIdx.x;
    int32_t const share = static_cast<int32_t>(blockIdx.y);
    int32_t const numOut = problem.numKept + (problem.fuse ? 1 : 0);
    if (given == nullptr)
    {
        makeKeys(problem, forced, item, shared);
    }
    uint32_t const* const keys = given == nullptr ? shared : given + item * problem.numTokens;
    T const* const from = x + item * problem.numTokens * problem.channels;
    T* const to = y + item * numOut * problem.channels;
    Cut const cut = findCut(problem, keys, scratch);
    if (share >= problem.copyBlocks)
    {
        fuseRest(problem, keys, cut, scratch, item, from, to);
        return;
    }
    int64_t* const indexOfItem = index + item * problem.numKept;
    int32_t const numMine = listTokens(
        problem, keys, cut, scratch, share, indexOfItem, rest + item * (problem.numTokens - problem.numKept));
    for (int32_t i = static_cast<int32_t>(threadIdx.x / kWARP_SIZE); i < numMine; i += kWARPS)
    {
        int32_t const token = scratch.tokens[i];
        int32_t row = i * problem.copyBlocks + share;
        if (problem.byScore)
        {
            row = rankOf(problem, keys, token);
            if (threadIdx.x % kWARP_SIZE == 0U)
            {
                indexOfItem[row] = token;
            }
        }
        warpCopy<T, kPACK>(to + static_cast<int64_t>(row) * problem.channels,
            from + static_cast<int64_t>(token) * problem.channels, problem.channels);
    }
}

template <typename T, int32_t kPACK>
cudaError_t launchTyped(Sizes const& sizes, Problem problem, Forced const& forced, T const* x, T* y, int64_t* index,
    int64_t* rest, uint32_t* keys, cudaStream_t stream)
{
    auto const batch = static_cast<unsigned>(sizes.batch);
    int64_t const bytes = sizes.numKept * sizes.channels * static_cast<int64_t>(sizeof(T));
    int64_t const useful = std::min(bytes / kSHARE_BYTES, kENOUGH_BLOCKS / std::max<int64_t>(sizes.batch, 1));
    int64_t const needed = (sizes.numKept + kMOST_ROWS - 1) / kMOST_ROWS;
    problem.copyBlocks = static_cast<int32_t>(std::max<int64_t>({useful, needed, 1}));
    int64_t const fuseBlocks = sizes.fuse ? (sizes.channels + kFUSED_CHANNELS - 1) / kFUSED_CHANNELS : 0;
    bool const inShared = sizes.numTokens <= kONE_LAUNCH_TOKENS;
    if (!inShared)
    {
        cudaError_t const status =
            launchKernel(tokenSelectKeysKernel, dim3(batch), dim3(kTHREADS), 0, stream, problem, forced, keys);
        if (status != cudaSuccess)
        {
            return status;
        }
    }
    size_t const sharedBytes = inShared ? static_cast<size_t>(sizes.numTokens) * sizeof(uint32_t) : 0;
    return launchKernel(tokenSelectKernel<T, kPACK>,
        dim3(batch, static_cast<unsigned>(problem.copyBlocks + fuseBlocks)), dim3(kTHREADS), sharedBytes, stream,
        problem, forced, x, y, index, rest, inShared ? nullptr : keys);
}
} // namespace

size_t tokenSelectWorkspaceBytes(Sizes const& sizes)
{
    bool const inShared = sizes.numTokens <= kONE_LAUNCH_TOKENS;
    return inShared ? 0 : static_cast<size_t>(sizes.batch * sizes.numTokens) * sizeof(uint32_t);
}

cudaError_t launchTokenSelect(Sizes const& sizes, void const* x, DType type, void const* score, DType scoreType,
    void* y, int64_t* index, int64_t* rest, void* workspace, cudaStream_t stream)
{
    Problem const problem{static_cast<int32_t>(sizes.numTokens), static_cast<int32_t>(sizes.channels),
        static_cast<int32_t>(sizes.numKept), 1, sizes.byScore, sizes.fuse, scoreType, score};
    Forced forced{};
    if (static_cast<int64_t>(sizes.forced.size()) > kMOST_FORCED)
    {
        return cudaErrorInvalidValue;
    }
    for (int64_t const position : sizes.forced)
    {
        forced.positions[forced.count++] = static_cast<int32_t>(position);
    }
    return dispatchDeviceFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            auto const* const from = static_cast<T const*>(x);
            auto* const to = static_cast<T*>(y);
            auto* const keys = static_cast<uint32_t*>(workspace);
            constexpr int32_t kWIDE = static_cast<int32_t>(16U / sizeof(T));
            return packOf<T>(x, y, sizes.channels) == kWIDE
                ? launchTyped<T, kWIDE>(sizes, problem, forced, from, to, index, rest, keys, stream)
                : launchTyped<T, 1>(sizes, problem, forced, from, to, index, rest, keys, stream);
        });
}

} // namespace trtc::token_select
