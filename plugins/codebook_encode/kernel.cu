// Vectors: a block takes 64 tokens (16 where there are few) against a range of codes, in tiles of 64 codes and 16
// channels that go through shared memory; the next tile is loaded into registers while this one is multiplied. A thread
// holds 4 x 4 (1 x 4) products and a running best code, so that no distance is ever stored: a block leaves one key for
// each token. The ranges split the codebook over the SMs where tokens are few. A second launch takes the best of the
// ranges and, if another stage follows, the code off the token: one warp a token. All products sum over D in order, so
// that equal codes are equally near, and ties go by the number. Multiplied in float32 without tensor cores, which would
// round residuals to 10 bits and choose other codes.
// Per stage it reads B * N * D values once for each range and S * K * D values once for each 64 tokens.
//
// Tables: a lane owns a channel and has 4 tokens in registers; the levels of 32 channels lie in shared memory.
// FSQ: a block turns 256 tokens into digits, a thread a value, and adds them up through shared memory.
// Signs: ballots turn 32 values into a word; a thread cuts its code out of two words.
// All three read x once, coalesced, and write the codes once; any address will do. Vectors take 4 values at an access
// where D and the addresses allow.
#include "codebook_encode/kernel.cuh"

#include <algorithm>

#include "codebook_encode/codebook.cuh"
#include "common/order.h"
#include "common/portable.h"

namespace trtc::codebook_encode
{

namespace
{
constexpr int32_t kTHREADS = 256;
constexpr int32_t kWARPS = kTHREADS / static_cast<int32_t>(kWARP_SIZE);
constexpr int32_t kTILE = 64;  // codes in a tile, and tokens where there are many
constexpr int32_t kDEPTH = 16; // channels in a tile
constexpr int32_t kSIDE = 4;   // codes of a thread
constexpr int32_t kLANES_OF_ROW = kTILE / kSIDE;
constexpr int32_t kSTRIDE = kTILE + kSIDE; // of a row of a tile: keeps 16 bytes, halves the conflicts of storing
constexpr int32_t kLOADED = 4;             // values that a thread loads for a tile
constexpr int32_t kLOADERS_OF_ROW = kDEPTH / kLOADED;
constexpr int64_t kFEW_TOKENS = 32;
constexpr int64_t kENOUGH_BLOCKS = 256;
// Blocks of an SM, said to the compiler: left alone it saves registers until it spills.
constexpr int32_t kHEAVY_BLOCKS = 2;
constexpr int32_t kLIGHT_BLOCKS = 4;
constexpr float kFAR = -3.402823466e38F; // no code is farther

constexpr int32_t kLEVELS = 256;     // of a table, at a time in shared memory
constexpr int32_t kTABLE_TOKENS = 4; // of a thread
constexpr int64_t kTABLE_BLOCKS = 2048;

using Key = unsigned long long;

struct Problem
{
    int64_t numTokens;
    int32_t width;
    int32_t numCodes;
    int32_t tilesOfRange;
};

//! kLOADED values of a row from `depth` on, zero beyond its end; `row` may be null.
template <typename T, bool kWIDE>
__device__ void fetch(float (&to)[kLOADED], T const* row, int32_t depth, int32_t width)
{
    if constexpr (kWIDE)
    {
        // Rows have whole groups.
        Pack<T, kLOADED> group{};
        bool const isInside = row != nullptr && depth < width;
        if (isInside)
        {
            group = *reinterpret_cast<Pack<T, kLOADED> const*>(row + depth);
        }
#pragma unroll
        for (int32_t i = 0; i < kLOADED; ++i)
        {
            to[i] = isInside ? toFloat(group.values[i]) : 0.0F;
        }
    }
    else
    {
#pragma unroll
        for (int32_t i = 0; i < kLOADED; ++i)
        {
            to[i] = row != nullptr && depth + i < width ? toFloat(row[depth + i]) : 0.0F;
        }
    }
}

//! Block (tile of tokens, range of codes). kROWS tokens of a thread.
template <typename T, int32_t kROWS, bool kWIDE>
__global__ void __launch_bounds__(kTHREADS, kHEAVY_BLOCKS)
    nearestKernel(Problem problem, float const* tokens, T const* words, Key* keys)
{
    constexpr int32_t kTOKENS = kLANES_OF_ROW * kROWS;
    using Codes = Pack<float, kSIDE>;
    using Tokens = Pack<float, kROWS>;
    __shared__ __align__(16) float tokenTile[kDEPTH][kTOKENS + kSIDE];
    __shared__ __align__(16) float codeTile[kDEPTH][kSTRIDE];
    __shared__ float halfSquares[kTILE];
    auto const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const width = problem.width;
    int32_t const mine = thread / kLANES_OF_ROW * kROWS;   // my first token in the tile
    int32_t const column = thread % kLANES_OF_ROW * kSIDE; // my first code
    int32_t const loadedRow = thread / kLOADERS_OF_ROW;
    int32_t const loadedDepth = thread % kLOADERS_OF_ROW * kLOADED;
    int64_t const firstToken = static_cast<int64_t>(blockIdx.x) * kTOKENS;
    bool const loadsToken = loadedRow < kTOKENS && firstToken + loadedRow < problem.numTokens;
    float const* const tokenRow = loadsToken ? tokens + (firstToken + loadedRow) * width : nullptr;
    int32_t const begin = static_cast<int32_t>(blockIdx.y) * problem.tilesOfRange * kTILE;
    int32_t const end = min(begin + problem.tilesOfRange * kTILE, problem.numCodes);
    float best[kROWS];
    int32_t code[kROWS];
#pragma unroll
    for (int32_t i = 0; i < kROWS; ++i)
    {
        best[i] = kFAR;
        code[i] = begin;
    }
    for (int32_t first = begin; first < end; first += kTILE)
    {
        bool const loadsCode = first + loadedRow < end;
        T const* const codeRow = loadsCode ? words + static_cast<int64_t>(first + loadedRow) * width : nullptr;
        float nextTokens[kLOADED];
        float nextCodes[kLOADED];
        fetch<float, kWIDE>(nextTokens, tokenRow, loadedDepth, width);
        fetch<T, kWIDE>(nextCodes, codeRow, loadedDepth, width);
        float square = 0.0F;
        float sum[kROWS][kSIDE] = {};
        int32_t depth = 0;
        do
        {
            __syncthreads(); // nobody reads the tile before any more
#pragma unroll
            for (int32_t i = 0; i < kLOADED; ++i)
            {
                if (loadedRow < kTOKENS)
                {
                    tokenTile[loadedDepth + i][loadedRow] = nextTokens[i];
                }
                codeTile[loadedDepth + i][loadedRow] = nextCodes[i];
                square = fmaf(nextCodes[i], nextCodes[i], square);
            }
            __syncthreads();
            depth += kDEPTH;
            if (depth < width)
            {
                fetch<float, kWIDE>(nextTokens, tokenRow, depth + loadedDepth, width);
                fetch<T, kWIDE>(nextCodes, codeRow, depth + loadedDepth, width);
            }
#pragma unroll
            for (int32_t d = 0; d < kDEPTH; ++d)
            {
                Tokens const left = *reinterpret_cast<Tokens const*>(&tokenTile[d][mine]);
                Codes const right = *reinterpret_cast<Codes const*>(&codeTile[d][column]);
#pragma unroll
                for (int32_t i = 0; i < kROWS; ++i)
                {
#pragma unroll
                    for (int32_t j = 0; j < kSIDE; ++j)
                    {
                        sum[i][j] = fmaf(left.values[i], right.values[j], sum[i][j]);
                    }
                }
            }
        }
        while (depth < width);
#pragma unroll
        for (int32_t offset = 1; offset < kLOADERS_OF_ROW; offset *= 2)
        {
            square += __shfl_xor_sync(kFULL_MASK, square, offset);
        }
        if (loadedDepth == 0)
        {
            halfSquares[loadedRow] = 0.5F * square; // read by nobody since the barriers above
        }
        __syncthreads();
#pragma unroll
        for (int32_t i = 0; i < kROWS; ++i)
        {
#pragma unroll
            for (int32_t j = 0; j < kSIDE; ++j)
            {
                // Only a nearer one replaces the best, so that of equal ones the first stays.
                float const nearness = sum[i][j] - halfSquares[column + j];
                bool const better = first + column + j < end && nearness > best[i];
                best[i] = better ? nearness : best[i];
                code[i] = better ? first + column + j : code[i];
            }
        }
    }
#pragma unroll
    for (int32_t i = 0; i < kROWS; ++i)
    {
        Key key = bestFirst(best[i], static_cast<uint32_t>(code[i]));
        for (int32_t offset = kLANES_OF_ROW / 2; offset > 0; offset /= 2)
        {
            Key const other = __shfl_xor_sync(kFULL_MASK, key, offset);
            key = other < key ? other : key;
        }
        int64_t const token = firstToken + mine + i;
        if (column == 0 && token < problem.numTokens)
        {
            keys[blockIdx.y * problem.numTokens + token] = key;
        }
    }
}

//! One warp a token: the best of the ranges, and the token without it unless `rest` is null. `rest` may be `tokens`.
template <typename T>
__global__ void __launch_bounds__(kTHREADS, kLIGHT_BLOCKS) finishKernel(Problem problem, int32_t numRanges,
    Key const* keys, float const* tokens, T const* words, int64_t* code, int64_t stride, float* rest)
{
    int64_t const token = static_cast<int64_t>(blockIdx.x) * kWARPS + threadIdx.x / kWARP_SIZE;
    if (token >= problem.numTokens)
    {
        return;
    }
    auto const lane = static_cast<int32_t>(threadIdx.x % kWARP_SIZE);
    Key key = ~Key{0};
    for (int32_t range = lane; range < numRanges; range += static_cast<int32_t>(kWARP_SIZE))
    {
        Key const other = keys[range * problem.numTokens + token];
        key = other < key ? other : key;
    }
    auto const found = static_cast<int32_t>(indexOfBestFirst(warpMin(key)));
    if (lane == 0)
    {
        code[token * stride] = found;
    }
    if (rest == nullptr)
    {
        return;
    }
    T const* const word = words + static_cast<int64_t>(found) * problem.width;
    int64_t const row = token * problem.width;
    for (int32_t d = lane; d < problem.width; d += static_cast<int32_t>(kWARP_SIZE))
    {
        rest[row + d] = tokens[row + d] - toFloat(word[d]);
    }
}

template <typename T>
__global__ void __launch_bounds__(kTHREADS, kLIGHT_BLOCKS) toFloatKernel(int64_t count, T const* from, float* to)
{
    int64_t const step = static_cast<int64_t>(gridDim.x) * kTHREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kTHREADS + threadIdx.x; i < count; i += step)
    {
        to[i] = toFloat(from[i]);
    }
}

//! Block (share of the tokens, 32 channels).
template <typename T>
__global__ void __launch_bounds__(kTHREADS, kLIGHT_BLOCKS)
    encodeTableKernel(Problem problem, T const* x, void const* table, DType tableType, int64_t* code)
{
    constexpr int32_t kTOKENS = kWARPS * kTABLE_TOKENS;
    constexpr auto kLANES = static_cast<int32_t>(kWARP_SIZE);
    TRTC_DYNAMIC_SHARED(float, levels); // [kLEVELS or K][kLANES]
    auto const lane = static_cast<int32_t>(threadIdx.x % kWARP_SIZE);
    auto const warp = static_cast<int32_t>(threadIdx.x / kWARP_SIZE);
    int32_t const width = problem.width;
    int32_t const channel = static_cast<int32_t>(blockIdx.y) * kLANES + lane;
    bool const isWhole = problem.numCodes <= kLEVELS;
    int64_t const begin = static_cast<int64_t>(blockIdx.x) * kTOKENS;
    int64_t const step = static_cast<int64_t>(gridDim.x) * kTOKENS;
    for (int64_t start = begin; start < problem.numTokens; start += step)
    {
        int64_t const first = start + warp * kTABLE_TOKENS;
        float value[kTABLE_TOKENS];
        float best[kTABLE_TOKENS];
        int32_t number[kTABLE_TOKENS];
#pragma unroll
        for (int32_t i = 0; i < kTABLE_TOKENS; ++i)
        {
            bool const isThere = first + i < problem.numTokens && channel < width;
            value[i] = isThere ? toFloat(x[(first + i) * width + channel]) : 0.0F;
            best[i] = -kFAR;
            number[i] = 0;
        }
        for (int32_t from = 0; from < problem.numCodes; from += kLEVELS)
        {
            int32_t const count = min(kLEVELS, problem.numCodes - from);
            if (!isWhole || start == begin)
            {
                __syncthreads(); // nobody reads the levels before any more
                for (int32_t k = warp; k < count; k += kWARPS)
                {
                    int64_t const at = static_cast<int64_t>(from + k) * width + channel;
                    levels[k * kLANES + lane] = channel < width ? loadFloat(table, tableType, at) : 0.0F;
                }
                __syncthreads();
            }
            for (int32_t k = 0; k < count; ++k)
            {
                float const level = levels[k * kLANES + lane];
#pragma unroll
                for (int32_t i = 0; i < kTABLE_TOKENS; ++i)
                {
                    float const distance = fabsf(value[i] - level);
                    bool const nearer = distance < best[i];
                    best[i] = nearer ? distance : best[i];
                    number[i] = nearer ? from + k : number[i];
                }
            }
        }
#pragma unroll
        for (int32_t i = 0; i < kTABLE_TOKENS; ++i)
        {
            if (first + i < problem.numTokens && channel < width)
            {
                code[(first + i) * width + channel] = number[i];
            }
        }
    }
}

//! Rows of digits in shared memory, odd so that neighbouring tokens lie in other banks.
TRTC_HOST_DEVICE constexpr int32_t pitchOf(int32_t channels)
{
    return channels | 1;
}

//! Block (kTHREADS tokens).
template <typename T>
__global__ void __launch_bounds__(kTHREADS, kLIGHT_BLOCKS) encodeDigitsKernel(
    Problem problem, T const* x, void const* codebook, DType codebookType, int64_t* code, FaultSlot fault)
{
    __shared__ DeviceDigits digits;
    __shared__ float reach[kMOST_FSQ_CHANNELS];
    __shared__ float down[kMOST_FSQ_CHANNELS];
    __shared__ float shift[kMOST_FSQ_CHANNELS];
    TRTC_DYNAMIC_SHARED(int32_t, placed);
    auto const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const channels = problem.width;
    int32_t const pitch = pitchOf(channels);
    if (!readDigits(codebook, codebookType, channels, digits, fault))
    {
        return;
    }
    if (thread < channels)
    {
        down[thread] = digits.levels[thread] % 2 == 0 ? 0.5F : 0.0F;
        reach[thread] = static_cast<float>(digits.levels[thread] - 1) * kWIDENING * 0.5F;
        shift[thread] = atanhf(down[thread] / reach[thread]);
    }
    __syncthreads();
    int64_t const first = static_cast<int64_t>(blockIdx.x) * kTHREADS;
    auto const count = static_cast<int32_t>(min(static_cast<int64_t>(kTHREADS), problem.numTokens - first));
    for (int32_t i = thread; i < count * channels; i += kTHREADS)
    {
        int32_t const token = i / channels;
        int32_t const d = i % channels;
        float const squashed = tanhf(toFloat(x[first * channels + i]) + shift[d]);
        float const largest = static_cast<float>(digits.levels[d] - 1);
        float const digit = rintf(squashed * reach[d] - down[d]) + static_cast<float>(digits.levels[d] / 2);
        placed[token * pitch + d] = static_cast<int32_t>(fminf(fmaxf(digit, 0.0F), largest)) * digits.base[d];
    }
    __syncthreads();
    if (thread < count)
    {
        int32_t sum = 0;
        for (int32_t d = 0; d < channels; ++d)
        {
            sum += placed[thread * pitch + d];
        }
        code[first + thread] = sum;
    }
}

//! Block (kTHREADS codes).
template <typename T>
__global__ void __launch_bounds__(kTHREADS, kLIGHT_BLOCKS)
    encodeSignsKernel(int64_t numCodes, int32_t group, T const* x, int64_t* code)
{
    constexpr auto kBITS = static_cast<int32_t>(kWARP_SIZE);
    __shared__ uint32_t words[kTHREADS * kMOST_BITS / kBITS + 1];
    auto const thread = static_cast<int32_t>(threadIdx.x);
    int64_t const first = static_cast<int64_t>(blockIdx.x) * kTHREADS;
    auto const count = static_cast<int32_t>(min(static_cast<int64_t>(kTHREADS), numCodes - first));
    int32_t const span = count * group;
    int32_t const rounded = (span + kBITS - 1) / kBITS * kBITS;
    T const* const from = x + first * group;
#pragma unroll 4
    for (int32_t i = thread; i < rounded; i += kTHREADS) // whole warps
    {
        uint32_t const word = __ballot_sync(kFULL_MASK, i < span && toFloat(from[i]) > 0.0F ? 1 : 0);
        if (i % kBITS == 0)
        {
            words[i / kBITS] = word;
        }
    }
    if (thread == 0)
    {
        words[rounded / kBITS] = 0U;
    }
    __syncthreads();
    if (thread < count)
    {
        int32_t const bit = thread * group;
        uint64_t const both = words[bit / kBITS] | static_cast<uint64_t>(words[bit / kBITS + 1]) << 32U;
        code[first + thread] =
            static_cast<int64_t>((both >> static_cast<uint32_t>(bit % kBITS)) & ((uint64_t{1} << group) - 1U));
    }
}

int64_t blocksOf(int64_t count, int64_t each)
{
    return (count + each - 1) / each;
}

int64_t tileOf(Sizes const& sizes)
{
    return sizes.numTokens <= kFEW_TOKENS ? kLANES_OF_ROW : kTILE;
}

//! Not the number itself, but what it never exceeds, and what does not shrink when there are more tokens. Even, so that
//! what follows has 16 bytes' alignment.
int64_t mostKeys(Sizes const& sizes)
{
    int64_t const spread = std::min(sizes.numTokens * blocksOf(sizes.numCodes, kTILE), kENOUGH_BLOCKS * kTILE);
    return blocksOf(std::max(sizes.numTokens, spread), 2) * 2;
}

bool needsFloats(Sizes const& sizes, DType type)
{
    return sizes.stages > 1 || type != DType::kFLOAT32;
}

template <typename T, int32_t kROWS, bool kWIDE>
cudaError_t launchNearest(Sizes const& sizes, Problem const& problem, int64_t numRanges, float const* tokens,
    T const* words, Key* keys, cudaStream_t stream)
{
    dim3 const grid(
        static_cast<unsigned>(blocksOf(sizes.numTokens, kLANES_OF_ROW * kROWS)), static_cast<unsigned>(numRanges));
    return launchKernel(nearestKernel<T, kROWS, kWIDE>, grid, dim3(kTHREADS), 0, stream, problem, tokens, words, keys);
}

template <typename T>
cudaError_t launchVectors(Sizes const& sizes, void const* x, DType type, T const* codebook, int64_t* code,
    void* workspace, cudaStream_t stream)
{
    auto* const keys = static_cast<Key*>(workspace);
    auto* const floats = reinterpret_cast<float*>(keys + mostKeys(sizes));
    auto const* tokens = static_cast<float const*>(x);
    cudaError_t status = cudaSuccess;
    if (type != DType::kFLOAT32)
    {
        tokens = floats;
        int64_t const count = sizes.numTokens * sizes.width;
        status = dispatchDeviceFloat(type,
            [&](auto tag)
            {
                using Token = typename decltype(tag)::Type;
                auto const blocks = static_cast<unsigned>(std::min(blocksOf(count, kTHREADS), int64_t{65535}));
                return launchKernel(toFloatKernel<Token>, dim3(blocks), dim3(kTHREADS), 0, stream, count,
                    static_cast<Token const*>(x), floats);
            });
    }
    int64_t const codeTiles = blocksOf(sizes.numCodes, kTILE);
    int64_t const tokenTiles = blocksOf(sizes.numTokens, tileOf(sizes));
    int64_t const wanted = std::min(std::max<int64_t>(kENOUGH_BLOCKS / std::max<int64_t>(tokenTiles, 1), 1), codeTiles);
    int64_t const tilesOfRange = blocksOf(codeTiles, wanted);
    int64_t const numRanges = blocksOf(codeTiles, tilesOfRange);
    Problem const problem{sizes.numTokens, static_cast<int32_t>(sizes.width), static_cast<int32_t>(sizes.numCodes),
        static_cast<int32_t>(tilesOfRange)};
    bool const isFew = tileOf(sizes) != kTILE;
    for (int64_t stage = 0; status == cudaSuccess && stage < sizes.stages; ++stage)
    {
        T const* const words = codebook + stage * sizes.numCodes * sizes.width;
        bool const isWide = sizes.width % kLOADED == 0 && reinterpret_cast<uintptr_t>(tokens) % 16U == 0U
            && reinterpret_cast<uintptr_t>(words) % (kLOADED * sizeof(T)) == 0U;
        auto const launch = isFew ? (isWide ? launchNearest<T, 1, true> : launchNearest<T, 1, false>)
                                  : (isWide ? launchNearest<T, kSIDE, true> : launchNearest<T, kSIDE, false>);
        status = launch(sizes, problem, numRanges, tokens, words, keys, stream);
        if (status == cudaSuccess)
        {
            bool const isLast = stage + 1 == sizes.stages;
            status = launchKernel(finishKernel<T>, dim3(static_cast<unsigned>(blocksOf(sizes.numTokens, kWARPS))),
                dim3(kTHREADS), 0, stream, problem, static_cast<int32_t>(numRanges), keys, tokens, words, code + stage,
                sizes.stages, isLast ? nullptr : floats);
        }
        tokens = floats;
    }
    return status;
}

template <typename T>
cudaError_t launchScalars(Sizes const& sizes, T const* x, void const* codebook, DType codebookType, int64_t* code,
    FaultSlot fault, cudaStream_t stream)
{
    Problem const problem{sizes.numTokens, static_cast<int32_t>(sizes.width), static_cast<int32_t>(sizes.numCodes), 0};
    if (sizes.kind == Kind::kTABLE)
    {
        int64_t const chunks = blocksOf(sizes.width, kWARP_SIZE);
        int64_t const shares = std::min(blocksOf(sizes.numTokens, kWARPS * kTABLE_TOKENS),
            std::max<int64_t>(kTABLE_BLOCKS / std::max<int64_t>(chunks, 1), 1));
        auto const bytes = static_cast<size_t>(std::min<int64_t>(sizes.numCodes, kLEVELS)) * kWARP_SIZE * sizeof(float);
        return launchKernel(encodeTableKernel<T>, dim3(static_cast<unsigned>(shares), static_cast<unsigned>(chunks)),
            dim3(kTHREADS), bytes, stream, problem, x, codebook, codebookType, code);
    }
    if (sizes.kind == Kind::kFSQ)
    {
        auto const bytes = static_cast<size_t>(kTHREADS * pitchOf(problem.width)) * sizeof(int32_t);
        return launchKernel(encodeDigitsKernel<T>, dim3(static_cast<unsigned>(blocksOf(sizes.numTokens, kTHREADS))),
            dim3(kTHREADS), bytes, stream, problem, x, codebook, codebookType, code, fault);
    }
    int64_t const numCodes = sizes.numTokens * (sizes.width / sizes.group);
    return launchKernel(encodeSignsKernel<T>, dim3(static_cast<unsigned>(blocksOf(numCodes, kTHREADS))), dim3(kTHREADS),
        0, stream, numCodes, static_cast<int32_t>(sizes.group), x, code);
}
} // namespace

size_t codebookEncodeWorkspaceBytes(Sizes const& sizes, DType type)
{
    if (sizes.kind != Kind::kVECTOR)
    {
        return 0;
    }
    int64_t const floats = needsFloats(sizes, type) ? sizes.numTokens * sizes.width : 0;
    return static_cast<size_t>(mostKeys(sizes)) * sizeof(Key) + static_cast<size_t>(floats) * sizeof(float);
}

cudaError_t launchCodebookEncode(Sizes const& sizes, void const* x, DType type, void const* codebook,
    DType codebookType, int64_t* code, void* workspace, FaultSlot fault, cudaStream_t stream)
{
    return dispatchDeviceFloat(sizes.kind == Kind::kVECTOR ? codebookType : type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            return sizes.kind == Kind::kVECTOR
                ? launchVectors(sizes, x, type, static_cast<T const*>(codebook), code, workspace, stream)
                : launchScalars(sizes, static_cast<T const*>(x), codebook, codebookType, code, fault, stream);
        });
}

} // namespace trtc::codebook_encode
