// Up to three launches, and no attention matrix in memory: the logits are computed twice, in tiles that stay in
// registers. In the first launch a block owns a tile of rows of one head and a share of the keys, and finds each row's
// largest logit and sum of exponentials over that share, key by key tile. In the second a block owns 64 keys of the
// span for one head: it goes over all rows, computes the logits again, makes weights of them by the rows' sums (the
// shares put together), and reduces them over the rows. The third pools and reduces over heads, and is left out where
// each head's scores are wanted as they are. Logits without softmax need the second launch only.
//
// A tile has 64 keys and 16 kROWS rows: a thread has kROWS rows by 4 keys. 32 values of D at a time go through shared
// memory, transposed, read from there by 16 bytes. All sums run in an order that follows from the sizes.
//
// Bytes, per launch: B * H * ceil(R / (16 kROWS)) * N * D * sizeof(k) read, of which all but G / H and the first tile
// of rows comes from L2; B * H * R * D * sizeof(q) for each tile of keys; 8 * B * H * R for each share, 4 * B * H *
// (stop - start) for scores of heads. Rows of a multiple of 16 bytes at addresses of the same are read by 16 bytes. The
// first version: logits kept in memory would halve the products, and take 4 * B * H * R * N bytes.
#include "attention_score/kernel.cuh"

#include <algorithm>

#include "attention_score/logits.cuh"

namespace trtc::attention_score
{

namespace
{
using namespace gpu;

constexpr int32_t kFEW_ROWS = 1; // of a thread
constexpr int32_t kMANY_ROWS = 4;
constexpr int32_t kBLOCKS_OF_SM = 2; // said to the compiler: left alone it saves registers until it spills
constexpr int32_t kPOOL_THREADS = 256;
constexpr int64_t kENOUGH_BLOCKS = 512;
constexpr int64_t kMOST_SHARES = 64;

//! A row's largest logit, and the sum of exponentials relative to it.
struct Sum
{
    float largest;
    float sum;
};

__device__ Sum together(Sum a, Sum b)
{
    float const largest = fmaxf(a.largest, b.largest);
    float const sum = (a.sum > 0.0F ? a.sum * expf(a.largest - largest) : 0.0F)
        + (b.sum > 0.0F ? b.sum * expf(b.largest - largest) : 0.0F);
    return {largest, sum};
}

//! Block (item, head, tile of rows; share of keys).
template <int32_t kROWS>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) attentionScoreSumKernel(Problem problem, Sum* sums)
{
    __shared__ Tiles<kROWS> tiles;
    auto const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const row = static_cast<int32_t>(blockIdx.x) % problem.rowTiles * kSIDE * kROWS;
    int64_t const itemAndHead = static_cast<int32_t>(blockIdx.x) / problem.rowTiles;
    int64_t const item = itemAndHead / problem.heads;
    auto const head = static_cast<int32_t>(itemAndHead % problem.heads);
    int32_t const mine = thread / kSIDE * kROWS;
    int32_t const own = thread % kSIDE * kKEYS;
    Sum sum[kROWS];
    int32_t last[kROWS];
#pragma unroll
    for (int32_t i = 0; i < kROWS; ++i)
    {
        sum[i] = {-INFINITY, 0.0F};
        last[i] = row + mine + i < problem.usedRows ? lastSeen(problem, item, row + mine + i) : -1;
    }
    int32_t const begin = problem.firstKey + static_cast<int32_t>(blockIdx.y) * problem.shareKeys;
    int32_t const end = min(begin + problem.shareKeys, problem.firstKey + problem.usedKeys);
    for (int32_t key = begin; key < end; key += kTILE_KEYS)
    {
        float logits[kROWS][kKEYS];
        computeLogits<kROWS>(problem, tiles, item, head, row, key, logits);
#pragma unroll
        for (int32_t i = 0; i < kROWS; ++i)
        {
            float largest = sum[i].largest;
#pragma unroll
            for (int32_t j = 0; j < kKEYS; ++j)
            {
                bool const isSeen = key + own + j < end && key + own + j <= last[i];
                logits[i][j] = isSeen ? logits[i][j] : -INFINITY;
                largest = fmaxf(largest, logits[i][j]);
            }
            if (largest > -INFINITY)
            {
                float total = sum[i].sum > 0.0F ? sum[i].sum * expf(sum[i].largest - largest) : 0.0F;
#pragma unroll
                for (int32_t j = 0; j < kKEYS; ++j)
                {
                    total += expf(logits[i][j] - largest);
                }
                sum[i] = {largest, total};
            }
        }
    }
#pragma unroll
    for (int32_t i = 0; i < kROWS; ++i)
    {
        for (int32_t offset = kSIDE / 2; offset > 0; offset /= 2)
        {
            Sum const other{
                __shfl_xor_sync(kFULL_MASK, sum[i].largest, offset), __shfl_xor_sync(kFULL_MASK, sum[i].sum, offset)};
            sum[i] = together(sum[i], other);
        }
        if (own == 0 && row + mine + i < problem.usedRows)
        {
            sums[(itemAndHead * problem.usedRows + row + mine + i) * problem.shares + blockIdx.y] = sum[i];
        }
    }
}

template <int32_t kROWS>
struct Columns
{
    Tiles<kROWS> tiles;
    float largest[kSIDE * kROWS];
    float inverse[kSIDE * kROWS]; //!< of a row's sum; 0 if it sees nothing
    int32_t last[kSIDE * kROWS];
    float parts[kSIDE][kTILE_KEYS];
};

//! Block (item, head, 64 keys of the span): `raw`, the scores of a head.
template <int32_t kROWS>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM)
    attentionScoreKernel(Problem problem, int32_t keyTiles, Sum const* sums, float* raw)
{
    constexpr int32_t kTILE_ROWS = kSIDE * kROWS;
    __shared__ Columns<kROWS> shared;
    auto const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const inSpan = static_cast<int32_t>(blockIdx.x) % keyTiles * kTILE_KEYS;
    int64_t const itemAndHead = static_cast<int32_t>(blockIdx.x) / keyTiles;
    int64_t const item = itemAndHead / problem.heads;
    auto const head = static_cast<int32_t>(itemAndHead % problem.heads);
    int32_t const mine = thread / kSIDE * kROWS;
    int32_t const own = thread % kSIDE * kKEYS;
    int32_t const key = problem.start + inSpan;
    float score[kKEYS];
#pragma unroll
    for (int32_t j = 0; j < kKEYS; ++j)
    {
        score[j] = problem.isMaximum ? -INFINITY : 0.0F;
    }
    for (int32_t row = 0; row < problem.usedRows; row += kTILE_ROWS)
    {
        __syncthreads(); // nobody reads what is known of the rows before any more
        if (problem.hasSoftmax && thread < kTILE_ROWS && row + thread < problem.usedRows)
        {
            Sum const* const parts = sums + (itemAndHead * problem.usedRows + row + thread) * problem.shares;
            Sum sum = parts[0];
            for (int32_t i = 1; i < problem.shares; ++i)
            {
                sum = together(sum, parts[i]);
            }
            shared.largest[thread] = sum.sum > 0.0F ? sum.largest : 0.0F;
            shared.inverse[thread] = sum.sum > 0.0F ? 1.0F / sum.sum : 0.0F;
            shared.last[thread] = lastSeen(problem, item, row + thread);
        }
        float logits[kROWS][kKEYS];
        computeLogits<kROWS>(problem, shared.tiles, item, head, row, key, logits); // has barriers
#pragma unroll
        for (int32_t i = 0; i < kROWS; ++i)
        {
            if (row + mine + i < problem.usedRows)
            {
#pragma unroll
                for (int32_t j = 0; j < kKEYS; ++j)
                {
                    float weight = logits[i][j];
                    if (problem.hasSoftmax)
                    {
                        bool const isSeen = key + own + j <= shared.last[mine + i];
                        weight = isSeen ? expf(weight - shared.largest[mine + i]) * shared.inverse[mine + i] : 0.0F;
                    }
                    score[j] = problem.isMaximum ? fmaxf(score[j], weight) : score[j] + weight;
                }
            }
        }
    }
#pragma unroll
    for (int32_t j = 0; j < kKEYS; ++j)
    {
        shared.parts[thread / kSIDE][own + j] = score[j];
    }
    __syncthreads();
    int32_t const keys = ownKeys(problem, item);
    if (thread < kTILE_KEYS && inSpan + thread < problem.span)
    {
        float all = shared.parts[0][thread];
        for (int32_t i = 1; i < kSIDE; ++i)
        {
            float const part = shared.parts[i][thread];
            all = problem.isMaximum ? fmaxf(all, part) : all + part;
        }
        if (problem.isMean)
        {
            all /= static_cast<float>(problem.usedRows);
        }
        if (problem.normalize == Normalize::kTOKENS)
        {
            all /= static_cast<float>(max(keys - key - thread, 1));
        }
        if (problem.normalize == Normalize::kPROBES)
        {
            int32_t number = 0;
            for (int32_t row = 0; row < problem.usedRows; ++row)
            {
                number += key + thread <= lastSeen(problem, item, row) ? 1 : 0;
            }
            all /= static_cast<float>(max(number, 1));
        }
        bool const isOwn = key + thread < ownStop(problem, keys); // what others hold may be NaN
        raw[itemAndHead * problem.span + inSpan + thread] = isOwn ? all : 0.0F;
    }
}

struct Window
{
    int32_t reach; //!< to each side; 0: no pooling
    float width;   //!< what an average divides by
};

struct Pooling
{
    int32_t heads; //!< of a part
    int32_t span;
    int32_t chunks; //!< of the span
    Window ofHead;
    Window ofPart;
    int32_t parts; //!< of an item
    bool isMaximum;
    Reduce reduce;
};

//! What one pooling makes of the values around `at`, of `span`.
template <typename Value>
__device__ float poolAt(Pooling const& pooling, Window const& window, int32_t span, int32_t at, Value const& value)
{
    int32_t const begin = max(at - window.reach, 0);
    int32_t const end = min(at + window.reach + 1, span);
    float all = value(begin);
    for (int32_t i = begin + 1; i < end; ++i)
    {
        float const other = value(i);
        all = pooling.isMaximum ? fmaxf(all, other) : all + other;
    }
    return pooling.isMaximum ? all : all / window.width;
}

//! Block (item, part, chunk of the span).
__global__ void __launch_bounds__(kPOOL_THREADS)
    attentionScorePoolKernel(Problem problem, Pooling pooling, float const* raw, float* score)
{
    auto const chunk = static_cast<int32_t>(blockIdx.x) % pooling.chunks;
    int64_t const part = static_cast<int32_t>(blockIdx.x) / pooling.chunks;
    int32_t const at = chunk * kPOOL_THREADS + static_cast<int32_t>(threadIdx.x);
    if (at >= pooling.span)
    {
        return;
    }
    int32_t const span = ownStop(problem, ownKeys(problem, part / pooling.parts)) - problem.start;
    if (at >= span)
    {
        score[part * pooling.span + at] = 0.0F;
        return;
    }
    float const* const own = raw + part * pooling.heads * pooling.span;
    auto const ofHeads = [&](int32_t j)
    {
        float all = 0.0F;
        for (int32_t head = 0; head < pooling.heads; ++head)
        {
            float const* const row = own + static_cast<int64_t>(head) * pooling.span;
            float const value = pooling.ofHead.reach == 0
                ? row[j]
                : poolAt(pooling, pooling.ofHead, span, j, [&](int32_t i) { return row[i]; });
            float const both = pooling.reduce == Reduce::kMAXIMUM ? fmaxf(all, value) : all + value;
            all = head == 0 ? value : both;
        }
        return pooling.reduce == Reduce::kMEAN ? all / static_cast<float>(pooling.heads) : all;
    };
    score[part * pooling.span + at] =
        pooling.ofPart.reach == 0 ? ofHeads(at) : poolAt(pooling, pooling.ofPart, span, at, ofHeads);
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
    int64_t shareKeys;
    int64_t shares;
};

Cut cutOf(Sizes const& sizes)
{
    Cut cut{};
    cut.rows = sizes.usedRows() > kSIDE * kFEW_ROWS ? kMANY_ROWS : kFEW_ROWS;
    cut.rowTiles = divideUp(sizes.usedRows(), kSIDE * cut.rows);
    int64_t const blocks = std::max<int64_t>(sizes.batch * sizes.heads * cut.rowTiles, 1);
    int64_t const keyTiles = divideUp(sizes.usedKeys(), kTILE_KEYS);
    int64_t const wanted = std::max<int64_t>(std::min({kENOUGH_BLOCKS / blocks, keyTiles, kMOST_SHARES}), 1);
    cut.shareKeys = divideUp(keyTiles, wanted) * kTILE_KEYS;
    cut.shares = divideUp(sizes.usedKeys(), cut.shareKeys);
    return cut;
}

int64_t sumBytes(Sizes const& sizes)
{
    if (sizes.softmax == Softmax::kNONE)
    {
        return 0;
    }
    // More rows mean fewer shares, and yet the workspace must not shrink as sizes grow: the most that there can be.
    constexpr int64_t kMOST_SHARED_ROWS = kENOUGH_BLOCKS * kSIDE * kMANY_ROWS;
    int64_t const rows = sizes.batch * sizes.heads * sizes.usedRows();
    return std::max(rows, std::min(rows * kMOST_SHARES, kMOST_SHARED_ROWS)) * static_cast<int64_t>(sizeof(Sum));
}

template <int32_t kROWS>
cudaError_t launchTyped(
    Sizes const& sizes, Cut const& cut, Problem const& problem, Sum* sums, float* raw, cudaStream_t stream)
{
    int64_t const heads = sizes.batch * sizes.heads;
    cudaError_t status = cudaSuccess;
    if (problem.hasSoftmax)
    {
        dim3 const grid(static_cast<unsigned>(heads * cut.rowTiles), static_cast<unsigned>(cut.shares));
        status = launchKernel(attentionScoreSumKernel<kROWS>, grid, dim3(kTHREADS), 0, stream, problem, sums);
    }
    if (status == cudaSuccess)
    {
        int64_t const keyTiles = divideUp(sizes.span(), kTILE_KEYS);
        status = launchKernel(attentionScoreKernel<kROWS>, dim3(static_cast<unsigned>(heads * keyTiles)),
            dim3(kTHREADS), 0, stream, problem, keyTiles, sums, raw);
    }
    return status;
}
} // namespace

size_t attentionScoreWorkspaceBytes(Sizes const& sizes)
{
    int64_t const raw = sizes.isPlain() ? 0 : sizes.batch * sizes.heads * sizes.span();
    return static_cast<size_t>(sumBytes(sizes) + raw * static_cast<int64_t>(sizeof(float)));
}

cudaError_t launchAttentionScore(Sizes const& sizes, Types const& types, void const* q, void const* k,
    int64_t const* position, void const* bias, int64_t const* length, float* score, void* workspace,
    cudaStream_t stream)
{
    Cut const cut = cutOf(sizes);
    auto const narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    auto const isWide = [&](void const* data, DType type)
    {
        auto const bits = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(sizes.width) * sizeOf(type);
        return bits % 16U == 0U;
    };
    Problem problem{};
    problem.heads = narrow(sizes.heads);
    problem.headsOfGroup = narrow(sizes.headsOfGroup());
    problem.numRows = narrow(sizes.numRows);
    problem.firstRow = narrow(sizes.firstRow());
    problem.usedRows = narrow(sizes.usedRows());
    problem.width = narrow(sizes.width);
    problem.numKeys = narrow(sizes.numKeys);
    problem.firstKey = narrow(sizes.firstKey());
    problem.usedKeys = narrow(sizes.usedKeys());
    problem.start = narrow(sizes.start);
    problem.span = narrow(sizes.span());
    problem.rowTiles = narrow(cut.rowTiles);
    problem.shareKeys = narrow(cut.shareKeys);
    problem.shares = narrow(cut.shares);
    problem.scale = sizes.scale;
    problem.causal = sizes.causal;
    problem.isMaximum = sizes.rows == Rows::kMAXIMUM;
    problem.isMean = sizes.rows == Rows::kMEAN;
    problem.hasSoftmax = sizes.softmax != Softmax::kNONE;
    problem.normalize = sizes.normalize;
    problem.qType = types.q;
    problem.kType = types.k;
    problem.biasType = types.bias;
    problem.qIsWide = isWide(q, types.q);
    problem.kIsWide = isWide(k, types.k);
    problem.q = q;
    problem.k = k;
    problem.bias = bias;
    problem.position = position;
    problem.positionItem = sizes.arePositionsOfItems ? sizes.numRows : 0;
    problem.length = sizes.isCounted ? length : nullptr;
    problem.lengthItem = sizes.isOneLength ? 0 : 1;
    problem.isStopFromEnd = sizes.isStopFromEnd;
    problem.isOverAll = sizes.softmax == Softmax::kALL;
    problem.biasKey = sizes.bias[3] > 1 ? 1 : 0;
    problem.biasRow = sizes.bias[2] > 1 ? sizes.bias[3] : 0;
    problem.biasHead = sizes.bias[1] > 1 ? sizes.bias[2] * sizes.bias[3] : 0;
    problem.biasItem = sizes.bias[0] > 1 ? sizes.bias[1] * sizes.bias[2] * sizes.bias[3] : 0;
    auto* const sums = static_cast<Sum*>(workspace);
    auto* const scratch = reinterpret_cast<float*>(static_cast<char*>(workspace) + sumBytes(sizes));
    float* const raw = sizes.isPlain() ? score : scratch;
    cudaError_t const status = cut.rows == kMANY_ROWS ? launchTyped<kMANY_ROWS>(sizes, cut, problem, sums, raw, stream)
                                                      : launchTyped<kFEW_ROWS>(sizes, cut, problem, sums, raw, stream);
    if (status != cudaSuccess || sizes.isPlain())
    {
        return status;
    }
    auto const window = [&](int64_t kernel)
    { return Window{narrow(std::min(kernel / 2, sizes.span())), static_cast<float>(kernel)}; };
    Pooling const pooling{narrow(sizes.heads / sizes.parts), problem.span,
        narrow(divideUp(sizes.span(), kPOOL_THREADS)), window(sizes.headKernel), window(sizes.kernel),
        narrow(sizes.parts), sizes.poolMaximum, sizes.reduce};
    return launchKernel(attentionScorePoolKernel,
        dim3(static_cast<unsigned>(sizes.batch * sizes.parts * pooling.chunks)), dim3(kPOOL_THREADS), 0, stream,
        problem, pooling, raw, score);
}

} // namespace trtc::attention_score
