// One block finds the partners of 64 rows of A: tiles of the normalised features in shared memory, 4 x 4 similarities
// a thread in registers, a running best partner, so that no similarity is ever stored. Every pair sums over D in order:
// equal features give equal similarities, and ties go by the index.
//
// Up to kONE_LAUNCH_TOKENS each block of an item finds all partners by itself and merges its share of the rows: what
// the blocks repeat is cheaper than a second launch. Beyond that the steps are launches of their own.
#include "token_merge/kernel.cuh"

#include <algorithm>

#include "common/cuda_device.cuh"
#include "common/order.h"

namespace trtc::token_merge
{

namespace
{
constexpr int32_t kTHREADS = 256;
constexpr int32_t kWARPS = kTHREADS / static_cast<int32_t>(kWARP_SIZE);
constexpr int32_t kTILE = 64;  // rows of A, and of B, in a tile
constexpr int32_t kDEPTH = 16; // entries of D in a tile
constexpr int32_t kSIDE = 4;   // similarities of a thread: kSIDE x kSIDE
constexpr int32_t kLANES_OF_ROW = kTILE / kSIDE;
// Blocks of an SM, said to the compiler: left alone it saves registers until it spills.
constexpr int32_t kHEAVY_BLOCKS = 2;
constexpr int32_t kLIGHT_BLOCKS = 4;
constexpr float kNONE = -3.402823466e38F;  // below every similarity
constexpr int64_t kSHARE_BYTES = 32 << 10; // of y, that are worth a block that finds the partners again
constexpr int64_t kMOST_SHARES = 16;
constexpr int64_t kENOUGH_BLOCKS = 128;

using Key = unsigned long long;

//! Sizes as the device wants them, and the inputs that every step reads.
struct Problem
{
    int32_t numTokens;
    int32_t channels;
    int32_t width;
    int32_t numMerged;
    int32_t numProtected;
    int32_t firstA;
    int32_t firstB;
    int32_t numA;
    int32_t numB;
    int32_t numOut;
    int32_t outB;
    bool bySimilarity;
    DType metricType;
    void const* metric;
};

//! What is known of one item, in shared memory or in the workspace.
struct Item
{
    Key* keys;       //!< [numA] similarity to the partner, as a key that sorts the most similar first
    int32_t* match;  //!< [numA] the partner
    int32_t* place;  //!< [numA] the rank, then the output row
    int32_t* source; //!< [outB] token of each output row before those of B
};

struct Tiles
{
    alignas(16) float a[kDEPTH][kTILE + kSIDE];
    alignas(16) float b[kDEPTH][kTILE + kSIDE];
    float inverseA[kTILE];
    float inverseB[kTILE];
};

__host__ __device__ inline int64_t itemBytes(int32_t numA, int32_t outB)
{
    int64_t const bytes =
        numA * static_cast<int64_t>(sizeof(Key) + 2 * sizeof(int32_t)) + outB * static_cast<int64_t>(sizeof(int32_t));
    return (bytes + 15) / 16 * 16;
}

__device__ Item itemAt(void* memory, Problem const& problem, int64_t index)
{
    auto* const at = static_cast<unsigned char*>(memory) + index * itemBytes(problem.numA, problem.outB);
    auto* const keys = reinterpret_cast<Key*>(at);
    auto* const match = reinterpret_cast<int32_t*>(keys + problem.numA);
    return {keys, match, match + problem.numA, match + 2 * problem.numA};
}

//! Inverse lengths of the features of up to kTILE rows: tokens first, first + 2, …; 0 where a row has no direction.
__device__ void inverseLengths(float* inverse, Problem const& problem, int64_t item, int32_t first, int32_t count)
{
    int32_t const warp = static_cast<int32_t>(threadIdx.x / kWARP_SIZE);
    int32_t const lane = static_cast<int32_t>(threadIdx.x % kWARP_SIZE);
    for (int32_t row = warp; row < kTILE; row += kWARPS)
    {
        float sum = 0.0F;
        if (row < count)
        {
            int64_t const start = (item * problem.numTokens + first + 2 * row) * problem.width;
            for (int32_t d = lane; d < problem.width; d += static_cast<int32_t>(kWARP_SIZE))
            {
                float const value = loadFloat(problem.metric, problem.metricType, start + d);
                sum += value * value;
            }
        }
        sum = warpSum(sum);
        if (lane == 0)
        {
            float const length = sqrtf(sum);
            inverse[row] = row < count && hasDirection(length) ? 1.0F / length : 0.0F;
        }
    }
}

//! Loads kDEPTH entries of up to kTILE rows, normalised and transposed; zeros beyond.
__device__ void loadTile(float (*tile)[kTILE + kSIDE], float const* inverse, Problem const& problem, int64_t item,
    int32_t first, int32_t count, int32_t depth)
{
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTILE * kDEPTH; i += kTHREADS)
    {
        int32_t const row = i / kDEPTH;
        int32_t const d = i % kDEPTH;
        float value = 0.0F;
        if (row < count && depth + d < problem.width && inverse[row] > 0.0F) // what is no number is not multiplied by 0
        {
            int64_t const start = (item * problem.numTokens + first + 2 * row) * problem.width;
            value = loadFloat(problem.metric, problem.metricType, start + depth + d) * inverse[row];
        }
        tile[d][row] = value;
    }
}

//! The partners of the rows of A from `row` on, kTILE of them.
__device__ void matchTile(Problem const& problem, int64_t item, int32_t row, Tiles& tiles, Item const& to)
{
    using Four = Pack<float, kSIDE>;
    int32_t const mine = static_cast<int32_t>(threadIdx.x) / kLANES_OF_ROW * kSIDE;   // first of my rows in the tile
    int32_t const column = static_cast<int32_t>(threadIdx.x) % kLANES_OF_ROW * kSIDE; // first of my columns
    int32_t const firstA = problem.firstA + 2 * row;
    int32_t const countA = min(kTILE, problem.numA - row);
    float best[kSIDE];
    int32_t match[kSIDE];
#pragma unroll
    for (int32_t i = 0; i < kSIDE; ++i)
    {
        best[i] = kNONE;
        match[i] = 0;
    }
    __syncthreads(); // nobody reads the tiles of the rows before any more
    inverseLengths(tiles.inverseA, problem, item, firstA, countA);
    for (int32_t b = 0; b < problem.numB; b += kTILE)
    {
        int32_t const firstB = problem.firstB + 2 * b;
        int32_t const countB = min(kTILE, problem.numB - b);
        inverseLengths(tiles.inverseB, problem, item, firstB, countB);
        float sum[kSIDE][kSIDE] = {};
        for (int32_t depth = 0; depth < problem.width; depth += kDEPTH)
        {
            __syncthreads(); // the lengths are there, and nobody reads the tile before any more
            loadTile(tiles.a, tiles.inverseA, problem, item, firstA, countA, depth);
            loadTile(tiles.b, tiles.inverseB, problem, item, firstB, countB, depth);
            __syncthreads();
#pragma unroll
            for (int32_t d = 0; d < kDEPTH; ++d)
            {
                Four const left = *reinterpret_cast<Four const*>(&tiles.a[d][mine]);
                Four const right = *reinterpret_cast<Four const*>(&tiles.b[d][column]);
#pragma unroll
                for (int32_t i = 0; i < kSIDE; ++i)
                {
#pragma unroll
                    for (int32_t j = 0; j < kSIDE; ++j)
                    {
                        sum[i][j] = fmaf(left.values[i], right.values[j], sum[i][j]);
                    }
                }
            }
        }
#pragma unroll
        for (int32_t i = 0; i < kSIDE; ++i)
        {
#pragma unroll
            for (int32_t j = 0; j < kSIDE; ++j)
            {
                // Only a larger one replaces the best, so that of equal ones the first stays.
                bool const better = column + j < countB && sum[i][j] > best[i];
                best[i] = better ? sum[i][j] : best[i];
                match[i] = better ? b + column + j : match[i];
            }
        }
        __syncthreads(); // all have read the lengths of these rows of B
    }
#pragma unroll
    for (int32_t i = 0; i < kSIDE; ++i)
    {
        Key key = bestFirst(best[i], static_cast<uint32_t>(match[i]));
        for (int32_t offset = kLANES_OF_ROW / 2; offset > 0; offset /= 2)
        {
            Key const other = __shfl_xor_sync(kFULL_MASK, key, offset);
            key = other < key ? other : key;
        }
        int32_t const a = row + mine + i;
        if (column == 0 && mine + i < countA)
        {
            to.keys[a] = bestFirst(scoreOfBestFirst(key), static_cast<uint32_t>(a));
            to.match[a] = static_cast<int32_t>(indexOfBestFirst(key));
        }
    }
}

//! How many rows of A come before row `a`: the first numMerged merge.
__device__ void rankRow(Problem const& problem, Item const& item, int32_t a)
{
    Key const key = item.keys[a];
    int32_t rank = 0;
    for (int32_t i = 0; i < problem.numA; ++i)
    {
        rank += item.keys[i] < key ? 1 : 0;
    }
    item.place[a] = rank;
}

//! From the ranks: where every row goes. Writes `dest` if it is not null.
__device__ void placeRows(Problem const& problem, Item const& item, int64_t* dest, int32_t* scratch)
{
    int32_t const numProtected = problem.numProtected;
    int32_t before = 0;
    for (int32_t start = 0; start < problem.numA; start += kTHREADS)
    {
        int32_t const a = start + static_cast<int32_t>(threadIdx.x);
        int32_t const rank = a < problem.numA ? item.place[a] : 0;
        bool const stays = a < problem.numA && rank >= problem.numMerged;
        int32_t numStaying = 0;
        int32_t const position = before + blockCountBefore(stays, scratch, numStaying);
        before += numStaying;
        if (a < problem.numA)
        {
            int32_t const token = problem.firstA + 2 * a;
            int32_t row = problem.outB + item.match[a];
            if (stays)
            {
                row = numProtected + (problem.bySimilarity ? rank - problem.numMerged : position);
                item.source[row] = token;
            }
            item.place[a] = row;
            if (dest != nullptr)
            {
                dest[token] = row;
            }
        }
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < numProtected; i += kTHREADS)
    {
        item.source[i] = i;
        if (dest != nullptr)
        {
            dest[i] = i;
        }
    }
    for (int32_t b = static_cast<int32_t>(threadIdx.x); dest != nullptr && b < problem.numB; b += kTHREADS)
    {
        dest[problem.firstB + 2 * b] = problem.outB + b;
    }
}

//! Rows of A that go to output row `row`, among the 32 from `start` on: bit i is row start + i.
__device__ uint32_t arrivals(Problem const& problem, Item const& item, int32_t row, int32_t start)
{
    int32_t const a = start + static_cast<int32_t>(threadIdx.x % kWARP_SIZE);
    return __ballot_sync(kFULL_MASK, a < problem.numA && item.place[a] == row ? 1 : 0);
}

//! One output row by one warp. Arrivals are added by position.
template <typename T, int32_t kPACK>
__device__ void mergeRow(
    Problem const& problem, Item const& item, int32_t row, T const* x, float const* size, T* y, float* ySize)
{
    using Group = Pack<T, kPACK>;
    int32_t const channels = problem.channels;
    int32_t const lane = static_cast<int32_t>(threadIdx.x % kWARP_SIZE);
    bool const isB = row >= problem.outB;
    int32_t const token = isB ? problem.firstB + 2 * (row - problem.outB) : item.source[row];
    T const* const own = x + static_cast<int64_t>(token) * channels;
    T* const to = y + static_cast<int64_t>(row) * channels;
    float total = size[token];
    bool alone = true;
    for (int32_t start = 0; isB && start < problem.numA; start += static_cast<int32_t>(kWARP_SIZE))
    {
        for (uint32_t bits = arrivals(problem, item, row, start); bits != 0U; bits &= bits - 1U)
        {
            total += size[problem.firstA + 2 * (start + __ffs(static_cast<int>(bits)) - 1)];
            alone = false;
        }
    }
    if (lane == 0)
    {
        ySize[row] = total;
    }
    if (alone)
    {
        warpCopy<T, kPACK>(to, own, channels);
        return;
    }
    float const ownShare = size[token] / total;
    for (int32_t first = 0; first < channels; first += static_cast<int32_t>(kWARP_SIZE) * kPACK)
    {
        int32_t const channel = first + lane * kPACK;
        bool const active = channel < channels;
        float sum[kPACK] = {};
        auto const add = [&](T const* from, float share)
        {
            Group const group = *reinterpret_cast<Group const*>(from + channel);
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                sum[i] = fmaf(toFloat(group.values[i]), share, sum[i]);
            }
        };
        if (active)
        {
            add(own, ownShare);
        }
        for (int32_t start = 0; start < problem.numA; start += static_cast<int32_t>(kWARP_SIZE))
        {
            for (uint32_t bits = arrivals(problem, item, row, start); bits != 0U; bits &= bits - 1U)
            {
                int32_t const from = problem.firstA + 2 * (start + __ffs(static_cast<int>(bits)) - 1);
                if (active)
                {
                    add(x + static_cast<int64_t>(from) * channels, size[from] / total);
                }
            }
        }
        if (active)
        {
            Group group;
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                group.values[i] = fromFloat<T>(sum[i]);
            }
            *reinterpret_cast<Group*>(to + channel) = group;
        }
    }
}

//! Every `stride`-th output row from `first` on, one a warp.
template <typename T, int32_t kPACK>
__device__ void mergeRows(Problem const& problem, Item const& item, int64_t index, int32_t first, int32_t stride,
    T const* x, float const* size, T* y, float* ySize)
{
    int64_t const from = index * problem.numTokens;
    int64_t const to = index * problem.numOut;
    for (int32_t row = first; row < problem.numOut; row += stride)
    {
        mergeRow<T, kPACK>(
            problem, item, row, x + from * problem.channels, size + from, y + to * problem.channels, ySize + to);
    }
}

//! Block (item, share): everything, for a share of the output rows.
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kHEAVY_BLOCKS)
    tokenMergeKernel(Problem problem, T const* x, float const* size, T* y, float* ySize, int64_t* dest)
{
    __shared__ Tiles tiles;
    __shared__ int32_t scratch[kWARPS];
    TRTC_DYNAMIC_SHARED(unsigned char, memory);
    int64_t const index = blockIdx.x;
    Item const item = itemAt(memory, problem, 0);
    for (int32_t row = 0; row < problem.numA; row += kTILE)
    {
        matchTile(problem, index, row, tiles, item);
    }
    __syncthreads();
    for (int32_t a = static_cast<int32_t>(threadIdx.x); a < problem.numA; a += kTHREADS)
    {
        rankRow(problem, item, a);
    }
    __syncthreads();
    placeRows(problem, item, blockIdx.y == 0U ? dest + index * problem.numTokens : nullptr, scratch);
    __syncthreads();
    int32_t const warp = static_cast<int32_t>(threadIdx.x / kWARP_SIZE);
    mergeRows<T, kPACK>(problem, item, index, static_cast<int32_t>(blockIdx.y) * kWARPS + warp,
        static_cast<int32_t>(gridDim.y) * kWARPS, x, size, y, ySize);
}

//! Block (item, tile of A).
__global__ void __launch_bounds__(kTHREADS, kHEAVY_BLOCKS) matchKernel(Problem problem, void* workspace)
{
    __shared__ Tiles tiles;
    int64_t const index = blockIdx.x;
    matchTile(problem, index, static_cast<int32_t>(blockIdx.y) * kTILE, tiles, itemAt(workspace, problem, index));
}

//! Block (item, kTHREADS rows of A).
__global__ void __launch_bounds__(kTHREADS) rankKernel(Problem problem, void* workspace)
{
    int32_t const a = static_cast<int32_t>(blockIdx.y * blockDim.x + threadIdx.x);
    if (a < problem.numA)
    {
        rankRow(problem, itemAt(workspace, problem, blockIdx.x), a);
    }
}

//! Block (item).
__global__ void __launch_bounds__(kTHREADS) placeKernel(Problem problem, void* workspace, int64_t* dest)
{
    __shared__ int32_t scratch[kWARPS];
    int64_t const index = blockIdx.x;
    placeRows(problem, itemAt(workspace, problem, index), dest + index * problem.numTokens, scratch);
}

//! Block (item, share of the output rows).
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kLIGHT_BLOCKS)
    mergeKernel(Problem problem, T const* x, float const* size, T* y, float* ySize, void* workspace)
{
    int64_t const index = blockIdx.x;
    int32_t const warp = static_cast<int32_t>(threadIdx.x / kWARP_SIZE);
    mergeRows<T, kPACK>(problem, itemAt(workspace, problem, index), index,
        static_cast<int32_t>(blockIdx.y) * kWARPS + warp, static_cast<int32_t>(gridDim.y) * kWARPS, x, size, y, ySize);
}

Problem problemOf(Sizes const& sizes, void const* metric, DType metricType)
{
    auto const narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    return {narrow(sizes.numTokens), narrow(sizes.channels), narrow(sizes.width), narrow(sizes.numMerged),
        narrow(sizes.numProtected), narrow(sizes.firstA()), narrow(sizes.firstB()), narrow(sizes.numA()),
        narrow(sizes.numB()), narrow(sizes.numOut()), narrow(sizes.outB()), sizes.bySimilarity, metricType, metric};
}

unsigned blocksOf(int64_t count, int64_t each)
{
    return static_cast<unsigned>((count + each - 1) / each);
}

template <typename T, int32_t kPACK>
cudaError_t launchTyped(Sizes const& sizes, Problem const& problem, T const* x, float const* size, T* y, float* ySize,
    int64_t* dest, void* workspace, cudaStream_t stream)
{
    auto const batch = static_cast<unsigned>(sizes.batch);
    if (sizes.numTokens <= kONE_LAUNCH_TOKENS)
    {
        int64_t const rowBytes = sizes.channels * static_cast<int64_t>(sizeof(T));
        int64_t const shares = std::min({sizes.numOut() * rowBytes / kSHARE_BYTES, kMOST_SHARES,
            kENOUGH_BLOCKS / std::max<int64_t>(sizes.batch, 1)});
        return launchKernel(tokenMergeKernel<T, kPACK>,
            dim3(batch, static_cast<unsigned>(std::max<int64_t>(shares, 1))), dim3(kTHREADS),
            static_cast<size_t>(itemBytes(problem.numA, problem.outB)), stream, problem, x, size, y, ySize, dest);
    }
    cudaError_t status = launchKernel(
        matchKernel, dim3(batch, blocksOf(problem.numA, kTILE)), dim3(kTHREADS), 0, stream, problem, workspace);
    if (status == cudaSuccess)
    {
        status = launchKernel(
            rankKernel, dim3(batch, blocksOf(problem.numA, kTHREADS)), dim3(kTHREADS), 0, stream, problem, workspace);
    }
    if (status == cudaSuccess)
    {
        status = launchKernel(placeKernel, dim3(batch), dim3(kTHREADS), 0, stream, problem, workspace, dest);
    }
    if (status == cudaSuccess)
    {
        unsigned const shares = std::min(blocksOf(sizes.numOut(), kWARPS), 65535U);
        status = launchKernel(mergeKernel<T, kPACK>, dim3(batch, shares), dim3(kTHREADS), 0, stream, problem, x, size,
            y, ySize, workspace);
    }
    return status;
}
} // namespace

size_t tokenMergeWorkspaceBytes(Sizes const& sizes)
{
    bool const inShared = sizes.numTokens <= kONE_LAUNCH_TOKENS;
    int64_t const bytes = itemBytes(static_cast<int32_t>(sizes.numA()), static_cast<int32_t>(sizes.outB()));
    return inShared ? 0 : static_cast<size_t>(sizes.batch * bytes);
}

cudaError_t launchTokenMerge(Sizes const& sizes, void const* x, DType type, void const* metric, DType metricType,
    float const* size, void* y, float* ySize, int64_t* dest, void* workspace, cudaStream_t stream)
{
    Problem const problem = problemOf(sizes, metric, metricType);
    return dispatchDeviceFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            auto const* const from = static_cast<T const*>(x);
            auto* const to = static_cast<T*>(y);
            constexpr int32_t kWIDE = static_cast<int32_t>(16U / sizeof(T));
            return packOf<T>(x, y, sizes.channels) == kWIDE
                ? launchTyped<T, kWIDE>(sizes, problem, from, size, to, ySize, dest, workspace, stream)
                : launchTyped<T, 1>(sizes, problem, from, size, to, ySize, dest, workspace, stream);
        });
}

} // namespace trtc::token_merge
