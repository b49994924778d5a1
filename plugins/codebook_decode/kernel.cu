// Vectors: a group of 1 to 256 threads makes one token, 16 bytes at an access where D and the addresses allow; the rows
// of all stages are summed in registers in float32, the first one first. Reads S rows of D values and S numbers a
// token, and writes it once.
//
// Tables, FSQ, signs: values lie one after the other whatever their token, and a thread makes as many as 16 bytes hold.
// A block takes whole tokens, so that it divides by their width only inside of itself, in 32 bits, once an access.
// Reads the codes once, coalesced, writes y once; a table's levels are in the caches.
#include "codebook_decode/kernel.cuh"

#include <algorithm>

#include "codebook_encode/codebook.cuh"
#include "common/cuda_device.cuh"

namespace trtc::codebook_decode
{

namespace
{
using codebook_encode::DeviceDigits;

constexpr int32_t kTHREADS = 256;
constexpr int32_t kBLOCKS_OF_SM = 4;    // said to the compiler: left alone it saves registers until it spills
constexpr int64_t kBLOCK_VALUES = 4096; // about what a block makes
constexpr int64_t kTOKEN_MULTIPLE = 8;  // tokens of a block: then its values start at whole accesses

struct Problem
{
    int64_t numTokens;
    int32_t width;
    int32_t stages;
    int32_t numCodes;
    int32_t group;
    int32_t share; //!< threads of a token (vectors, a power of two), or tokens of a block
};

__device__ inline bool isCode(int64_t code, int64_t numCodes)
{
    return code >= 0 && code < numCodes;
}

//! Block (tokens).
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM)
    sumStagesKernel(Problem problem, int64_t const* code, T const* codebook, T* y, FaultSlot fault)
{
    using Group = Pack<T, kPACK>;
    auto const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const lanes = problem.share;
    int64_t const token = static_cast<int64_t>(blockIdx.x) * (kTHREADS / lanes) + thread / lanes;
    if (token >= problem.numTokens)
    {
        return;
    }
    int64_t const* const mine = code + token * problem.stages;
    bool isGood = true;
    for (int32_t stage = 0; stage < problem.stages; ++stage)
    {
        isGood = isGood && isCode(mine[stage], problem.numCodes);
    }
    if (!isGood)
    {
        report(fault, Fault::kCODE_RANGE);
        return;
    }
    int64_t const stageValues = static_cast<int64_t>(problem.numCodes) * problem.width;
    for (int32_t d = thread % lanes * kPACK; d < problem.width; d += lanes * kPACK)
    {
        float sum[kPACK] = {};
#pragma unroll 4
        for (int32_t stage = 0; stage < problem.stages; ++stage)
        {
            T const* const word = codebook + stage * stageValues + mine[stage] * problem.width + d;
            Group const group = *reinterpret_cast<Group const*>(word);
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                sum[i] += toFloat(group.values[i]);
            }
        }
        Group result;
#pragma unroll
        for (int32_t i = 0; i < kPACK; ++i)
        {
            result.values[i] = fromFloat<T>(sum[i]);
        }
        *reinterpret_cast<Group*>(y + token * problem.width + d) = result;
    }
}

//! The values of this block's tokens. valueAt(i, j, value) sets value j of the i-th row of `period` values, or is
//! false.
template <typename T, int32_t kPACK, typename ValueAt>
__device__ void writeValues(Problem const& problem, int32_t period, T* y, FaultSlot fault, ValueAt const& valueAt)
{
    using Group = Pack<T, kPACK>;
    int64_t const first = static_cast<int64_t>(blockIdx.x) * problem.share;
    int64_t const left = problem.numTokens - first;
    int32_t const count = static_cast<int32_t>(left < problem.share ? left : problem.share) * problem.width;
    T* const to = y + first * problem.width;
    for (int32_t start = static_cast<int32_t>(threadIdx.x) * kPACK; start < count; start += kTHREADS * kPACK)
    {
        int32_t row = start / period;
        int32_t column = start % period;
        Group group{};
        bool isGood = true;
#pragma unroll
        for (int32_t i = 0; i < kPACK; ++i)
        {
            if (start + i < count)
            {
                isGood = valueAt(row, column, group.values[i]) && isGood;
            }
            ++column;
            row += column == period ? 1 : 0;
            column = column == period ? 0 : column;
        }
        if (!isGood)
        {
            report(fault, Fault::kCODE_RANGE);
        }
        else if (start + kPACK <= count)
        {
            *reinterpret_cast<Group*>(to + start) = group;
        }
        else
        {
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                if (start + i < count)
                {
                    to[start + i] = group.values[i];
                }
            }
        }
    }
}

//! Block (share of the tokens).
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM)
    decodeTableKernel(Problem problem, int64_t const* code, T const* table, T* y, FaultSlot fault)
{
    int64_t const* const mine = code + static_cast<int64_t>(blockIdx.x) * problem.share * problem.width;
    writeValues<T, kPACK>(problem, problem.width, y, fault,
        [&](int32_t token, int32_t channel, T& value)
        {
            int64_t const number = mine[token * problem.width + channel];
            bool const isGood = isCode(number, problem.numCodes);
            value = table[(isGood ? number : 0) * problem.width + channel];
            return isGood;
        });
}

//! Block (share of the tokens).
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM)
    decodeDigitsKernel(Problem problem, int64_t const* code, T const* codebook, DType type, T* y, FaultSlot fault)
{
    __shared__ DeviceDigits digits;
    if (!codebook_encode::readDigits(codebook, type, problem.width, digits, fault))
    {
        return;
    }
    int64_t const* const mine = code + static_cast<int64_t>(blockIdx.x) * problem.share;
    writeValues<T, kPACK>(problem, problem.width, y, fault,
        [&](int32_t token, int32_t channel, T& value)
        {
            int64_t const number = mine[token];
            auto const levels = static_cast<uint32_t>(digits.levels[channel]);
            auto const above = static_cast<uint32_t>(number) / static_cast<uint32_t>(digits.base[channel]);
            auto const middle = static_cast<int32_t>(levels / 2U);
            auto const centred = static_cast<int32_t>(above % levels) - middle;
            value = fromFloat<T>(static_cast<float>(centred) / static_cast<float>(middle));
            return isCode(number, digits.numCodes);
        });
}

//! Block (share of the tokens).
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM)
    decodeSignsKernel(Problem problem, int64_t const* code, T* y, FaultSlot fault)
{
    int64_t const* const mine =
        code + static_cast<int64_t>(blockIdx.x) * problem.share * (problem.width / problem.group);
    int64_t const numCodes = int64_t{1} << problem.group;
    writeValues<T, kPACK>(problem, problem.group, y, fault,
        [&](int32_t row, int32_t bit, T& value)
        {
            int64_t const number = mine[row];
            value = fromFloat<T>((number >> bit & 1) != 0 ? 1.0F : -1.0F);
            return isCode(number, numCodes);
        });
}

template <typename T, int32_t kPACK>
cudaError_t launchPacked(Sizes const& sizes, Problem problem, int64_t const* code, T const* codebook, DType type, T* y,
    FaultSlot fault, cudaStream_t stream)
{
    int64_t tokensOfBlock = 0;
    if (sizes.kind == Kind::kVECTOR)
    {
        while (problem.share < kTHREADS && problem.share * kPACK < problem.width)
        {
            problem.share *= 2;
        }
        tokensOfBlock = kTHREADS / problem.share;
    }
    else
    {
        int64_t const many = kBLOCK_VALUES / std::max<int64_t>(sizes.width, 1) + 1;
        tokensOfBlock = (many + kTOKEN_MULTIPLE - 1) / kTOKEN_MULTIPLE * kTOKEN_MULTIPLE;
        problem.share = static_cast<int32_t>(tokensOfBlock);
    }
    dim3 const grid(static_cast<unsigned>((sizes.numTokens + tokensOfBlock - 1) / tokensOfBlock));
    switch (sizes.kind)
    {
    case Kind::kVECTOR:
        return launchKernel(
            sumStagesKernel<T, kPACK>, grid, dim3(kTHREADS), 0, stream, problem, code, codebook, y, fault);
    case Kind::kTABLE:
        return launchKernel(
            decodeTableKernel<T, kPACK>, grid, dim3(kTHREADS), 0, stream, problem, code, codebook, y, fault);
    case Kind::kFSQ:
        return launchKernel(
            decodeDigitsKernel<T, kPACK>, grid, dim3(kTHREADS), 0, stream, problem, code, codebook, type, y, fault);
    case Kind::kSIGN:
        return launchKernel(decodeSignsKernel<T, kPACK>, grid, dim3(kTHREADS), 0, stream, problem, code, y, fault);
    }
    return cudaErrorInvalidValue;
}
} // namespace

cudaError_t launchCodebookDecode(Sizes const& sizes, int64_t const* code, void const* codebook, DType type, void* y,
    FaultSlot fault, cudaStream_t stream)
{
    Problem const problem{sizes.numTokens, static_cast<int32_t>(sizes.width), static_cast<int32_t>(sizes.stages),
        static_cast<int32_t>(sizes.numCodes), static_cast<int32_t>(sizes.group), 1};
    return dispatchDeviceFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            constexpr int32_t kWIDE = static_cast<int32_t>(16U / sizeof(T));
            auto const* const from = static_cast<T const*>(codebook);
            auto* const to = static_cast<T*>(y);
            // Only vectors are read from the codebook, and start at a row: elsewhere the address of y alone counts.
            bool const isVector = sizes.kind == Kind::kVECTOR;
            bool const isWide = isVector ? packOf<T>(codebook, y, sizes.width) == kWIDE : packOf<T>(y, y, 0) == kWIDE;
            return isWide ? launchPacked<T, kWIDE>(sizes, problem, code, from, type, to, fault, stream)
                          : launchPacked<T, 1>(sizes, problem, code, from, type, to, fault, stream);
        });
}

} // namespace trtc::codebook_decode
