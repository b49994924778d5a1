// Checks of the emulator: kernels whose results are known, and broken kernels that it must catch. Prints one JSON line
// for each check; exit code 1 if one failed.

#include "common/cuda_common.cuh"
#include "common/half.h"

#include <chrono>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

namespace
{

using trtc::launchKernel;
using trtc::emulation::Order;

constexpr unsigned kTHREADS = 256U;

// -------------------------------------------------------------------------------------------------- sound kernels

__device__ float warpSum(float value)
{
    for (int offset = 16; offset > 0; offset /= 2)
    {
        value += __shfl_down_sync(trtc::kFULL_MASK, value, static_cast<unsigned>(offset));
    }
    return value;
}

template <typename T>
__global__ void __launch_bounds__(kTHREADS) sumKernel(T const* __restrict__ in, float* __restrict__ out, int64_t count)
{
    __shared__ float partial[kTHREADS / 32];
    float sum = 0.0F;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
    {
        sum += static_cast<float>(in[static_cast<int64_t>(blockIdx.x) * count + i]);
    }
    sum = warpSum(sum);
    if (threadIdx.x % 32U == 0U)
    {
        partial[threadIdx.x / 32U] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32U)
    {
        sum = warpSum(threadIdx.x < kTHREADS / 32U ? partial[threadIdx.x] : 0.0F);
        if (threadIdx.x == 0U)
        {
            out[blockIdx.x] = sum;
        }
    }
}

// Inclusive sums by Hillis and Steele in dynamic shared memory; `gap` leaves out the barrier that separates the read
// from the write.
__global__ void scanKernel(unsigned const* in, unsigned* out, bool gap)
{
    TRTC_DYNAMIC_SHARED(unsigned, values);
    unsigned const t = threadIdx.x;
    values[t] = in[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (unsigned offset = 1; offset < blockDim.x; offset *= 2U)
    {
        unsigned const left = t >= offset ? values[t - offset] : 0U;
        if (!gap)
        {
            __syncthreads();
        }
        values[t] += left;
        __syncthreads();
    }
    out[blockIdx.x * blockDim.x + t] = values[t];
}

__global__ void shuffleKernel(int* out)
{
    int const lane = static_cast<int>(threadIdx.x % 32U);
    int const value = 100 * static_cast<int>(threadIdx.x / 32U) + lane;
    int* const row = out + 16U * (blockIdx.x * blockDim.x + threadIdx.x);
    row[0] = __shfl_sync(trtc::kFULL_MASK, value, (lane + 5) % 32);
    row[1] = __shfl_up_sync(trtc::kFULL_MASK, value, 3U);
    row[2] = __shfl_down_sync(trtc::kFULL_MASK, value, 7U);
    row[3] = __shfl_xor_sync(trtc::kFULL_MASK, value, 9);
    row[4] = __shfl_sync(trtc::kFULL_MASK, value, 11, 8);
    row[5] = __shfl_up_sync(trtc::kFULL_MASK, value, 3U, 8);
    row[6] = __shfl_down_sync(trtc::kFULL_MASK, value, 3U, 8);
    row[7] = __shfl_xor_sync(trtc::kFULL_MASK, value, 5, 4);
    row[8] = static_cast<int>(__ballot_sync(trtc::kFULL_MASK, lane % 3 == 0 ? 1 : 0));
    row[9] = __any_sync(trtc::kFULL_MASK, value == 107 ? 1 : 0);
    row[10] = __all_sync(trtc::kFULL_MASK, value < 200 ? 1 : 0);
    row[11] = static_cast<int>(__match_any_sync(trtc::kFULL_MASK, lane / 4));
    row[12] = __reduce_add_sync(trtc::kFULL_MASK, lane - 20);
    row[13] = __reduce_min_sync(trtc::kFULL_MASK, lane - 20);
    row[14] = __reduce_max_sync(trtc::kFULL_MASK, lane - 20);
    // The two halves of a warp go different ways.
    row[15] = lane < 16 ? __shfl_xor_sync(0x0000ffffU, value, 1) : __shfl_xor_sync(0xffff0000U, value, 2);
}

__global__ void wideShuffleKernel(double* doubles, long long* longs, __half* halves)
{
    unsigned const t = threadIdx.x;
    doubles[t] = __shfl_xor_sync(trtc::kFULL_MASK, 1.0 / (1.0 + t), 1);
    longs[t] = __shfl_up_sync(trtc::kFULL_MASK, (1LL << 40) + t, 1U);
    halves[t] = __shfl_down_sync(trtc::kFULL_MASK, __float2half(static_cast<float>(t) / 4.0F), 1U);
}

__global__ void voteKernel(int* out)
{
    int const t = static_cast<int>(threadIdx.x);
    out[4 * t] = __syncthreads_or(t == 40 ? 1 : 0);
    out[4 * t + 1] = __syncthreads_and(t != 40 ? 1 : 0);
    out[4 * t + 2] = __syncthreads_count(t % 5 == 0 ? 1 : 0);
    out[4 * t + 3] = __syncthreads_or(0);
}

__global__ void atomicKernel(int* ints, unsigned* unsigneds, unsigned long long* longs, float* floats)
{
    unsigned const id = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&ints[0], static_cast<int>(id));
    atomicMax(&ints[1], static_cast<int>(id) - 5);
    atomicMin(&ints[2], 5 - static_cast<int>(id));
    atomicCAS(&ints[3], 0, 77);
    atomicExch(&ints[4], 4);
    atomicAdd(&unsigneds[0], 3U);
    atomicOr(&unsigneds[1], 1U << (id % 32U));
    atomicMax(&longs[0], static_cast<unsigned long long>(id) << 33U);
    atomicAdd(&longs[1], 1ULL);
    atomicAdd(&floats[0], 0.5F);
}

// The last block to finish adds up what the others wrote.
__global__ void lastBlockKernel(float* partial, unsigned* finished, float* out)
{
    __shared__ bool isLast;
    partial[blockIdx.x] = static_cast<float>(blockIdx.x + 1U);
    __threadfence();
    if (threadIdx.x == 0U)
    {
        isLast = atomicAdd(finished, 1U) == gridDim.x - 1U;
    }
    __syncthreads();
    if (isLast && threadIdx.x == 0U)
    {
        for (unsigned b = 0; b < gridDim.x; ++b)
        {
            *out += partial[b];
        }
    }
}

__global__ void indexKernel(unsigned* out)
{
    unsigned const block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned const thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000U + thread;
}

__global__ void sharedBytesKernel(unsigned char* out, int last)
{
    TRTC_DYNAMIC_SHARED(unsigned char, bytes);
    out[threadIdx.x] = bytes[threadIdx.x];
    bytes[last] = 1;
}

// ------------------------------------------------------------------------------------------------- broken kernels

__global__ void neighbourKernel(int* out)
{
    __shared__ int values[kTHREADS];
    values[threadIdx.x] = static_cast<int>(threadIdx.x);
    // No barrier here.
    out[threadIdx.x] = values[(threadIdx.x + 1U) % blockDim.x];
    __syncthreads();
    values[threadIdx.x] = -1;
}

__global__ void returnsEarlyKernel()
{
    if (threadIdx.x == 7U)
    {
        return;
    }
    __syncthreads();
}

__global__ void twoBarriersKernel()
{
    if (threadIdx.x < 16U)
    {
        __syncthreads();
    }
    else
    {
        __syncthreads();
    }
}

__global__ void barrierAgainstShuffleKernel(int* out)
{
    if (threadIdx.x < 32U)
    {
        out[threadIdx.x] = __shfl_xor_sync(trtc::kFULL_MASK, 1, 1);
        __syncthreads();
    }
    else
    {
        __syncthreads();
        out[threadIdx.x] = __shfl_xor_sync(0x0000ffffU << (threadIdx.x & 16U), 1, 1);
        __syncthreads();
    }
}

__global__ void halfWarpShufflesKernel(int* out)
{
    if (threadIdx.x < 16U)
    {
        out[threadIdx.x] = __shfl_xor_sync(trtc::kFULL_MASK, 1, 1);
    }
}

__global__ void wrongMaskKernel(int* out)
{
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffU, 1, 1);
}

__global__ void readsOutsideMaskKernel(int* out)
{
    if (threadIdx.x < 16U)
    {
        out[threadIdx.x] = __shfl_down_sync(0x0000ffffU, 1, 8U);
    }
}

__global__ void trapKernel()
{
    if (threadIdx.x == 3U)
    {
        __trap();
    }
}

__global__ void staticOverrunKernel(int* out, unsigned last)
{
    __shared__ int values[kTHREADS];
    values[threadIdx.x + last] = 1;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

// --------------------------------------------------------------------------------------------------------- checks

int gFailures = 0;

void report(char const* name, bool ok, std::string detail = "")
{
    std::replace(detail.begin(), detail.end(), '"', '\'');
    std::printf("{\"check\": \"%s\", \"ok\": %s, \"detail\": \"%s\"}\n", name, ok ? "true" : "false", detail.c_str());
    gFailures += ok ? 0 : 1;
}

void setOrder(Order order, uint64_t seed = 0U)
{
    trtc::emulation::settings().order = order;
    trtc::emulation::settings().seed = seed;
}

std::string orderName(Order order)
{
    return order == Order::kASCENDING ? "ascending" : (order == Order::kDESCENDING ? "descending" : "random");
}

void checkFault(char const* name, cudaError_t status, std::vector<std::string> const& parts)
{
    std::string const text = trtc::emulation::lastFault();
    bool ok = status == cudaErrorLaunchFailure;
    for (auto const& part : parts)
    {
        ok = ok && text.find(part) != std::string::npos;
    }
    report(name, ok, text);
    trtc::emulation::clearFault();
}

void checkSums()
{
    int64_t const rows = 100;
    int64_t const count = 1000;
    std::vector<float> in(static_cast<size_t>(rows * count));
    std::vector<__half> halves(in.size());
    for (size_t i = 0; i < in.size(); ++i)
    {
        in[i] = static_cast<float>(i % 97U) - 40.0F;
        halves[i] = __float2half(in[i]);
    }
    std::vector<float> out(static_cast<size_t>(rows));
    std::vector<float> halfOut(out.size());
    auto const begin = std::chrono::steady_clock::now();
    bool ok = launchKernel(sumKernel<float>, dim3(100), dim3(kTHREADS), 0, nullptr, in.data(), out.data(), count)
        == cudaSuccess;
    auto const end = std::chrono::steady_clock::now();
    ok = ok
        && launchKernel(sumKernel<__half>, dim3(100), dim3(kTHREADS), 0, nullptr, halves.data(), halfOut.data(), count)
            == cudaSuccess;
    for (size_t row = 0; row < out.size(); ++row)
    {
        float const wanted = std::accumulate(in.begin() + static_cast<ptrdiff_t>(row) * count,
            in.begin() + static_cast<ptrdiff_t>(row + 1U) * count, 0.0F);
        ok = ok && out[row] == wanted && halfOut[row] == wanted;
    }
    report("sum", ok);
    double const ms = std::chrono::duration<double, std::milli>(end - begin).count();
    auto const& counters = trtc::emulation::counters();
    report("counters",
        counters.blocks == 100U && counters.barriers == 100U && counters.warpOperations == 100U * 9U * 5U,
        std::to_string(counters.blocks) + " blocks, " + std::to_string(counters.barriers) + " barriers, "
            + std::to_string(counters.warpOperations) + " warp operations");
    report("fast", ms < 1000.0, "100 blocks of 256 threads in " + std::to_string(ms) + " ms");
}

std::vector<unsigned> scan(bool gap)
{
    std::vector<unsigned> in(3U * kTHREADS);
    std::iota(in.begin(), in.end(), 1);
    std::vector<unsigned> out(in.size());
    cudaError_t const status = launchKernel(
        scanKernel, dim3(3), dim3(kTHREADS), kTHREADS * sizeof(unsigned), nullptr, in.data(), out.data(), gap);
    return status == cudaSuccess ? out : std::vector<unsigned>{};
}

void checkScan()
{
    bool ok = true;
    std::vector<unsigned> const out = scan(false);
    for (unsigned b = 0; b < 3U; ++b)
    {
        unsigned total = 0U;
        for (unsigned t = 0; t < kTHREADS; ++t)
        {
            total += b * kTHREADS + t + 1U;
            ok = ok && out.size() == 3U * kTHREADS && out[b * kTHREADS + t] == total;
        }
    }
    report("scan", ok);
}

void checkShuffles()
{
    std::vector<int> out(2U * 64U * 16U);
    bool ok = launchKernel(shuffleKernel, 2, 64, 0, nullptr, out.data()) == cudaSuccess;
    std::string wrong;
    for (int id = 0; id < 128; ++id)
    {
        int const lane = id % 32;
        int const base = 100 * (id % 64 / 32);
        int const part = lane / 8 * 8;
        bool const first = base == 0;
        int const xorFour = (lane ^ 5) / 4 > lane / 4 ? lane : lane ^ 5;
        int const wanted[16] = {base + (lane + 5) % 32, base + (lane >= 3 ? lane - 3 : lane),
            base + (lane < 25 ? lane + 7 : lane), base + (lane ^ 9), base + part + 3,
            base + (lane - 3 >= part ? lane - 3 : lane), base + (lane + 3 < part + 8 ? lane + 3 : lane), base + xorFour,
            0x49249249, first ? 0 : 1, 1, static_cast<int>(0xfU << (lane / 4 * 4)), -144, -20, 11,
            base + (lane < 16 ? lane ^ 1 : lane ^ 2)};
        for (int i = 0; i < 16; ++i)
        {
            if (out[static_cast<size_t>(id * 16 + i)] != wanted[i])
            {
                ok = false;
                wrong = "thread " + std::to_string(id) + ", operation " + std::to_string(i) + ": "
                    + std::to_string(out[static_cast<size_t>(id * 16 + i)]) + " instead of "
                    + std::to_string(wanted[i]);
            }
        }
    }
    report("shuffles", ok, wrong);

    double doubles[32];
    long long longs[32];
    __half halves[32];
    ok = launchKernel(wideShuffleKernel, 1, 32, 0, nullptr, doubles, longs, halves) == cudaSuccess;
    for (unsigned t = 0; t < 32U; ++t)
    {
        ok = ok && doubles[t] == 1.0 / (1.0 + (t ^ 1U));
        ok = ok && longs[t] == (1LL << 40) + (t == 0U ? 0U : t - 1U);
        ok = ok && __half2float(halves[t]) == static_cast<float>(t == 31U ? 31U : t + 1U) / 4.0F;
    }
    report("shuffles of wide and narrow types", ok);
}

void checkVotes()
{
    std::vector<int> out(4U * 64U);
    bool ok = launchKernel(voteKernel, 1, 64, 0, nullptr, out.data()) == cudaSuccess;
    for (unsigned t = 0; t < 64U; ++t)
    {
        ok = ok && out[4U * t] == 1 && out[4U * t + 1U] == 0 && out[4U * t + 2U] == 13 && out[4U * t + 3U] == 0;
    }
    report("votes of a block", ok);
}

void checkAtomics()
{
    int ints[5] = {0, -100, 100, 0, 0};
    unsigned unsigneds[2] = {0U, 0U};
    unsigned long long longs[2] = {0U, 0U};
    float floats[1] = {0.0F};
    bool ok = launchKernel(atomicKernel, 3, 64, 0, nullptr, ints, unsigneds, longs, floats) == cudaSuccess;
    ok = ok && ints[0] == 191 * 192 / 2 && ints[1] == 186 && ints[2] == -186 && ints[3] == 77 && ints[4] == 4;
    ok = ok && unsigneds[0] == 576U && unsigneds[1] == 0xffffffffU && longs[0] == 191ULL << 33U && longs[1] == 192U;
    report("atomics", ok && floats[0] == 96.0F);

    float partial[20] = {};
    unsigned finished = 0U;
    float total = 0.0F;
    ok = launchKernel(lastBlockKernel, 20, 32, 0, nullptr, partial, &finished, &total) == cudaSuccess;
    report("last block", ok && total == 210.0F);
}

void checkIndices()
{
    std::vector<unsigned> out(24U * 24U, 7U);
    bool ok = launchKernel(indexKernel, dim3(4, 3, 2), dim3(2, 3, 4), 0, nullptr, out.data()) == cudaSuccess;
    for (unsigned i = 0; i < out.size(); ++i)
    {
        ok = ok && out[i] == i / 24U * 1000U + i % 24U;
    }
    report("indices", ok);
    unsigned untouched = 5U;
    ok = launchKernel(indexKernel, dim3(4, 0, 2), dim3(32), 0, nullptr, &untouched) == cudaSuccess;
    report("empty grid", ok && untouched == 5U);
}

void checkShared()
{
    auto& settings = trtc::emulation::settings();
    unsigned char seen[32];
    bool ok = launchKernel(sharedBytesKernel, 3, 32, 33, nullptr, seen, 32) == cudaSuccess;
    ok = ok && std::all_of(seen, seen + 32, [](unsigned char byte) { return byte == 0xffU; });
    report("shared memory is filled anew for each block", ok);

    // launchKernel opts in above 48 KiB, up to what the device has.
    ok = launchKernel(sharedBytesKernel, 1, 32, settings.maxSharedBytes, nullptr, seen, 0) == cudaSuccess;
    ok = ok
        && launchKernel(sharedBytesKernel, 1, 32, settings.maxSharedBytes + 1U, nullptr, seen, 0)
            == cudaErrorInvalidValue;
    report("shared memory that the device has", ok);
    cudaError_t const status =
        trtc::emulation::launch(indexKernel, dim3(1), dim3(32), 48U * 1024U + 1U, nullptr, nullptr);
    report("shared memory without opting in", status == cudaErrorInvalidValue, trtc::emulation::lastFault());
    ok = launchKernel(indexKernel, dim3(1), dim3(1025), 0, nullptr, nullptr) == cudaErrorInvalidConfiguration;
    report("too many threads", ok, trtc::emulation::lastFault());
    trtc::emulation::clearFault();
#if !defined(__SANITIZE_ADDRESS__)
    // With the sanitizer the access itself ends the program.
    checkFault("write beyond shared memory", launchKernel(sharedBytesKernel, 1, 32, 64, nullptr, seen, 64),
        {"byte 64 of dynamic shared memory was written; the launch asked for 64"});
    checkFault(
        "write before shared memory", launchKernel(sharedBytesKernel, 1, 32, 64, nullptr, seen, -1), {"byte -1"});
#endif
}

void checkBroken()
{
    int out[256];
    checkFault("a thread returns before a barrier", launchKernel(returnsEarlyKernel, 2, 64, 0, nullptr),
        {"block (", "thread 7 ended", "threads 0-6, 8-63 wait at __syncthreads (emulation_checks.cpp:"});
    checkFault("two barriers", launchKernel(twoBarriersKernel, 1, 64, 0, nullptr),
        {"wait at different barriers", "threads 0-15 wait", "threads 16-63 wait"});
    checkFault("a barrier against a shuffle", launchKernel(barrierAgainstShuffleKernel, 1, 64, 0, nullptr, out),
        {"different barriers"});
    checkFault("half a warp shuffles with all", launchKernel(halfWarpShufflesKernel, 1, 32, 0, nullptr, out),
        {"not all threads reach", "threads 0-15 wait at __shfl_xor_sync", "threads 16-31 ended"});
    checkFault("a mask without its own lane", launchKernel(wrongMaskKernel, 1, 32, 0, nullptr, out),
        {"mask without its own lane"});
    checkFault(
        "a mask beyond the block", launchKernel(shuffleKernel, 1, 16, 0, nullptr, out), {"beyond the 16 threads"});
    checkFault("a shuffle from outside the mask", launchKernel(readsOutsideMaskKernel, 1, 32, 0, nullptr, out),
        {"reads lane", "not in the mask"});
    checkFault("a trap", launchKernel(trapKernel, 1, 32, 0, nullptr), {"thread 3: __trap"});
    // Afterwards the machine is as good as new.
    checkScan();
}

void checkOrders()
{
    std::vector<std::vector<unsigned>> sound;
    std::vector<std::vector<unsigned>> gap;
    std::vector<std::vector<int>> neighbour;
    for (auto const& [order, seed] : {std::pair{Order::kASCENDING, 0}, std::pair{Order::kDESCENDING, 0},
             std::pair{Order::kRANDOM, 1}, std::pair{Order::kRANDOM, 2}})
    {
        setOrder(order, static_cast<uint64_t>(seed));
        sound.push_back(scan(false));
        gap.push_back(scan(true));
        std::vector<int> out(kTHREADS);
        launchKernel(neighbourKernel, 1, kTHREADS, 0, nullptr, out.data());
        neighbour.push_back(out);
    }
    setOrder(Order::kASCENDING);
    report("sound code gives the same in every order",
        sound[0] == sound[1] && sound[0] == sound[2] && sound[0] == sound[3]);
    report("a missing barrier in a scan shows", gap[0] != gap[1] && gap[0] != gap[2] && gap[2] != gap[3]);
    report("a missing barrier between neighbours shows", neighbour[0] != neighbour[1] && neighbour[0] != neighbour[2]);
    setOrder(Order::kRANDOM, 2);
    report("a seed gives the same order again", gap[3] == scan(true));
    setOrder(Order::kASCENDING);
}

void checkConversions()
{
    bool ok = true;
    for (unsigned bits = 0; bits <= 0xffffU; ++bits)
    {
        auto const half = __ushort_as_half(static_cast<unsigned short>(bits));
        float const value = __half2float(half);
        float const other = trtc::toFloat(trtc::Half{static_cast<uint16_t>(bits)});
        bool const isNan = (bits & 0x7fffU) > 0x7c00U;
        ok = ok && (isNan ? std::isnan(value) : value == other && std::signbit(value) == std::signbit(other));
        ok = ok && (isNan || __half_as_ushort(__float2half(value)) == bits);
        auto const brain = __ushort_as_bfloat16(static_cast<unsigned short>(bits));
        bool const brainNan = (bits & 0x7fffU) > 0x7f80U;
        ok = ok && (brainNan || __bfloat16_as_ushort(__float2bfloat16(__bfloat162float(brain))) == bits);
    }
    report("every half and bfloat16 there and back", ok);

    std::mt19937 random{1};
    std::string wrong;
    auto const compare = [&](float value)
    {
        if (std::isnan(value))
        {
            return;
        }
        if (__half_as_ushort(__float2half(value)) != trtc::fromFloat<trtc::Half>(value).bits
            || __bfloat16_as_ushort(__float2bfloat16(value)) != trtc::fromFloat<trtc::BFloat16>(value).bits)
        {
            wrong = std::to_string(value);
        }
    };
    for (int i = 0; i < 200000; ++i)
    {
        compare(__uint_as_float(static_cast<unsigned>(random())));
    }
    // Halfway between two halves, and one float to either side.
    for (unsigned bits = 0; bits < 0x7c00U; ++bits)
    {
        float const low = __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
        float const high =
            bits == 0x7bffU ? 65536.0F : __half2float(__ushort_as_half(static_cast<unsigned short>(bits + 1U)));
        float const middle = (low + high) / 2.0F;
        compare(middle);
        compare(std::nextafter(middle, 0.0F));
        compare(std::nextafter(middle, 1e9F));
    }
    report("rounding to half and bfloat16 is that of common/half.h", wrong.empty(), wrong);
    report("conversions to integers saturate",
        __float2int_rn(2.5F) == 2 && __float2int_rn(3.5F) == 4 && __float2int_rn(-2.5F) == -2
            && __float2int_rz(-2.9F) == -2 && __float2int_rn(1e20F) == INT_MAX && __float2int_rn(-1e20F) == INT_MIN
            && __float2int_rn(NAN) == 0 && __float2uint_rn(-1.0F) == 0U && __float2uint_rn(1e20F) == UINT_MAX);
}

void checkRuntime()
{
    unsigned char bytes[64];
    bool ok = cudaMemsetAsync(bytes, 5, 64, nullptr) == cudaSuccess && bytes[63] == 5;
    unsigned char copy[64] = {};
    ok = ok && cudaMemcpyAsync(copy, bytes, 64, cudaMemcpyDeviceToDevice, nullptr) == cudaSuccess && copy[63] == 5;
    void* host = nullptr;
    void* device = nullptr;
    ok = ok && cudaHostAlloc(&host, 16, cudaHostAllocMapped) == cudaSuccess
        && cudaHostGetDevicePointer(&device, host, 0) == cudaSuccess && device == host
        && cudaFreeHost(host) == cudaSuccess;
    int major = 0;
    ok = ok && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && major == 8;
    report("runtime calls", ok && cudaGetLastError() == cudaSuccess);
}

// Accesses that only the sanitizer sees; it ends the program.
int overrun(std::string const& what)
{
    std::vector<int> out(kTHREADS);
    std::vector<unsigned char> seen(32);
    if (what == "static")
    {
        launchKernel(staticOverrunKernel, 1, kTHREADS, 0, nullptr, out.data(), 1U);
    }
    else if (what == "dynamic")
    {
        launchKernel(sharedBytesKernel, 1, 32, 64, nullptr, seen.data(), 64);
    }
    else if (what == "global")
    {
        launchKernel(staticOverrunKernel, 1, kTHREADS, 0, nullptr, out.data() + 1, 0U);
    }
    return 0;
}

} // namespace

int main(int argc, char** argv)
{
    if (argc == 3 && std::string{argv[1]} == "--overrun")
    {
        return overrun(argv[2]);
    }
    for (Order order : {Order::kASCENDING, Order::kDESCENDING, Order::kRANDOM})
    {
        setOrder(order, 11U);
        report((orderName(order) + " order").c_str(), true);
        checkSums();
        checkScan();
        checkShuffles();
        checkVotes();
        checkAtomics();
        checkIndices();
        checkShared();
        checkBroken();
    }
    checkOrders();
    checkConversions();
    checkRuntime();
    return gFailures == 0 ? 0 : 1;
}
