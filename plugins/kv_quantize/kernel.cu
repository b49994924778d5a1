// Groups of tokens: a block has a group and some columns of bytes; its threads are columns times slots. Each part of
// the channels is reduced to least and largest values in registers, then in shared memory; then the codes are made, and
// the values, which are read a second time, come from the caches (32 tokens of 64 columns are 8 KiB of float16). Groups
// of channels: a warp has a token; as many lanes as a group needs reduce it by shuffles, several groups at a time.
//
// B * G * L * D values in, the codes and scales out; 4 values or 16 bytes of an access where sizes and addresses allow.
#include "kv_quantize/kernel.cuh"

#include <algorithm>

#include "common/kv_rounding.cuh"

namespace trtc::kv_quantize
{

namespace
{
constexpr int32_t kTHREADS = 256;
constexpr int32_t kWARPS = kTHREADS / static_cast<int32_t>(kWARP_SIZE);
constexpr int32_t kBLOCKS_OF_SM = 4;
constexpr int32_t kMOST_PARTS = 4;
constexpr int32_t kWIDE = 4;         // bytes of codes that a thread makes at a time
constexpr int32_t kLONG_GROUP = 512; // tokens from which on a block has few columns and many slots
constexpr int32_t kFEW_COLUMNS = 8;

//! The code of one value, as SPEC rounds it.
__device__ inline uint32_t encode(kv::DeviceFormat const& format, float value, float scale, float minimum)
{
    if (scale == 0.0F)
    {
        return 0U;
    }
    float const above = format.rounded(__fsub_rn(value, minimum));
    float const level = format.rounded(__fdiv_rn(above, scale));
    return static_cast<uint32_t>(roundHalfEven(clamp(level, 0.0F, static_cast<float>(largestCode(format.bits)))));
}

//! The step of a group, before it is stored.
__device__ inline float stepOf(kv::DeviceFormat const& format, float low, float high)
{
    float const range = format.rounded(__fsub_rn(high, low));
    return format.rounded(__fdiv_rn(range, static_cast<float>(largestCode(format.bits))));
}

//! Block (KV head and group of tokens, columns). `lanes` threads, a power of two, have kPACK columns each.
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) kvQuantizeTokensKernel(
    kv::DeviceFormat format, int32_t lanes, T const* x, uint8_t* code, void* scale, void* minimum)
{
    using Values = Pack<T, kPACK>;
    __shared__ float lows[kTHREADS][kPACK];
    __shared__ float highs[kTHREADS][kPACK];
    __shared__ float scales[kMOST_PARTS][kWARP_SIZE][kPACK]; // of the first `lanes` threads
    __shared__ float minima[kMOST_PARTS][kWARP_SIZE][kPACK];
    int32_t const thread = static_cast<int32_t>(threadIdx.x);
    int32_t const lane = thread % lanes;
    int32_t const row = thread / lanes;
    int32_t const rows = kTHREADS / lanes;
    int32_t const groups = format.length / format.group;
    int64_t const head = blockIdx.x / static_cast<uint32_t>(groups);
    int32_t const group = static_cast<int32_t>(blockIdx.x % static_cast<uint32_t>(groups));
    int32_t const first = (static_cast<int32_t>(blockIdx.y) * lanes + lane) * kPACK;
    bool const isThere = first < format.rowBytes;
    int64_t const start = head * format.length + static_cast<int64_t>(group) * format.group;
    int64_t const ofScales = head * format.numScales + static_cast<int64_t>(group) * format.columns;
    for (int32_t part = 0; part < format.parts; ++part)
    {
        float low[kPACK];
        float high[kPACK];
#pragma unroll
        for (int32_t i = 0; i < kPACK; ++i)
        {
            low[i] = INFINITY;
            high[i] = -INFINITY;
        }
        T const* const from = x + start * format.width + part * format.rowBytes + first;
#pragma unroll 4
        for (int32_t token = row; token < (isThere ? format.group : 0); token += rows)
        {
            Values const values = *reinterpret_cast<Values const*>(from + static_cast<int64_t>(token) * format.width);
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                low[i] = fminf(low[i], toFloat(values.values[i]));
                high[i] = fmaxf(high[i], toFloat(values.values[i]));
            }
        }
#pragma unroll
        for (int32_t i = 0; i < kPACK; ++i)
        {
            lows[thread][i] = low[i];
            highs[thread][i] = high[i];
        }
        for (int32_t half = kTHREADS / 2; half >= lanes; half /= 2)
        {
            __syncthreads();
            if (thread < half)
            {
#pragma unroll
                for (int32_t i = 0; i < kPACK; ++i)
                {
                    lows[thread][i] = fminf(lows[thread][i], lows[thread + half][i]);
                    highs[thread][i] = fmaxf(highs[thread][i], highs[thread + half][i]);
                }
            }
        }
        if (row == 0 && isThere)
        {
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                int64_t const at = ofScales + part * format.rowBytes + first + i;
                scales[part][lane][i] = format.store(scale, at, stepOf(format, lows[thread][i], highs[thread][i]));
                minima[part][lane][i] = format.store(minimum, at, lows[thread][i]);
            }
        }
        __syncthreads();
    }
    for (int32_t token = row; token < (isThere ? format.group : 0); token += rows)
    {
        Pack<uint8_t, kPACK> bytes{};
        for (int32_t part = 0; part < format.parts; ++part)
        {
            int64_t const at = (start + token) * format.width + part * format.rowBytes + first;
            Values const values = *reinterpret_cast<Values const*>(x + at);
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                uint32_t const one =
                    encode(format, toFloat(values.values[i]), scales[part][lane][i], minima[part][lane][i]);
                bytes.values[i] = static_cast<uint8_t>(bytes.values[i] | placed(one, part, format.bits));
            }
        }
        *reinterpret_cast<Pack<uint8_t, kPACK>*>(code + (start + token) * format.rowBytes + first) = bytes;
    }
}

//! Warp (token). `lanes` of a warp, a power of two, reduce a group together.
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) kvQuantizeChannelsKernel(
    kv::DeviceFormat format, int32_t lanes, int64_t tokens, T const* x, uint8_t* code, void* scale, void* minimum)
{
    using Values = Pack<T, kPACK>;
    TRTC_DYNAMIC_SHARED(float, shared); // scales and minima of each warp's token
    int32_t const warp = static_cast<int32_t>(threadIdx.x / kWARP_SIZE);
    int32_t const lane = static_cast<int32_t>(threadIdx.x % kWARP_SIZE);
    int64_t const token = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWARP_SIZE) + warp;
    if (token >= tokens)
    {
        return; // a whole warp, and there are no barriers of the block
    }
    float* const scales = shared + warp * 2 * format.columns;
    float* const minima = scales + format.columns;
    T const* const from = x + token * format.width;
    int32_t const atOnce = static_cast<int32_t>(kWARP_SIZE) / lanes;
    for (int32_t start = 0; start < format.columns; start += atOnce)
    {
        int32_t const group = start + lane / lanes;
        float low = INFINITY;
        float high = -INFINITY;
        for (int32_t i = lane % lanes; i < (group < format.columns ? format.group : 0); i += lanes)
        {
            float const value = toFloat(from[group * format.group + i]);
            low = fminf(low, value);
            high = fmaxf(high, value);
        }
        for (int32_t offset = lanes / 2; offset > 0; offset /= 2)
        {
            low = fminf(low, __shfl_xor_sync(kFULL_MASK, low, offset));
            high = fmaxf(high, __shfl_xor_sync(kFULL_MASK, high, offset));
        }
        if (lane % lanes == 0 && group < format.columns)
        {
            int64_t const at = token * format.columns + group;
            scales[group] = format.store(scale, at, stepOf(format, low, high));
            minima[group] = format.store(minimum, at, low);
        }
    }
    __syncwarp();
    for (int32_t first = lane * kPACK; first < format.rowBytes; first += static_cast<int32_t>(kWARP_SIZE) * kPACK)
    {
        Pack<uint8_t, kPACK> bytes{};
        for (int32_t part = 0; part < format.parts; ++part)
        {
            int32_t const channel = part * format.rowBytes + first;
            Values const values = *reinterpret_cast<Values const*>(from + channel);
            int32_t group = channel / format.group;
            int32_t end = (group + 1) * format.group - channel; // of the group, counted from here
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                if (i == end)
                {
                    ++group;
                    end += format.group;
                }
                uint32_t const one = encode(format, toFloat(values.values[i]), scales[group], minima[group]);
                bytes.values[i] = static_cast<uint8_t>(bytes.values[i] | placed(one, part, format.bits));
            }
        }
        *reinterpret_cast<Pack<uint8_t, kPACK>*>(code + token * format.rowBytes + first) = bytes;
    }
}

//! The power of two next below or at `value`, at least 1 and at most `most`.
int32_t powerBelow(int64_t value, int32_t most)
{
    int32_t power = 1;
    while (power < most && 2 * power <= value)
    {
        power *= 2;
    }
    return power;
}

template <typename T, int32_t kPACK>
cudaError_t launch(Sizes const& sizes, kv::DeviceFormat const& format, T const* x, uint8_t* code, void* scale,
    void* minimum, cudaStream_t stream)
{
    if (format.byToken)
    {
        int64_t const tokens = sizes.heads * sizes.length();
        if (format.columns == 0)
        {
            return cudaSuccess; // tokens without a channel have no groups
        }
        size_t const bytesOfWarp = 2U * sizeof(float) * static_cast<size_t>(format.columns);
        auto const warps = std::min<int64_t>(static_cast<int64_t>(kPLAIN_SHARED_BYTES / bytesOfWarp), kWARPS);
        int32_t const lanes = powerBelow(format.group / 4, static_cast<int32_t>(kWARP_SIZE));
        return launchKernel(kvQuantizeChannelsKernel<T, kPACK>,
            dim3(static_cast<unsigned>((tokens + warps - 1) / warps)), dim3(static_cast<unsigned>(warps) * kWARP_SIZE),
            static_cast<size_t>(warps) * bytesOfWarp, stream, format, lanes, tokens, x, code, scale, minimum);
    }
    int32_t const packs = format.rowBytes / kPACK;
    int32_t const most = format.group >= kLONG_GROUP ? kFEW_COLUMNS : static_cast<int32_t>(kWARP_SIZE);
    int32_t const lanes = powerBelow(packs, most);
    dim3 const grid(static_cast<unsigned>(sizes.heads * (sizes.length() / format.group)),
        static_cast<unsigned>((packs + lanes - 1) / lanes));
    return launchKernel(
        kvQuantizeTokensKernel<T, kPACK>, grid, dim3(kTHREADS), 0, stream, format, lanes, x, code, scale, minimum);
}
} // namespace

cudaError_t launchKvQuantize(Sizes const& sizes, void const* x, DType type, uint8_t* code, void* scale, void* minimum,
    DType scaleType, cudaStream_t stream)
{
    bool const rounds = scaleType == DType::kFLOAT16 && type == DType::kFLOAT16;
    kv::DeviceFormat const format = kv::deviceFormat(sizes.format, scaleType, rounds);
    if (format.columns > kMOST_GROUPS && format.byToken)
    {
        return cudaErrorInvalidValue;
    }
    return dispatchDeviceFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            auto const* const from = static_cast<T const*>(x);
            bool const isWide = reinterpret_cast<uintptr_t>(x) % (kWIDE * sizeof(T)) == 0U
                && reinterpret_cast<uintptr_t>(code) % kWIDE == 0U && format.rowBytes % kWIDE == 0;
            return isWide ? launch<T, kWIDE>(sizes, format, from, code, scale, minimum, stream)
                          : launch<T, 1>(sizes, format, from, code, scale, minimum, stream);
        });
}

} // namespace trtc::kv_quantize
