// A thread reads as many bytes of codes as make 16 bytes of one part of x (4 or 8), for 4 slots that follow each other,
// and writes as much to every part. Scales of a group of tokens are loaded once for the slots that share it.
//
// One pass: the codes in, B * G * L * D values out; scales come from the L1 cache but for their first use.
#include "kv_dequantize/kernel.cuh"

#include "common/kv_rounding.cuh"

namespace trtc::kv_dequantize
{

namespace
{
constexpr int32_t kTHREADS = 256;
constexpr int32_t kBLOCKS_OF_SM = 3; // said to the compiler: left alone it saves registers until it spills
constexpr int32_t kSLOTS = 4;        // of a thread

//! Thread (KV head, slots, bytes).
template <typename T, int32_t kPACK>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) kvDequantizeKernel(kv::DeviceFormat format, int64_t total,
    bool isUniform, uint8_t const* code, void const* scale, void const* minimum, T* x)
{
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kTHREADS + threadIdx.x;
    if (index >= total)
    {
        return;
    }
    int32_t const packs = format.rowBytes / kPACK;
    int32_t const runs = (format.length + kSLOTS - 1) / kSLOTS;
    int32_t const first = static_cast<int32_t>(index % packs) * kPACK;
    int32_t const start = static_cast<int32_t>(index / packs % runs) * kSLOTS;
    int64_t const head = index / packs / runs;
    int64_t const ofHead = format.scalesOf(head);
    int32_t const count = min(kSLOTS, format.length - start);
    Pack<uint8_t, kPACK> bytes[kSLOTS];
#pragma unroll
    for (int32_t t = 0; t < kSLOTS; ++t)
    {
        int64_t const row = head * format.length + start + min(t, count - 1);
        bytes[t] = *reinterpret_cast<Pack<uint8_t, kPACK> const*>(code + row * format.rowBytes + first);
    }
#pragma unroll 1
    for (int32_t part = 0; part < format.parts; ++part)
    {
        int32_t const channel = part * format.rowBytes + first;
        float scales[kPACK] = {};
        float minima[kPACK] = {};
        int32_t line = -1;
#pragma unroll 1 // unrolled, it needs more registers than there are
        for (int32_t t = 0; t < kSLOTS; ++t)
        {
            int32_t const slot = start + min(t, count - 1);
            int32_t const wanted = format.byToken ? slot : slot / format.group;
            if (wanted != line)
            {
                line = wanted;
                int64_t const base = ofHead + static_cast<int64_t>(line) * format.columns;
#pragma unroll
                for (int32_t i = 0; i < kPACK; ++i)
                {
                    if (isUniform && i > 0)
                    {
                        scales[i] = scales[0];
                        minima[i] = minima[0];
                        continue;
                    }
                    int64_t const at = base + (format.byToken ? (channel + i) / format.group : channel + i);
                    scales[i] = format.load(scale, at);
                    minima[i] = format.load(minimum, at);
                }
            }
            Pack<T, kPACK> values;
#pragma unroll
            for (int32_t i = 0; i < kPACK; ++i)
            {
                auto const level = static_cast<float>(codeOf(bytes[0].values[i], part, format.bits));
                float const product = format.rounded(__fmul_rn(level, scales[i]));
                values.values[i] = fromFloat<T>(__fadd_rn(product, minima[i]));
            }
            if (t < count)
            {
                int64_t const row = head * format.length + slot;
                *reinterpret_cast<Pack<T, kPACK>*>(x + row * format.width + channel) = values;
            }
            // The next slot's come to the front, where they have registers; after the last slot all are as before.
            Pack<uint8_t, kPACK> const done = bytes[0];
#pragma unroll
            for (int32_t next = 1; next < kSLOTS; ++next)
            {
                bytes[next - 1] = bytes[next];
            }
            bytes[kSLOTS - 1] = done;
        }
    }
}

template <typename T, int32_t kPACK>
cudaError_t launch(Sizes const& sizes, kv::DeviceFormat const& format, uint8_t const* code, void const* scale,
    void const* minimum, T* x, cudaStream_t stream)
{
    int64_t const runs = (sizes.length() + kSLOTS - 1) / kSLOTS;
    int64_t const total = sizes.heads * runs * (format.rowBytes / kPACK);
    bool const isUniform = format.byToken && format.group % kPACK == 0; // parts are whole packs
    return launchKernel(kvDequantizeKernel<T, kPACK>, dim3(static_cast<unsigned>((total + kTHREADS - 1) / kTHREADS)),
        dim3(kTHREADS), 0, stream, format, total, isUniform, code, scale, minimum, x);
}
} // namespace

cudaError_t launchKvDequantize(Sizes const& sizes, uint8_t const* code, void const* scale, void const* minimum,
    DType scaleType, void* x, DType type, cudaStream_t stream)
{
    bool const rounds = scaleType == DType::kFLOAT16 && type == DType::kFLOAT16;
    kv::DeviceFormat const format = kv::deviceFormat(sizes.format, scaleType, rounds);
    return dispatchDeviceFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            constexpr int32_t kWIDE = static_cast<int32_t>(16U / sizeof(T));
            auto* const to = static_cast<T*>(x);
            bool const isWide = reinterpret_cast<uintptr_t>(code) % kWIDE == 0U && format.rowBytes % kWIDE == 0
                && reinterpret_cast<uintptr_t>(x) % 16U == 0U;
            return isWide ? launch<T, kWIDE>(sizes, format, code, scale, minimum, to, stream)
                          : launch<T, 1>(sizes, format, code, scale, minimum, to, stream);
        });
}

} // namespace trtc::kv_dequantize
