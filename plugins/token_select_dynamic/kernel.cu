// Two launches. In the first a block owns an item: it reads the scores once, turns them into keys in shared memory,
// finds how many tokens stay, finds the key of the last of them by a descent over the keys' digits from the highest,
// and lists the kept positions in order. By mass the number is found by the same descent, with the masses of the digits
// in place of their numbers: masses are whole numbers (mass.h), so the order of addition does not matter, nothing is
// sorted and the result does not depend on the order of threads. In the second launch a warp owns a row of y, and every
// block knows the largest count by looking at all counts: with trim the rows lie that far apart.
//
// Bytes: B * (N * sizeof(score) + 8) read and B * max_kept * 4 written by the first, B * (4 + 2 * C * sizeof(x)) *
// count + B * max_kept * (8 + sizeof(x)) by the second; beyond 8192 tokens 4 * N * (1 + passes) more for keys in global
// memory. Rows of a multiple of 16 bytes at addresses of the same move by 16 bytes.
//
// TokenSelect does it in one launch, where each block selects again: here the length of an output needs the counts of
// all items, so a second launch is needed anyway and selecting once is cheaper.
#include "token_select_dynamic/kernel.cuh"

#include <algorithm>

#include "common/cuda_device.cuh"
#include "common/order.h"
#include "token_select_dynamic/mass.h"

namespace trtc::token_select_dynamic
{

namespace
{
using Mass = unsigned long long; // what atomicAdd takes

constexpr int32_t kLANES = static_cast<int32_t>(kWARP_SIZE);
constexpr int32_t kTHREADS = 512;
constexpr int32_t kWARPS = kTHREADS / kLANES;
constexpr int32_t kCOPY_THREADS = 256;
constexpr int32_t kCOPY_WARPS = kCOPY_THREADS / kLANES;
constexpr int32_t kCOPY_BLOCKS_OF_SM = 4; // said to the compiler: left alone it saves registers until it spills
constexpr int32_t kBINS = 256;
constexpr int32_t kDIGIT_BITS = 8;
constexpr int32_t kBINS_OF_LANE = kBINS / kLANES;
constexpr int64_t kENOUGH_BLOCKS = 512;
constexpr uint32_t kFORCED = 0x007fffffU; // the key of +infinity, before all others

struct Forced
{
    int32_t count;
    int32_t positions[kMOST_FORCED];
};

struct Problem
{
    int32_t batch;
    int32_t numTokens;
    int32_t channels;
    int32_t minKept;
    int32_t maxKept;
    bool byMass;
    bool trim;
    float threshold;
    DType scoreType;
    void const* score;
};

struct Scratch
{
    Mass masses[kBINS];
    int32_t counts[kBINS];
    int32_t warps[kWARPS];
    Mass total;
    uint32_t largestExponent;
    int32_t numQualified;
    // what a step of a descent found
    Mass before;
    int32_t countBefore;
    uint32_t digit;
    bool isReached;
    int32_t lastEqual;
};

//! Ascending keys: larger scores first.
__device__ inline uint32_t keyOf(float score)
{
    return ~sortable(score);
}

__device__ inline float scoreOf(uint32_t key)
{
    return fromSortable(~key);
}

__device__ inline int32_t thread()
{
    return static_cast<int32_t>(threadIdx.x);
}

//! The keys of one item.
__device__ void makeKeys(Problem const& problem, Forced const& forced, int64_t item, uint32_t* keys)
{
    for (int32_t i = thread(); i < problem.numTokens; i += kTHREADS)
    {
        keys[i] = keyOf(ordinary(loadFloat(problem.score, problem.scoreType, item * problem.numTokens + i)));
    }
    __syncthreads();
    for (int32_t i = thread(); i < forced.count; i += kTHREADS)
    {
        keys[forced.positions[i]] = kFORCED;
    }
    __syncthreads();
}

//! How many reach the threshold, the forced ones among them.
__device__ int32_t countByThreshold(Problem const& problem, uint32_t const* keys, Scratch& scratch)
{
    uint32_t const last = keyOf(problem.threshold);
    int32_t count = 0;
    for (int32_t i = thread(); i < problem.numTokens; i += kTHREADS)
    {
        count += keys[i] <= last ? 1 : 0;
    }
    for (int32_t offset = kLANES / 2; offset > 0; offset /= 2)
    {
        count += __shfl_xor_sync(kFULL_MASK, count, offset);
    }
    if (thread() % kLANES == 0)
    {
        atomicAdd(&scratch.numQualified, count);
    }
    __syncthreads();
    return scratch.numQualified;
}

//! Tokens by key until `wanted` of them, or a mass of `wanted`, is reached.
struct Descent
{
    uint32_t key;  //!< of the token that reaches it
    Mass before;   //!< what the tokens of smaller keys hold
    int32_t count; //!< how many those are
    bool isReached;
};

//! Digit by digit from the highest: the first digit at which the sum reaches `wanted`.
template <bool kMASS>
__device__ Descent descend(Problem const& problem, uint32_t const* keys, Mass wanted, Scratch& scratch)
{
    uint32_t prefix = 0;
    uint32_t mask = 0;
    Mass before = 0;
    int32_t countBefore = 0;
    for (int32_t shift = 32 - kDIGIT_BITS; shift >= 0; shift -= kDIGIT_BITS)
    {
        for (int32_t i = thread(); i < kBINS; i += kTHREADS)
        {
            scratch.masses[i] = 0;
            scratch.counts[i] = 0;
        }
        __syncthreads();
        for (int32_t i = thread(); i < problem.numTokens; i += kTHREADS)
        {
            uint32_t const key = keys[i];
            if ((key & mask) == prefix && !(kMASS && key == kFORCED))
            {
                uint32_t const digit = (key >> static_cast<uint32_t>(shift)) % kBINS;
                atomicAdd(&scratch.counts[digit], 1);
                if (kMASS)
                {
                    atomicAdd(&scratch.masses[digit], static_cast<Mass>(massOf(scoreOf(key), scratch.largestExponent)));
                }
            }
        }
        __syncthreads();
        if (thread() < kLANES)
        {
            int32_t const first = thread() * kBINS_OF_LANE;
            Mass own = 0;
            int32_t ownCount = 0;
            for (int32_t i = first; i < first + kBINS_OF_LANE; ++i)
            {
                own += kMASS ? scratch.masses[i] : static_cast<Mass>(scratch.counts[i]);
                ownCount += scratch.counts[i];
            }
            Mass sum = own;
            int32_t count = ownCount;
            for (int32_t offset = 1; offset < kLANES; offset *= 2)
            {
                Mass const other = __shfl_up_sync(kFULL_MASK, sum, static_cast<unsigned>(offset));
                int32_t const otherCount = __shfl_up_sync(kFULL_MASK, count, static_cast<unsigned>(offset));
                sum += thread() >= offset ? other : 0U;
                count += thread() >= offset ? otherCount : 0;
            }
            uint32_t const reaching = __ballot_sync(kFULL_MASK, before + sum >= wanted ? 1 : 0);
            if (thread() == (reaching == 0U ? 0 : __ffs(static_cast<int>(reaching)) - 1))
            {
                Mass at = before + sum - own;
                int32_t countAt = countBefore + count - ownCount;
                int32_t bin = first;
                while (reaching != 0U)
                {
                    Mass const next = at + (kMASS ? scratch.masses[bin] : static_cast<Mass>(scratch.counts[bin]));
                    if (next >= wanted)
                    {
                        break;
                    }
                    at = next;
                    countAt += scratch.counts[bin];
                    ++bin;
                }
                scratch.before = at;
                scratch.countBefore = countAt;
                scratch.digit = static_cast<uint32_t>(bin);
                scratch.isReached = reaching != 0U;
            }
        }
        __syncthreads();
        if (!scratch.isReached)
        {
            return {0U, 0U, 0, false};
        }
        before = scratch.before;
        countBefore = scratch.countBefore;
        prefix |= scratch.digit << static_cast<uint32_t>(shift);
        mask |= static_cast<uint32_t>(kBINS - 1) << static_cast<uint32_t>(shift);
        __syncthreads(); // all have read it before it is written again
    }
    return {prefix, before, countBefore, true};
}

//! How many of the best hold the share of the mass, the forced ones among them.
__device__ int32_t countByMass(Problem const& problem, uint32_t const* keys, int32_t numForced, Scratch& scratch)
{
    uint32_t largest = 1;
    for (int32_t i = thread(); i < problem.numTokens; i += kTHREADS)
    {
        uint32_t const exponent = keys[i] == kFORCED ? 1U : exponentOf(scoreOf(keys[i]));
        largest = exponent > largest ? exponent : largest;
    }
    for (int32_t offset = kLANES / 2; offset > 0; offset /= 2)
    {
        uint32_t const other = __shfl_xor_sync(kFULL_MASK, largest, offset);
        largest = other > largest ? other : largest;
    }
    if (thread() % kLANES == 0)
    {
        atomicMax(&scratch.largestExponent, largest);
    }
    __syncthreads();
    Mass total = 0;
    for (int32_t i = thread(); i < problem.numTokens; i += kTHREADS)
    {
        total += keys[i] == kFORCED ? 0U : massOf(scoreOf(keys[i]), scratch.largestExponent);
    }
    for (int32_t offset = kLANES / 2; offset > 0; offset /= 2)
    {
        total += __shfl_xor_sync(kFULL_MASK, total, offset);
    }
    if (thread() % kLANES == 0)
    {
        atomicAdd(&scratch.total, total);
    }
    __syncthreads();
    Mass const wanted = wantedMass(scratch.total, problem.threshold);
    if (wanted == 0U)
    {
        return 0;
    }
    Descent const last = descend<true>(problem, keys, wanted, scratch);
    if (!last.isReached)
    {
        return problem.numTokens;
    }
    // Of the tokens with this very score as many as it takes; it has a mass, or it would not have reached anything.
    Mass const each = massOf(scoreOf(last.key), scratch.largestExponent);
    return numForced + last.count + static_cast<int32_t>((wanted - last.before + each - 1U) / each);
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

__device__ Cut findCut(Problem const& problem, uint32_t const* keys, int32_t count, Scratch& scratch)
{
    Descent const last = descend<false>(problem, keys, static_cast<Mass>(count), scratch);
    int32_t const left = count - last.count; // of the tokens with this very key the first `left` stay
    int32_t before = 0;
    for (int32_t start = 0; start < problem.numTokens && before < left; start += kTHREADS)
    {
        int32_t const i = start + thread();
        bool const equal = i < problem.numTokens && keys[i] == last.key;
        int32_t found = 0;
        int32_t const position = before + blockCountBefore(equal, scratch.warps, found);
        if (equal && position == left - 1)
        {
            scratch.lastEqual = i;
        }
        before += found;
    }
    __syncthreads();
    return {last.key, scratch.lastEqual};
}

//! Block (item): `count`, and the positions of the kept tokens.
__global__ void __launch_bounds__(kTHREADS)
    tokenSelectDynamicKernel(Problem problem, Forced forced, int64_t* counts, int32_t* kept, uint32_t* given)
{
    __shared__ Scratch scratch;
    TRTC_DYNAMIC_SHARED(uint32_t, shared);
    int64_t const item = blockIdx.x;
    uint32_t* const keys = given == nullptr ? shared : given + item * problem.numTokens;
    if (thread() == 0)
    {
        scratch.total = 0;
        scratch.largestExponent = 1;
        scratch.numQualified = 0;
    }
    makeKeys(problem, forced, item, keys);
    int32_t const wanted =
        problem.byMass ? countByMass(problem, keys, forced.count, scratch) : countByThreshold(problem, keys, scratch);
    int32_t const count = min(max(wanted, max(problem.minKept, forced.count)), problem.maxKept);
    if (thread() == 0)
    {
        counts[item] = count;
    }
    if (count == 0)
    {
        return;
    }
    // Where neither bound holds, the threshold itself is the cut.
    bool const isPlain = !problem.byMass && count == wanted;
    Cut const cut = isPlain ? Cut{keyOf(problem.threshold), problem.numTokens} : findCut(problem, keys, count, scratch);
    int32_t* const list = kept + item * problem.maxKept;
    int32_t before = 0;
    for (int32_t start = 0; start < problem.numTokens && before < count; start += kTHREADS)
    {
        int32_t const i = start + thread();
        bool const stays = i < problem.numTokens && cut.keeps(keys[i], i);
        int32_t found = 0;
        int32_t const position = before + blockCountBefore(stays, scratch.warps, found);
        if (stays)
        {
            list[position] = i;
        }
        before += found;
    }
}

template <typename T, int32_t kPACK>
__device__ void warpZero(T* to, int32_t count)
{
    using Group = Pack<T, kPACK>;
    Group zero;
#pragma unroll
    for (int32_t i = 0; i < kPACK; ++i)
    {
        zero.values[i] = fromFloat<T>(0.0F);
    }
    auto* const target = reinterpret_cast<Group*>(to);
    for (int32_t i = thread() % kLANES; i < count / kPACK; i += kLANES)
    {
        target[i] = zero;
    }
}

//! Block (item, share): every gridDim.y-th group of rows of the item.
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kCOPY_THREADS, kCOPY_BLOCKS_OF_SM) tokenSelectDynamicCopyKernel(Problem problem,
    T const* x, int64_t const* counts, int32_t const* kept, T* y, int64_t* index, T* valid, int32_t* largest)
{
    int32_t const lane = thread() % kLANES;
    int64_t const item = blockIdx.x;
    int32_t most = 0;
    for (int32_t b = lane; b < problem.batch; b += kLANES)
    {
        most = max(most, static_cast<int32_t>(counts[b]));
    }
    for (int32_t offset = kLANES / 2; offset > 0; offset /= 2)
    {
        most = max(most, __shfl_xor_sync(kFULL_MASK, most, offset));
    }
    if (item == 0 && blockIdx.y == 0U && thread() == 0)
    {
        *largest = most;
    }
    int32_t const length = problem.trim ? most : problem.maxKept;
    auto const count = static_cast<int32_t>(counts[item]);
    int32_t const stride = static_cast<int32_t>(gridDim.y) * kCOPY_WARPS;
    for (int32_t row = static_cast<int32_t>(blockIdx.y) * kCOPY_WARPS + thread() / kLANES; row < length; row += stride)
    {
        bool const isToken = row < count;
        int32_t const token = isToken ? kept[item * problem.maxKept + row] : -1;
        int64_t const place = item * length + row;
        if (lane == 0)
        {
            index[place] = token;
            valid[place] = fromFloat<T>(isToken ? 1.0F : 0.0F);
        }
        if (isToken)
        {
            warpCopy<T, kPACK>(y + place * problem.channels, x + (item * problem.numTokens + token) * problem.channels,
                problem.channels);
        }
        else
        {
            warpZero<T, kPACK>(y + place * problem.channels, problem.channels);
        }
    }
}

int64_t keptBytes(Sizes const& sizes)
{
    return (sizes.batch * sizes.maxKept * static_cast<int64_t>(sizeof(int32_t)) + 15) / 16 * 16;
}
} // namespace

size_t tokenSelectDynamicWorkspaceBytes(Sizes const& sizes)
{
    bool const inShared = sizes.numTokens <= kSHARED_TOKENS;
    int64_t const keys = inShared ? 0 : sizes.batch * sizes.numTokens * static_cast<int64_t>(sizeof(uint32_t));
    return static_cast<size_t>(keptBytes(sizes) + keys);
}

cudaError_t launchTokenSelectDynamic(Sizes const& sizes, void const* x, DType type, void const* score, DType scoreType,
    void* y, int64_t* index, void* valid, int64_t* count, int32_t* largest, void* workspace, cudaStream_t stream)
{
    auto const narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    Problem const problem{narrow(sizes.batch), narrow(sizes.numTokens), narrow(sizes.channels), narrow(sizes.minKept),
        narrow(sizes.maxKept), sizes.byMass, sizes.trim, sizes.threshold, scoreType, score};
    Forced forced{};
    if (static_cast<int64_t>(sizes.forced.size()) > kMOST_FORCED)
    {
        return cudaErrorInvalidValue;
    }
    for (int64_t const position : sizes.forced)
    {
        forced.positions[forced.count++] = narrow(position);
    }
    if (sizes.batch == 0) // no block would write it
    {
        return cudaMemsetAsync(largest, 0, sizeof(int32_t), stream);
    }
    bool const inShared = sizes.numTokens <= kSHARED_TOKENS;
    auto* const kept = static_cast<int32_t*>(workspace);
    auto* const keys = reinterpret_cast<uint32_t*>(static_cast<char*>(workspace) + keptBytes(sizes));
    auto const batch = static_cast<unsigned>(sizes.batch);
    cudaError_t const status = launchKernel(tokenSelectDynamicKernel, dim3(batch), dim3(kTHREADS),
        inShared ? static_cast<size_t>(sizes.numTokens) * sizeof(uint32_t) : 0, stream, problem, forced, count, kept,
        inShared ? nullptr : keys);
    if (status != cudaSuccess)
    {
        return status;
    }
    int64_t const useful = (sizes.maxKept + kCOPY_WARPS - 1) / kCOPY_WARPS;
    int64_t const shares = std::max<int64_t>(std::min(useful, kENOUGH_BLOCKS / std::max<int64_t>(sizes.batch, 1)), 1);
    return dispatchDeviceFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            auto const* const from = static_cast<T const*>(x);
            auto* const to = static_cast<T*>(y);
            auto* const isValid = static_cast<T*>(valid);
            dim3 const grid(batch, static_cast<unsigned>(shares));
            constexpr int32_t kWIDE = static_cast<int32_t>(16U / sizeof(T));
            return packOf<T>(x, y, sizes.channels) == kWIDE
                ? launchKernel(tokenSelectDynamicCopyKernel<T, kWIDE>, grid, dim3(kCOPY_THREADS), 0, stream, problem,
                      from, count, kept, to, index, isValid, largest)
                : launchKernel(tokenSelectDynamicCopyKernel<T, 1>, grid, dim3(kCOPY_THREADS), 0, stream, problem, from,
                      count, kept, to, index, isValid, largest);
        });
}

} // namespace trtc::token_select_dynamic
