// Counts what a run costs in the steady state: through the library, and through ONNX Runtime alone on the same buffers.
//   steady_state BUNDLE LIBONNXRUNTIME GRAPH.ONNX RUNS
// Prints JSON: allocations and locks of RUNS runs each, and the nanoseconds of the fastest of them. Whatever allocates
// or locks in this process is counted, whoever it is; the difference is the library's own.

#include "trt_compress/runtime.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <onnxruntime_c_api.h>
#include <pthread.h>
#include <string>
#include <vector>

namespace
{

std::atomic<long> gAllocations{0};
std::atomic<long> gLocks{0};
std::atomic<bool> gCounts{false};

void count(std::atomic<long>& what) noexcept
{
    if (gCounts.load(std::memory_order_relaxed))
    {
        what.fetch_add(1, std::memory_order_relaxed);
    }
}

} // namespace

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) noexcept
{
    count(gAllocations);
    return __libc_malloc(bytes);
}

void* calloc(size_t many, size_t bytes) noexcept
{
    count(gAllocations);
    return __libc_calloc(many, bytes);
}

void* realloc(void* held, size_t bytes) noexcept
{
    count(gAllocations);
    return __libc_realloc(held, bytes);
}

void* aligned_alloc(size_t alignment, size_t bytes) noexcept
{
    count(gAllocations);
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void** held, size_t alignment, size_t bytes) noexcept
{
    count(gAllocations);
    *held = __libc_memalign(alignment, bytes);
    return *held == nullptr ? 12 : 0;
}

int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept
{
    using Lock = int (*)(pthread_mutex_t*);
    static std::atomic<Lock> next{nullptr};
    Lock found = next.load(std::memory_order_relaxed);
    if (found == nullptr)
    {
        found = reinterpret_cast<Lock>(::dlsym(RTLD_NEXT, "pthread_mutex_lock"));
        next.store(found, std::memory_order_relaxed);
    }
    count(gLocks);
    return found(mutex);
}
}

namespace
{

struct Cost
{
    long allocations = 0, locks = 0;
    double fastestNs = 1e18, medianNs = 0;
};

template <typename Run>
Cost costOf(int runs, Run const& run)
{
    std::vector<double> times(static_cast<size_t>(runs));
    for (int at = 0; at < 20; ++at)
    {
        run();
    }
    gAllocations = 0;
    gLocks = 0;
    gCounts = true;
    for (int at = 0; at < runs; ++at)
    {
        auto const before = std::chrono::steady_clock::now();
        run();
        times[static_cast<size_t>(at)] =
            std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - before).count();
    }
    gCounts = false;
    Cost found;
    found.allocations = gAllocations;
    found.locks = gLocks;
    std::sort(times.begin(), times.end());
    found.fastestNs = times.front();
    found.medianNs = times[times.size() / 2];
    return found;
}

void require(bool holds, char const* what)
{
    if (!holds)
    {
        std::fprintf(stderr, "%s: %s\n", what, trtc_last_error());
        std::exit(1);
    }
}

void print(char const* name, Cost const& cost, char const* behind)
{
    std::printf("\"%s\": {\"allocations\": %ld, \"locks\": %ld, \"fastest_ns\": %.0f, \"median_ns\": %.0f}%s", name,
        cost.allocations, cost.locks, cost.fastestNs, cost.medianNs, behind);
}

//! The same graph by ONNX Runtime alone, its inputs and outputs bound once.
Cost direct(char const* library, char const* model, int runs, trtc_tensor& input, trtc_tensor& output)
{
    void* const handle = ::dlopen(library, RTLD_NOW | RTLD_LOCAL);
    require(handle != nullptr, "dlopen");
    auto const base = reinterpret_cast<OrtApiBase const* (*)()>(::dlsym(handle, "OrtGetApiBase"));
    OrtApi const& api = *base()->GetApi(20);
    OrtEnv* env = nullptr;
    OrtSessionOptions* options = nullptr;
    OrtSession* session = nullptr;
    OrtIoBinding* binding = nullptr;
    OrtMemoryInfo* cpu = nullptr;
    api.CreateEnv(ORT_LOGGING_LEVEL_FATAL, "direct", &env);
    api.CreateSessionOptions(&options);
    api.SetIntraOpNumThreads(options, 1);
    require(api.CreateSession(env, model, options, &session) == nullptr, "CreateSession");
    api.CreateIoBinding(session, &binding);
    api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu);
    for (trtc_tensor* tensor : {&input, &output})
    {
        OrtValue* value = nullptr;
        size_t bytes = 4;
        for (int axis = 0; axis < tensor->rank; ++axis)
        {
            bytes *= static_cast<size_t>(tensor->shape[axis]);
        }
        require(api.CreateTensorWithDataAsOrtValue(cpu, tensor->data, bytes, tensor->shape,
                    static_cast<size_t>(tensor->rank), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value)
                == nullptr,
            "CreateTensor");
        OrtStatus* const status = tensor == &input ? api.BindInput(binding, tensor->name, value)
                                                   : api.BindOutput(binding, tensor->name, value);
        require(status == nullptr, "Bind");
    }
    return costOf(runs, [&] { require(api.RunWithBinding(session, nullptr, binding) == nullptr, "Run"); });
}

} // namespace

int main(int count, char** arguments)
{
    if (count != 5)
    {
        return 2;
    }
    int const runs = std::atoi(arguments[4]);
    trtc_session_options options = {};
    options.size = sizeof options;
    options.onnxruntime = arguments[2];
    options.threads = 1;
    trtc_session* session = nullptr;
    require(trtc_session_open(arguments[1], &options, &session) == TRTC_OK, "open");
    trtc_states* states = nullptr;
    require(trtc_states_new(session, nullptr, &states) == TRTC_OK, "states");
    std::vector<trtc_tensor> tensors(2);
    std::vector<std::vector<float>> memory(2);
    for (size_t at = 0; at < 2; ++at)
    {
        trtc_tensor_info info;
        require((at == 0 ? trtc_session_input : trtc_session_output)(session, 0, &info) == TRTC_OK, "info");
        size_t elements = 1;
        tensors[at] = {};
        tensors[at].name = info.name;
        tensors[at].dtype = info.dtype;
        tensors[at].rank = info.rank;
        for (int axis = 0; axis < info.rank; ++axis)
        {
            tensors[at].shape[axis] = info.shape[axis] < 0 ? 1 : info.shape[axis];
            elements *= static_cast<size_t>(tensors[at].shape[axis]);
        }
        memory[at].assign(elements, 0.5F);
        tensors[at].data = memory[at].data();
        tensors[at].bytes = elements * sizeof(float);
    }
    Cost const ours =
        costOf(runs, [&] { require(trtc_run(states, &tensors[0], 1, &tensors[1], 1) == TRTC_OK, "run"); });
    std::vector<float> const before = memory[1];
    Cost const alone = direct(arguments[2], arguments[3], runs, tensors[0], tensors[1]);
    std::printf("{");
    print("ours", ours, ", ");
    print("direct", alone, ", ");
    std::printf("\"same\": %s}\n", before == memory[1] ? "true" : "false");
    trtc_states_free(&states);
    trtc_session_free(&session);
    return 0;
}
