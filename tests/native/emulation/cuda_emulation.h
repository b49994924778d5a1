// CUDA on the CPU, for tests: what plugins/common/cuda_common.cuh includes under TRTC_EMULATED_CUDA.
//
// Kernels are plain functions. A block is a set of fibers, one for each thread; blocks run one after another. A thread
// runs until it reaches a barrier or a warp operation, then the next one runs, in the order of Settings::order: code
// that lacks a barrier computes something else in another order. A barrier that some threads never reach, or that they
// reach on different lines, a shuffle from a lane that is not in the mask, and a write beyond dynamic shared memory end
// the launch with cudaErrorLaunchFailure and a sentence in lastFault().
//
// What it does not show: races that need two threads inside one stretch between barriers, memory order between blocks
// that run at the same time, alignment of vector loads (build with -fsanitize=undefined for that), and time.
#pragma once

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

// ---------------------------------------------------------------------------------------------------------- language

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

struct uint3
{
    unsigned x, y, z;
};

struct dim3
{
    unsigned x, y, z;
    constexpr dim3(unsigned xSize = 1U, unsigned ySize = 1U, unsigned zSize = 1U) // NOLINT: as in CUDA, implicit
        : x(xSize)
        , y(ySize)
        , z(zSize)
    {
    }
    constexpr dim3(uint3 size) // NOLINT
        : x(size.x)
        , y(size.y)
        , z(size.z)
    {
    }
};

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

#define TRTC_VECTORS(T, name, alignment2, alignment4)                                                                  \
    struct __attribute__((aligned(alignment2))) name##2                                                                \
    {                                                                                                                  \
        T x, y;                                                                                                        \
    };                                                                                                                 \
    struct name##3                                                                                                     \
    {                                                                                                                  \
        T x, y, z;                                                                                                     \
    };                                                                                                                 \
    struct __attribute__((aligned(alignment4))) name##4                                                                \
    {                                                                                                                  \
        T x, y, z, w;                                                                                                  \
    };                                                                                                                 \
    inline name##2 make_##name##2(T x, T y)                                                                            \
    {                                                                                                                  \
        return {x, y};                                                                                                 \
    }                                                                                                                  \
    inline name##4 make_##name##4(T x, T y, T z, T w)                                                                  \
    {                                                                                                                  \
        return {x, y, z, w};                                                                                           \
    }

// uint3 is threadIdx's type and stands above.
#define uint3 trtcUnusedUint3
TRTC_VECTORS(char, char, 2, 4)
TRTC_VECTORS(unsigned char, uchar, 2, 4)
TRTC_VECTORS(short, short, 4, 8)
TRTC_VECTORS(unsigned short, ushort, 4, 8)
TRTC_VECTORS(int, int, 8, 16)
TRTC_VECTORS(unsigned, uint, 8, 16)
TRTC_VECTORS(float, float, 8, 16)
TRTC_VECTORS(long long, longlong, 16, 16)
TRTC_VECTORS(unsigned long long, ulonglong, 16, 16)
TRTC_VECTORS(double, double, 16, 16)
#undef uint3
#undef TRTC_VECTORS

// ------------------------------------------------------------------------------------------------------- runtime API

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;
struct CUevent_st; // TensorRT's headers name it
using cudaEvent_t = CUevent_st*;

enum cudaMemcpyKind
{
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};

enum cudaFuncAttribute
{
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};

enum cudaDeviceAttr
{
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

constexpr unsigned cudaHostAllocDefault = 0U;
constexpr unsigned cudaHostAllocPortable = 1U;
constexpr unsigned cudaHostAllocMapped = 2U;

char const* cudaGetErrorName(cudaError_t status) noexcept;
char const* cudaGetErrorString(cudaError_t status) noexcept;
cudaError_t cudaGetLastError() noexcept;
cudaError_t cudaPeekAtLastError() noexcept;
cudaError_t cudaGetDevice(int* device) noexcept;
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) noexcept;
cudaError_t cudaDeviceSynchronize() noexcept;
cudaError_t cudaStreamCreate(cudaStream_t* stream) noexcept;
cudaError_t cudaStreamDestroy(cudaStream_t stream) noexcept;
cudaError_t cudaStreamSynchronize(cudaStream_t stream) noexcept;
cudaError_t cudaMalloc(void** pointer, size_t bytes) noexcept;
cudaError_t cudaFree(void* pointer) noexcept;
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) noexcept;
cudaError_t cudaMallocHost(void** pointer, size_t bytes, unsigned flags = cudaHostAllocDefault) noexcept;
cudaError_t cudaFreeHost(void* pointer) noexcept;
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) noexcept;
cudaError_t cudaMemset(void* to, int value, size_t bytes) noexcept;
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream = nullptr) noexcept;
cudaError_t cudaMemcpy(void* to, void const* from, size_t bytes, cudaMemcpyKind kind) noexcept;
cudaError_t cudaMemcpyAsync(
    void* to, void const* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream = nullptr) noexcept;
cudaError_t cudaMemcpy2DAsync(void* to, size_t toPitch, void const* from, size_t fromPitch, size_t width, size_t height,
    cudaMemcpyKind kind, cudaStream_t stream = nullptr) noexcept;
cudaError_t cudaFuncSetAttribute(void const* kernel, cudaFuncAttribute attribute, int value) noexcept;

template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) noexcept
{
    return cudaFuncSetAttribute(reinterpret_cast<void const*>(kernel), attribute, value);
}

// --------------------------------------------------------------------------------------------------------- scheduler

namespace trtc::emulation
{

enum class Order : int
{
    kASCENDING = 0,
    kDESCENDING = 1,
    kRANDOM = 2, // another permutation after every barrier, and of the blocks
};

struct Settings
{
    Order order{Order::kASCENDING};
    uint64_t seed{0U};
    size_t maxSharedBytes{99U * 1024U}; // of a block, opted in: the least of the SMs from 80 on
    int computeCapability{87};
    int multiProcessors{16};
    unsigned char sharedFill{0xffU}; // shared memory begins with these bytes: NaN in every float type
};

// Counts of the last launch.
struct Counters
{
    uint64_t blocks{0U};
    uint64_t barriers{0U};
    uint64_t warpOperations{0U};
    uint64_t switches{0U};
};

Settings& settings() noexcept;
Counters const& counters() noexcept;
// Why the last launch that failed did; empty if none did since clearFault().
std::string const& lastFault() noexcept;
void clearFault() noexcept;

unsigned char* dynamicShared() noexcept;
// Ends the launch from inside a kernel.
[[noreturn]] void fail(std::string const& why);

enum class Combine : int
{
    kNOTHING,
    kOR,
    kAND,
    kCOUNT,
};
int blockBarrier(Combine combine, int value, char const* name, char const* file, int line);

enum class WarpOp : int
{
    kSYNC,
    kINDEX,
    kUP,
    kDOWN,
    kXOR,
    kBALLOT,
    kANY,
    kALL,
    kMATCH_ANY,
    kREDUCE_ADD,
    kREDUCE_MIN_SIGNED,
    kREDUCE_MAX_SIGNED,
    kREDUCE_MIN,
    kREDUCE_MAX,
    kREDUCE_AND,
    kREDUCE_OR,
    kREDUCE_XOR,
};
uint64_t warpOperation(
    WarpOp op, unsigned mask, uint64_t bits, int operand, int width, char const* name, char const* file, int line);

cudaError_t launchBlocks(
    void const* kernel, dim3 grid, dim3 block, size_t sharedBytes, std::function<void()> const& thread) noexcept;

template <typename... P, typename... A>
cudaError_t launch(
    void (*kernel)(P...), dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t /*stream*/, A&&... arguments) noexcept
{
    std::tuple<std::remove_cv_t<P>...> const converted{static_cast<std::remove_cv_t<P>>(std::forward<A>(arguments))...};
    return launchBlocks(reinterpret_cast<void const*>(kernel), grid, block, sharedBytes,
        [converted, kernel] { std::apply(kernel, converted); }); // a copy: a capture keeps it
}

template <typename T>
uint64_t toBits(T value)
{
    static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>);
    uint64_t bits = 0U;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <typename T>
T fromBits(uint64_t bits)
{
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

} // namespace trtc::emulation

// -------------------------------------------------------------------------------- barriers and what crosses a warp

#define TRTC_HERE char const *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(TRTC_HERE)
{
    trtc::emulation::blockBarrier(trtc::emulation::Combine::kNOTHING, 0, "__syncthreads", file, line);
}
inline int __syncthreads_or(int predicate, TRTC_HERE)
{
    return trtc::emulation::blockBarrier(trtc::emulation::Combine::kOR, predicate, "__syncthreads_or", file, line);
}
inline int __syncthreads_and(int predicate, TRTC_HERE)
{
    return trtc::emulation::blockBarrier(trtc::emulation::Combine::kAND, predicate, "__syncthreads_and", file, line);
}
inline int __syncthreads_count(int predicate, TRTC_HERE)
{
    return trtc::emulation::blockBarrier(
        trtc::emulation::Combine::kCOUNT, predicate, "__syncthreads_count", file, line);
}

inline void __syncwarp(unsigned mask = 0xffffffffU, TRTC_HERE)
{
    trtc::emulation::warpOperation(trtc::emulation::WarpOp::kSYNC, mask, 0U, 0, 32, "__syncwarp", file, line);
}

#define TRTC_SHUFFLE(name, op, Operand)                                                                                \
    template <typename T>                                                                                              \
    T name(unsigned mask, T value, Operand operand, int width = 32, TRTC_HERE)                                         \
    {                                                                                                                  \
        using namespace trtc::emulation;                                                                               \
        return fromBits<T>(                                                                                            \
            warpOperation(WarpOp::op, mask, toBits(value), static_cast<int>(operand), width, #name, file, line));      \
    }
TRTC_SHUFFLE(__shfl_sync, kINDEX, int)
TRTC_SHUFFLE(__shfl_up_sync, kUP, unsigned)
TRTC_SHUFFLE(__shfl_down_sync, kDOWN, unsigned)
TRTC_SHUFFLE(__shfl_xor_sync, kXOR, int)
#undef TRTC_SHUFFLE

#define TRTC_VOTE(Result, name, op)                                                                                    \
    inline Result name(unsigned mask, int predicate, TRTC_HERE)                                                        \
    {                                                                                                                  \
        using namespace trtc::emulation;                                                                               \
        uint64_t const bit = predicate != 0 ? 1U : 0U;                                                                 \
        return static_cast<Result>(warpOperation(WarpOp::op, mask, bit, 0, 32, #name, file, line));                    \
    }
TRTC_VOTE(unsigned, __ballot_sync, kBALLOT)
TRTC_VOTE(int, __any_sync, kANY)
TRTC_VOTE(int, __all_sync, kALL)
#undef TRTC_VOTE

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, TRTC_HERE)
{
    using namespace trtc::emulation;
    return static_cast<unsigned>(
        warpOperation(WarpOp::kMATCH_ANY, mask, toBits(value), 0, 32, "__match_any_sync", file, line));
}

#define TRTC_REDUCE(T, name, op)                                                                                       \
    inline T name(unsigned mask, T value, TRTC_HERE)                                                                   \
    {                                                                                                                  \
        using namespace trtc::emulation;                                                                               \
        return fromBits<T>(warpOperation(WarpOp::op, mask, toBits(value), 0, 32, #name, file, line));                  \
    }
TRTC_REDUCE(int, __reduce_add_sync, kREDUCE_ADD)
TRTC_REDUCE(unsigned, __reduce_add_sync, kREDUCE_ADD)
TRTC_REDUCE(int, __reduce_min_sync, kREDUCE_MIN_SIGNED)
TRTC_REDUCE(unsigned, __reduce_min_sync, kREDUCE_MIN)
TRTC_REDUCE(int, __reduce_max_sync, kREDUCE_MAX_SIGNED)
TRTC_REDUCE(unsigned, __reduce_max_sync, kREDUCE_MAX)
TRTC_REDUCE(unsigned, __reduce_and_sync, kREDUCE_AND)
TRTC_REDUCE(unsigned, __reduce_or_sync, kREDUCE_OR)
TRTC_REDUCE(unsigned, __reduce_xor_sync, kREDUCE_XOR)
#undef TRTC_REDUCE
#undef TRTC_HERE

inline void __threadfence()
{
}
inline void __threadfence_block()
{
}
inline void __threadfence_system()
{
}

[[noreturn]] inline void __trap()
{
    trtc::emulation::fail("__trap");
}

// ----------------------------------------------------------------------------------------------------------- atomics
// Overloads and no templates: CUDA has these types and no others (int64_t and uint64_t are not among them on Linux).

#define TRTC_ATOMIC(T, name, expression)                                                                               \
    inline T name(T* address, T value)                                                                                 \
    {                                                                                                                  \
        T const old = *address;                                                                                        \
        *address = static_cast<T>(expression);                                                                         \
        return old;                                                                                                    \
    }
#define TRTC_ATOMIC_WRAP(T, U, name, expression)                                                                       \
    inline T name(T* address, T value)                                                                                 \
    {                                                                                                                  \
        T const old = *address;                                                                                        \
        U const a = static_cast<U>(old);                                                                               \
        U const b = static_cast<U>(value);                                                                             \
        *address = static_cast<T>(expression);                                                                         \
        return old;                                                                                                    \
    }
TRTC_ATOMIC_WRAP(int, unsigned, atomicAdd, a + b)
TRTC_ATOMIC_WRAP(unsigned, unsigned, atomicAdd, a + b)
TRTC_ATOMIC_WRAP(unsigned long long, unsigned long long, atomicAdd, a + b)
TRTC_ATOMIC(float, atomicAdd, old + value)
TRTC_ATOMIC(double, atomicAdd, old + value)
TRTC_ATOMIC_WRAP(int, unsigned, atomicSub, a - b)
TRTC_ATOMIC_WRAP(unsigned, unsigned, atomicSub, a - b)
#define TRTC_ATOMIC_ORDERED(T)                                                                                         \
    TRTC_ATOMIC(T, atomicMax, old < value ? value : old)                                                               \
    TRTC_ATOMIC(T, atomicMin, value < old ? value : old)
TRTC_ATOMIC_ORDERED(int)
TRTC_ATOMIC_ORDERED(unsigned)
TRTC_ATOMIC_ORDERED(long long)
TRTC_ATOMIC_ORDERED(unsigned long long)
#undef TRTC_ATOMIC_ORDERED
#define TRTC_ATOMIC_BITS(T)                                                                                            \
    TRTC_ATOMIC(T, atomicAnd, old& value)                                                                              \
    TRTC_ATOMIC(T, atomicOr, old | value)                                                                              \
    TRTC_ATOMIC(T, atomicXor, old ^ value)                                                                             \
    TRTC_ATOMIC(T, atomicExch, value)                                                                                  \
    inline T atomicCAS(T* address, T compare, T value)                                                                 \
    {                                                                                                                  \
        T const old = *address;                                                                                        \
        *address = old == compare ? value : old;                                                                       \
        return old;                                                                                                    \
    }
TRTC_ATOMIC_BITS(int)
TRTC_ATOMIC_BITS(unsigned)
TRTC_ATOMIC_BITS(unsigned long long)
#undef TRTC_ATOMIC_BITS
TRTC_ATOMIC(float, atomicExch, value)
inline unsigned atomicInc(unsigned* address, unsigned limit)
{
    unsigned const old = *address;
    *address = old >= limit ? 0U : old + 1U;
    return old;
}
#undef TRTC_ATOMIC
#undef TRTC_ATOMIC_WRAP

#define TRTC_SCOPED(T, name)                                                                                           \
    inline T name##_system(T* address, T value)                                                                        \
    {                                                                                                                  \
        return name(address, value);                                                                                   \
    }                                                                                                                  \
    inline T name##_block(T* address, T value)                                                                         \
    {                                                                                                                  \
        return name(address, value);                                                                                   \
    }
#define TRTC_SCOPED_ALL(T)                                                                                             \
    TRTC_SCOPED(T, atomicAdd)                                                                                          \
    TRTC_SCOPED(T, atomicMax)                                                                                          \
    TRTC_SCOPED(T, atomicMin)                                                                                          \
    TRTC_SCOPED(T, atomicExch)                                                                                         \
    TRTC_SCOPED(T, atomicOr)                                                                                           \
    inline T atomicCAS_system(T* address, T compare, T value)                                                          \
    {                                                                                                                  \
        return atomicCAS(address, compare, value);                                                                     \
    }
TRTC_SCOPED_ALL(int)
TRTC_SCOPED_ALL(unsigned)
TRTC_SCOPED_ALL(unsigned long long)
#undef TRTC_SCOPED_ALL
#undef TRTC_SCOPED

// -------------------------------------------------------------------------------------------------- bits and numbers

inline int __popc(unsigned value)
{
    return __builtin_popcount(value);
}
inline int __popcll(unsigned long long value)
{
    return __builtin_popcountll(value);
}
inline int __ffs(int value)
{
    return __builtin_ffs(value);
}
inline int __ffsll(long long value)
{
    return __builtin_ffsll(value);
}
inline int __clz(int value)
{
    return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value)
{
    return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline unsigned __brev(unsigned value)
{
    unsigned reversed = 0U;
    for (int bit = 0; bit < 32; ++bit)
    {
        reversed = (reversed << 1U) | ((value >> bit) & 1U);
    }
    return reversed;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector)
{
    uint64_t const bytes = (static_cast<uint64_t>(high) << 32U) | low;
    unsigned result = 0U;
    for (unsigned i = 0; i < 4U; ++i)
    {
        unsigned const pick = (selector >> (4U * i)) & 0xfU;
        unsigned byte = static_cast<unsigned>(bytes >> (8U * (pick & 7U))) & 0xffU;
        byte = (pick & 8U) != 0U ? ((byte & 0x80U) != 0U ? 0xffU : 0U) : byte;
        result |= byte << (8U * i);
    }
    return result;
}
inline int __dp4a(int a, int b, int c)
{
    for (unsigned i = 0; i < 4U; ++i)
    {
        c += static_cast<int8_t>(static_cast<unsigned>(a) >> (8U * i))
            * static_cast<int8_t>(static_cast<unsigned>(b) >> (8U * i));
    }
    return c;
}
inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32U);
}
inline int __float_as_int(float value)
{
    return trtc::emulation::fromBits<int>(trtc::emulation::toBits(value));
}
inline unsigned __float_as_uint(float value)
{
    return trtc::emulation::fromBits<unsigned>(trtc::emulation::toBits(value));
}
inline float __int_as_float(int value)
{
    return trtc::emulation::fromBits<float>(trtc::emulation::toBits(value));
}
inline float __uint_as_float(unsigned value)
{
    return trtc::emulation::fromBits<float>(trtc::emulation::toBits(value));
}
inline long long __double_as_longlong(double value)
{
    return trtc::emulation::fromBits<long long>(trtc::emulation::toBits(value));
}

// Conversions saturate and NaN gives 0, as the hardware's do.
inline int __float2int_rn(float value)
{
    if (std::isnan(value))
    {
        return 0;
    }
    float const rounded = std::nearbyint(value);
    return rounded >= 2147483648.0F ? INT_MAX : (rounded < -2147483648.0F ? INT_MIN : static_cast<int>(rounded));
}
inline int __float2int_rz(float value)
{
    return __float2int_rn(std::trunc(value));
}
inline int __float2int_rd(float value)
{
    return __float2int_rn(std::floor(value));
}
inline int __float2int_ru(float value)
{
    return __float2int_rn(std::ceil(value));
}
inline unsigned __float2uint_rn(float value)
{
    float const rounded = std::nearbyint(value);
    return !(rounded > 0.0F) ? 0U : (rounded >= 4294967296.0F ? UINT_MAX : static_cast<unsigned>(rounded));
}
inline unsigned __float2uint_rz(float value)
{
    return __float2uint_rn(std::trunc(value));
}
inline float __int2float_rn(int value)
{
    return static_cast<float>(value);
}
inline float __uint2float_rn(unsigned value)
{
    return static_cast<float>(value);
}
// volatile: these may not be contracted to a multiply-add, whatever the compiler's options.
inline float __fadd_rn(float a, float b)
{
    float const volatile sum = a + b;
    return sum;
}
inline float __fsub_rn(float a, float b)
{
    float const volatile difference = a - b;
    return difference;
}
inline float __fmul_rn(float a, float b)
{
    float const volatile product = a * b;
    return product;
}
inline float __fmaf_rn(float a, float b, float c)
{
    return std::fma(a, b, c);
}
inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
inline float __frcp_rn(float a)
{
    return 1.0F / a;
}
inline float __fsqrt_rn(float a)
{
    return std::sqrt(a);
}
inline float __fdividef(float a, float b)
{
    return a / b;
}
inline float __expf(float a)
{
    return std::exp(a);
}
inline float __logf(float a)
{
    return std::log(a);
}
inline float __log2f(float a)
{
    return std::log2(a);
}
inline float __saturatef(float a)
{
    return !(a > 0.0F) ? 0.0F : std::min(a, 1.0F);
}
inline float rsqrtf(float a)
{
    return 1.0F / std::sqrt(a);
}
inline float exp10f(float a)
{
    return std::pow(10.0F, a);
}

#define TRTC_MIN_MAX(T)                                                                                                \
    inline T min(T a, T b)                                                                                             \
    {                                                                                                                  \
        return b < a ? b : a;                                                                                          \
    }                                                                                                                  \
    inline T max(T a, T b)                                                                                             \
    {                                                                                                                  \
        return a < b ? b : a;                                                                                          \
    }
TRTC_MIN_MAX(int)
TRTC_MIN_MAX(unsigned)
TRTC_MIN_MAX(long)
TRTC_MIN_MAX(unsigned long)
TRTC_MIN_MAX(long long)
TRTC_MIN_MAX(unsigned long long)
#undef TRTC_MIN_MAX
inline float min(float a, float b)
{
    return std::fmin(a, b);
}
inline float max(float a, float b)
{
    return std::fmax(a, b);
}
inline double min(double a, double b)
{
    return std::fmin(a, b);
}
inline double max(double a, double b)
{
    return std::fmax(a, b);
}

template <typename T>
T __ldg(T const* address)
{
    return *address;
}
template <typename T>
T __ldcs(T const* address)
{
    return *address;
}
template <typename T>
T __ldcg(T const* address)
{
    return *address;
}
template <typename T>
void __stcs(T* address, T value)
{
    *address = value;
}
template <typename T>
void __stcg(T* address, T value)
{
    *address = value;
}

// ---------------------------------------------------------------------------------------------- half and bfloat16

namespace trtc::emulation
{
uint16_t halfFromFloat(float value) noexcept;
float floatFromHalf(uint16_t bits) noexcept;
uint16_t bfloat16FromFloat(float value) noexcept;
float floatFromBfloat16(uint16_t bits) noexcept;
} // namespace trtc::emulation

#define TRTC_SMALL_FLOAT(Name, Raw, Pair, fromFloat, toFloat)                                                          \
    struct Raw                                                                                                         \
    {                                                                                                                  \
        unsigned short x;                                                                                              \
    };                                                                                                                 \
    struct __attribute__((aligned(2))) Name                                                                            \
    {                                                                                                                  \
        Name() = default;                                                                                              \
        Name(float value) noexcept /* NOLINT: as in CUDA, implicit */                                                  \
            : mBits(trtc::emulation::fromFloat(value))                                                                 \
        {                                                                                                              \
        }                                                                                                              \
        Name(double value) noexcept /* NOLINT */                                                                       \
            : Name(static_cast<float>(value))                                                                          \
        {                                                                                                              \
        }                                                                                                              \
        Name(int value) noexcept /* NOLINT */                                                                          \
            : Name(static_cast<float>(value))                                                                          \
        {                                                                                                              \
        }                                                                                                              \
        Name(Raw raw) noexcept /* NOLINT */                                                                            \
            : mBits(raw.x)                                                                                             \
        {                                                                                                              \
        }                                                                                                              \
        operator float() const noexcept /* NOLINT */                                                                   \
        {                                                                                                              \
            return trtc::emulation::toFloat(mBits);                                                                    \
        }                                                                                                              \
        operator Raw() const noexcept /* NOLINT */                                                                     \
        {                                                                                                              \
            return Raw{mBits};                                                                                         \
        }                                                                                                              \
        unsigned short mBits;                                                                                          \
    };                                                                                                                 \
    struct __attribute__((aligned(4))) Pair                                                                            \
    {                                                                                                                  \
        Name x, y;                                                                                                     \
    };                                                                                                                 \
    inline float __low2float(Pair pair)                                                                                \
    {                                                                                                                  \
        return pair.x;                                                                                                 \
    }                                                                                                                  \
    inline float __high2float(Pair pair)                                                                               \
    {                                                                                                                  \
        return pair.y;                                                                                                 \
    }
TRTC_SMALL_FLOAT(__half, __half_raw, __half2, halfFromFloat, floatFromHalf)
TRTC_SMALL_FLOAT(__nv_bfloat16, __nv_bfloat16_raw, __nv_bfloat162, bfloat16FromFloat, floatFromBfloat16)
#undef TRTC_SMALL_FLOAT
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __half2float(__half value)
{
    return value;
}
inline __half __float2half(float value)
{
    return {value};
}
inline __half __float2half_rn(float value)
{
    return {value};
}
inline __half2 __floats2half2_rn(float a, float b)
{
    return {a, b};
}
inline __half2 __float22half2_rn(float2 value)
{
    return {value.x, value.y};
}
inline float2 __half22float2(__half2 value)
{
    return {value.x, value.y};
}
inline __half2 __halves2half2(__half a, __half b)
{
    return {a, b};
}
inline unsigned short __half_as_ushort(__half value)
{
    return value.mBits;
}
inline __half __ushort_as_half(unsigned short bits)
{
    return {__half_raw{bits}};
}
inline float __bfloat162float(__nv_bfloat16 value)
{
    return value;
}
inline __nv_bfloat16 __float2bfloat16(float value)
{
    return {value};
}
inline __nv_bfloat16 __float2bfloat16_rn(float value)
{
    return {value};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b)
{
    return {a, b};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 value)
{
    return {value.x, value.y};
}
inline float2 __bfloat1622float2(__nv_bfloat162 value)
{
    return {value.x, value.y};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b)
{
    return {a, b};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value)
{
    return value.mBits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits)
{
    return {__nv_bfloat16_raw{bits}};
}
