// TokenRestore (every row from its place) behind the C interface of libtrtc_cuda, sound or with one fault: what
// gpu-check must find.

#include "common/cuda_common.cuh"
#include "common/cuda_interface.h"
#include "common/export.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

namespace
{

enum Fault : int32_t
{
    kSOUND,
    kWRONG_VALUES,
    kWRITES_BEYOND,
    kWRITES_BEFORE,
    kWRITES_INPUT,
    kWRITES_BEYOND_WORKSPACE,
    kOTHER_BITS,
    kLEAVES_OUT,
    kNO_BARRIER,
    kDIVERGES,
    kREFUSES,
    kREPORTS,
    kENDS_PROCESS,
    kKEEPS_SILENT,
    kHANGS,
};

int32_t gFault = kSOUND;
int gRuns = 0;
int gReported = 0;

// One block for each row; the row is staged in shared memory, each thread reads what its neighbour wrote.
__global__ void restoreKernel(
    float const* y, int64_t const* index, float* x, int64_t rows, int64_t columns, int32_t fault, int* reported)
{
    TRTC_DYNAMIC_SHARED(float, staged);
    int64_t const item = blockIdx.y;
    int64_t const source = index[item * gridDim.x + blockIdx.x];
    if (source < 0 || source >= rows)
    {
        *reported = fault == kKEEPS_SILENT ? *reported : 1;
        return;
    }
    for (int64_t c = threadIdx.x; c < columns; c += blockDim.x)
    {
        staged[c] = y[(item * rows + source) * columns + c];
    }
    if (fault == kDIVERGES && threadIdx.x == 5U)
    {
        return;
    }
    if (fault != kNO_BARRIER)
    {
        __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < columns; i += blockDim.x)
    {
        int64_t const c = (i + 1) % columns;
        if (fault == kLEAVES_OUT && c == columns - 1)
        {
            continue;
        }
        x[(item * gridDim.x + blockIdx.x) * columns + c] = staged[c] + (fault == kWRONG_VALUES && c == 1 ? 1.0F : 0.0F);
    }
}

int32_t say(std::string const& text, char* message, size_t bytes)
{
    if (bytes > 0U)
    {
        std::strncpy(message, text.c_str(), bytes - 1U);
        message[bytes - 1U] = '\0';
    }
    return text.empty() ? 0 : 1;
}

} // namespace

TRTC_EXPORT void trtcSetFault(int32_t fault)
{
    gFault = fault;
}

TRTC_EXPORT char const* trtcDescribe(void)
{
    return R"({"operators": [{"op_type": "TrtcTokenRestore"}]})";
}

TRTC_EXPORT int32_t trtcWorkspaceBytes(TrtcCall const*, size_t* bytes, char* message, size_t messageBytes)
{
    *bytes = 8U;
    return say("", message, messageBytes);
}

TRTC_EXPORT int32_t trtcEnqueue(TrtcCall const* call, void* workspace, void*, char* message, size_t messageBytes)
{
    TrtcTensor const& y = call->inputs[0];
    TrtcTensor const& index = call->inputs[1];
    TrtcTensor const& x = call->outputs[0];
    if (gFault == kREFUSES || y.dtype != 1 || index.dtype != 7 || *call->attributes[0].integers != 0)
    {
        return say("TrtcTokenRestore: refused.", message, messageBytes);
    }
    auto* out = static_cast<float*>(x.data);
    auto const columns = static_cast<size_t>(x.shape[2]);
    auto const values = static_cast<size_t>(x.shape[0] * x.shape[1]) * columns;
    dim3 const grid(static_cast<unsigned>(x.shape[1]), static_cast<unsigned>(x.shape[0]));
    cudaError_t const status = trtc::launchKernel(restoreKernel, grid, dim3(64), columns * sizeof(float), nullptr,
        static_cast<float const*>(y.data), static_cast<int64_t const*>(index.data), out, y.shape[1], y.shape[2], gFault,
        &gReported);
    ++gRuns;
    switch (gFault)
    {
    case kWRITES_BEYOND: out[values] = 0.0F; break;
    case kWRITES_BEFORE: out[-1] = 0.0F; break;
    case kWRITES_INPUT: static_cast<int64_t*>(index.data)[0] += 1; break;
    case kWRITES_BEYOND_WORKSPACE: static_cast<char*>(workspace)[8] = 0; break;
    case kOTHER_BITS: out[0] = static_cast<float>(gRuns); break;
    case kENDS_PROCESS: std::_Exit(77);
    case kHANGS: std::this_thread::sleep_for(std::chrono::hours(1)); break;
    default: break;
    }
    static_cast<void>(status);
    return say("", message, messageBytes);
}

TRTC_EXPORT int32_t trtcTakeFault(char* message, size_t messageBytes)
{
    bool const isReported = gFault == kREPORTS || std::exchange(gReported, 0) != 0;
    return say(isReported ? "TrtcTokenRestore: an index is out of range." : "", message, messageBytes);
}
