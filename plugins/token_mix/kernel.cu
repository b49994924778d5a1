// A product of matrices, y[b] = W[b] x[b], with float32 sums. A block owns a tile of kROWS * 16 rows by 64 channels of
// one item and a share of N; a thread has kROWS rows by 4 channels in registers. Tiles of 16 tokens go through shared
// memory, those of the matrix transposed, so that both are read from there by 16 bytes. Where there are too few tiles
// to fill a GPU, N is cut into shares whose sums lie in the workspace and are added in order by a second launch: the
// number of shares follows from the sizes alone, so the same input gives the same bits. A softmax of the rows comes
// first, a block a row, into the workspace, as each of its values is used by every tile of channels.
//
// Bytes: B * N * C * sizeof(x) * ceil(M / (16 kROWS)) + (1 or B) * M * N * sizeof(weight) * ceil(C / 64) read, of which
// all but the first reading comes from L2, and B * M * C * sizeof(x) written; 8 * B * M * C for each share if there are
// several; 8 * M * N for a softmax. Rows of a multiple of 16 bytes at addresses of the same are read by 16 bytes.
//
// The first version. It does not use tensor cores, which take no float32 matrix beside float16 tokens.
#include "token_mix/kernel.cuh"

#include <algorithm>

#include "common/cuda_device.cuh"

namespace trtc::token_mix
{

namespace
{
constexpr int32_t kLANES = static_cast<int32_t>(kWARP_SIZE);
constexpr int32_t kSIDE = 16; // threads of a block along rows, and along channels
constexpr int32_t kTHREADS = kSIDE * kSIDE;
constexpr int32_t kDEPTH = 16;   // tokens of a tile
constexpr int32_t kCHANNELS = 4; // of a thread
constexpr int32_t kTILE_CHANNELS = kSIDE * kCHANNELS;
constexpr int32_t kMANY_ROWS = 4; // of a thread
constexpr int32_t kFEW_ROWS = 2;
constexpr int32_t kPAD = 4;          // floats between rows in shared memory, against conflicts of banks
constexpr int32_t kBLOCKS_OF_SM = 2; // said to the compiler: left alone it saves registers until it spills
constexpr int32_t kROW_THREADS = 128;
constexpr int32_t kROW_WARPS = kROW_THREADS / kLANES;
constexpr int32_t kSUM_THREADS = 256;
constexpr int64_t kENOUGH_BLOCKS = 256;
constexpr int64_t kSHARE_TOKENS = 128; // fewer are not worth a share of their own
constexpr int64_t kMOST_SHARES = 32;

struct Problem
{
    int32_t numTokens;
    int32_t channels;
    int32_t numOut;
    int32_t rowTiles;
    int32_t channelTiles;
    int32_t shareTokens; //!< of every share but the last; a multiple of kDEPTH
    bool isShared;       //!< one matrix for all items
    DType weightType;
    void const* weight;
};

//! The largest of the block, or the sum: known to all threads. `scratch` has one entry for each warp.
template <bool kSUM>
__device__ float reduceRow(float value, float* scratch)
{
    for (int32_t offset = kLANES / 2; offset > 0; offset /= 2)
    {
        float const other = __shfl_xor_sync(kFULL_MASK, value, offset);
        value = kSUM ? value + other : fmaxf(value, other);
    }
    __syncthreads();
    if (threadIdx.x % kWARP_SIZE == 0U)
    {
        scratch[threadIdx.x / kWARP_SIZE] = value;
    }
    __syncthreads();
    value = scratch[0];
    for (int32_t i = 1; i < kROW_WARPS; ++i)
    {
        value = kSUM ? value + scratch[i] : fmaxf(value, scratch[i]);
    }
    return value;
}

//! Block (row): the softmax of one row of a matrix, as float32.
__global__ void __launch_bounds__(kROW_THREADS)
    tokenMixSoftmaxKernel(void const* weight, DType type, int32_t numTokens, float* matrix)
{
    __shared__ float scratch[kROW_WARPS];
    int64_t const row = static_cast<int64_t>(blockIdx.x) * numTokens;
    auto const first = static_cast<int32_t>(threadIdx.x);
    float largest = -INFINITY;
    for (int32_t n = first; n < numTokens; n += kROW_THREADS)
    {
        largest = fmaxf(largest, loadFloat(weight, type, row + n));
    }
    largest = reduceRow<false>(largest, scratch);
    float sum = 0.0F;
    for (int32_t n = first; n < numTokens; n += kROW_THREADS)
    {
        float const value = expf(loadFloat(weight, type, row + n) - largest);
        matrix[row + n] = value;
        sum += value;
    }
    sum = reduceRow<true>(sum, scratch);
    for (int32_t n = first; n < numTokens; n += kROW_THREADS)
    {
        matrix[row + n] /= sum;
    }
}

template <int32_t kROWS>
struct Tiles
{
    alignas(16) float weight[kDEPTH][kSIDE * kROWS + kPAD];
    alignas(16) float x[kDEPTH][kTILE_CHANNELS];
};

//! Rows from `row` and tokens from `token` on of the matrix, zero beyond its ends; transposed.
template <int32_t kROWS>
__device__ void loadWeights(
    Tiles<kROWS>& tiles, Problem const& problem, int64_t matrix, int32_t row, int32_t token, int32_t end)
{
    int32_t const depth = static_cast<int32_t>(threadIdx.x) % kDEPTH;
#pragma unroll
    for (int32_t i = 0; i < kROWS; ++i)
    {
        int32_t const inTile = static_cast<int32_t>(threadIdx.x) / kDEPTH + i * kSIDE;
        float value = 0.0F;
        if (row + inTile < problem.numOut && token + depth < end)
        {
            int64_t const at = (matrix * problem.numOut + row + inTile) * problem.numTokens + token + depth;
            value = loadFloat(problem.weight, problem.weightType, at);
        }
        tiles.weight[depth][inTile] = value;
    }
}

//! Tokens from `token` and channels from `channel` on of one item, zero beyond their ends.
template <typename T, int32_t kROWS, int32_t kPACK>
__device__ void loadTokens(
    Tiles<kROWS>& tiles, Problem const& problem, T const* x, int32_t token, int32_t end, int32_t channel)
{
    using Group = Pack<T, kPACK>;
    constexpr int32_t kGROUPS = kTILE_CHANNELS / kPACK; // of a token
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kDEPTH * kGROUPS; i += kTHREADS)
    {
        int32_t const depth = i / kGROUPS;
        int32_t const inTile = i % kGROUPS * kPACK;
        Group group;
        bool const isThere = token + depth < end && channel + inTile < problem.channels;
        if (isThere)
        {
            int64_t const at = static_cast<int64_t>(token + depth) * problem.channels + channel + inTile;
            group = *reinterpret_cast<Group const*>(x + at);
        }
#pragma unroll
        for (int32_t j = 0; j < kPACK; ++j)
        {
            tiles.x[depth][inTile + j] = isThere ? toFloat(group.values[j]) : 0.0F;
        }
    }
}

//! Block (item, tile of rows, tile of channels; share). `sums`: where shares put their sums, or null.
template <typename T, int32_t kROWS, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM)
    tokenMixKernel(Problem problem, T const* x, T* y, float* sums)
{
    using Rows = Pack<float, kROWS>;
    using Channels = Pack<float, kCHANNELS>;
    __shared__ Tiles<kROWS> tiles;
    auto const block = static_cast<int32_t>(blockIdx.x);
    int32_t const channel = block % problem.channelTiles * kTILE_CHANNELS;
    int32_t const row = block / problem.channelTiles % problem.rowTiles * kSIDE * kROWS;
    int64_t const item = block / problem.channelTiles / problem.rowTiles;
    int32_t const begin = static_cast<int32_t>(blockIdx.y) * problem.shareTokens;
    int32_t const end = min(begin + problem.shareTokens, problem.numTokens);
    int32_t const mine = static_cast<int32_t>(threadIdx.x) / kSIDE * kROWS;
    int32_t const own = static_cast<int32_t>(threadIdx.x) % kSIDE * kCHANNELS;
    T const* const from = x + item * problem.numTokens * problem.channels;
    float sum[kROWS][kCHANNELS] = {};
    for (int32_t token = begin; token < end; token += kDEPTH)
    {
        loadWeights<kROWS>(tiles, problem, problem.isShared ? 0 : item, row, token, end);
        loadTokens<T, kROWS, kPACK>(tiles, problem, from, token, end, channel);
        __syncthreads();
#pragma unroll
        for (int32_t depth = 0; depth < kDEPTH; ++depth)
        {
            Rows const left = *reinterpret_cast<Rows const*>(&tiles.weight[depth][mine]);
            Channels const right = *reinterpret_cast<Channels const*>(&tiles.x[depth][own]);
#pragma unroll
            for (int32_t i = 0; i < kROWS; ++i)
            {
#pragma unroll
                for (int32_t j = 0; j < kCHANNELS; ++j)
                {
                    sum[i][j] = fmaf(left.values[i], right.values[j], sum[i][j]);
                }
            }
        }
        __syncthreads();
    }
    int64_t const outputs =
        static_cast<int64_t>(gridDim.x) / (problem.channelTiles * problem.rowTiles) * problem.numOut * problem.channels;
    float* const part = sums == nullptr ? nullptr : sums + blockIdx.y * outputs;
#pragma unroll
    for (int32_t i = 0; i < kROWS; ++i)
    {
#pragma unroll
        for (int32_t j = 0; j < kCHANNELS; ++j)
        {
            if (row + mine + i < problem.numOut && channel + own + j < problem.channels)
            {
                int64_t const at = (item * problem.numOut + row + mine + i) * problem.channels + channel + own + j;
                if (part == nullptr)
                {
                    y[at] = fromFloat<T>(sum[i][j]);
                }
                else
                {
                    part[at] = sum[i][j];
                }
            }
        }
    }
}

//! Adds the sums of the shares, in order.
template <typename T>
__global__ void __launch_bounds__(kSUM_THREADS)
    tokenMixSumKernel(float const* sums, int32_t shares, int64_t outputs, T* y)
{
    int64_t const at = static_cast<int64_t>(blockIdx.x) * kSUM_THREADS + threadIdx.x;
    if (at < outputs)
    {
        float sum = sums[at];
        for (int32_t i = 1; i < shares; ++i)
        {
            sum += sums[i * outputs + at];
        }
        y[at] = fromFloat<T>(sum);
    }
}

int64_t divideUp(int64_t count, int64_t each)
{
    return (count + each - 1) / each;
}

//! How the work is cut; it follows from the sizes alone.
struct Cut
{
    int32_t rows; //!< of a thread
    int64_t rowTiles;
    int64_t channelTiles;
    int64_t shareTokens;
    int64_t shares;
};

Cut cutOf(Sizes const& sizes)
{
    Cut cut{};
    cut.rows = sizes.numOut > kSIDE * kFEW_ROWS ? kMANY_ROWS : kFEW_ROWS;
    cut.rowTiles = divideUp(sizes.numOut, kSIDE * cut.rows);
    cut.channelTiles = divideUp(sizes.channels, kTILE_CHANNELS);
    int64_t const blocks = std::max<int64_t>(sizes.batch * cut.rowTiles * cut.channelTiles, 1);
    int64_t const wanted = std::min({kENOUGH_BLOCKS / blocks, sizes.numTokens / kSHARE_TOKENS, kMOST_SHARES});
    cut.shareTokens =
        std::max<int64_t>(divideUp(divideUp(sizes.numTokens, std::max<int64_t>(wanted, 1)), kDEPTH) * kDEPTH, kDEPTH);
    cut.shares = std::max<int64_t>(divideUp(sizes.numTokens, cut.shareTokens), 1);
    return cut;
}

int64_t matrixBytes(Sizes const& sizes)
{
    int64_t const values = sizes.softmax ? sizes.numMatrices * sizes.numOut * sizes.numTokens : 0;
    return divideUp(values * static_cast<int64_t>(sizeof(float)), 16) * 16;
}

template <typename T, int32_t kROWS, int32_t kPACK>
cudaError_t launchTyped(
    Sizes const& sizes, Cut const& cut, Problem const& problem, T const* x, T* y, float* sums, cudaStream_t stream)
{
    dim3 const grid(
        static_cast<unsigned>(sizes.batch * cut.rowTiles * cut.channelTiles), static_cast<unsigned>(cut.shares));
    float* const parts = cut.shares > 1 ? sums : nullptr;
    cudaError_t status =
        launchKernel(tokenMixKernel<T, kROWS, kPACK>, grid, dim3(kTHREADS), 0, stream, problem, x, y, parts);
    if (status == cudaSuccess && parts != nullptr)
    {
        int64_t const outputs = sizes.batch * sizes.numOut * sizes.channels;
        status = launchKernel(tokenMixSumKernel<T>, dim3(static_cast<unsigned>(divideUp(outputs, kSUM_THREADS))),
            dim3(kSUM_THREADS), 0, stream, parts, cut.shares, outputs, y);
    }
    return status;
}
} // namespace

size_t tokenMixWorkspaceBytes(Sizes const& sizes)
{
    // More items mean fewer shares, and yet the workspace must not shrink as sizes grow: the most that there can be.
    int64_t const outputs = sizes.batch * sizes.numOut * sizes.channels;
    int64_t const shares = std::min(std::max<int64_t>(sizes.numTokens / kSHARE_TOKENS, 1), kMOST_SHARES);
    constexpr int64_t kMOST_SUMS = kENOUGH_BLOCKS * kSIDE * kMANY_ROWS * kTILE_CHANNELS;
    int64_t const sums = shares > 1 ? std::min(shares * outputs, kMOST_SUMS) : 0;
    return static_cast<size_t>(matrixBytes(sizes) + sums * static_cast<int64_t>(sizeof(float)));
}

cudaError_t launchTokenMix(Sizes const& sizes, void const* x, DType type, void const* weight, DType weightType, void* y,
    void* workspace, cudaStream_t stream)
{
    Cut const cut = cutOf(sizes);
    auto* const matrix = static_cast<float*>(workspace);
    auto* const sums = reinterpret_cast<float*>(static_cast<char*>(workspace) + matrixBytes(sizes));
    auto const narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    Problem problem{narrow(sizes.numTokens), narrow(sizes.channels), narrow(sizes.numOut), narrow(cut.rowTiles),
        narrow(cut.channelTiles), narrow(cut.shareTokens), sizes.numMatrices == 1, weightType, weight};
    if (sizes.softmax)
    {
        cudaError_t const status =
            launchKernel(tokenMixSoftmaxKernel, dim3(static_cast<unsigned>(sizes.numMatrices * sizes.numOut)),
                dim3(kROW_THREADS), 0, stream, weight, weightType, problem.numTokens, matrix);
        if (status != cudaSuccess)
        {
            return status;
        }
        problem.weightType = DType::kFLOAT32;
        problem.weight = matrix;
    }
    return dispatchDeviceFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            auto const* const from = static_cast<T const*>(x);
            auto* const to = static_cast<T*>(y);
            constexpr int32_t kWIDE = static_cast<int32_t>(16U / sizeof(T));
            bool const isWide = packOf<T>(x, x, sizes.channels) == kWIDE;
            if (cut.rows == kMANY_ROWS)
            {
                return isWide ? launchTyped<T, kMANY_ROWS, kWIDE>(sizes, cut, problem, from, to, sums, stream)
                              : launchTyped<T, kMANY_ROWS, 1>(sizes, cut, problem, from, to, sums, stream);
            }
            return isWide ? launchTyped<T, kFEW_ROWS, kWIDE>(sizes, cut, problem, from, to, sums, stream)
                          : launchTyped<T, kFEW_ROWS, 1>(sizes, cut, problem, from, to, sums, stream);
        });
}

} // namespace trtc::token_mix
