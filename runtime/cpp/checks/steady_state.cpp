// Counts what a run costs in the steady state: through the library, and through ONNX Runtime alone on the same buffers.
//   steady_state BUNDLE LIBONNXRUNTIME GRAPH.ONNX RUNS
// Prints JSON: the nanoseconds of the fastest and of the middle one of RUNS runs each, and allocations and locks of a
// few more, of the whole process and of the library's own; and these of making states, where the library does allocate.

#include "counted.h"
#include "trt_compress/runtime.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <onnxruntime_c_api.h>
#include <string>
#include <vector>

namespace
{

constexpr int kCOUNTED = 5; // each call in them is traced to its caller, which takes a while

struct Cost
{
    long allocations = 0, locks = 0, ownAllocations = 0, ownLocks = 0;
    double fastestNs = 1e18, medianNs = 0;
};

Cost counts()
{
    counted::end();
    Cost found;
    found.allocations = counted::gAllocations.all;
    found.locks = counted::gLocks.all;
    found.ownAllocations = counted::gAllocations.own;
    found.ownLocks = counted::gLocks.own;
    return found;
}

template <typename Run>
Cost costOf(int runs, Run const& run)
{
    std::vector<double> times(static_cast<size_t>(runs));
    for (int at = 0; at < 20; ++at)
    {
        run();
    }
    for (double& each : times) // not counted, as to count takes time
    {
        auto const before = std::chrono::steady_clock::now();
        run();
        each = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - before).count();
    }
    counted::begin();
    for (int at = 0; at < kCOUNTED; ++at)
    {
        run();
    }
    Cost found = counts();
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
    std::printf("\"%s\": {\"allocations\": %ld, \"own_allocations\": %ld, \"locks\": %ld, \"own_locks\": %ld, "
                "\"fastest_ns\": %.0f, \"median_ns\": %.0f}%s",
        name, cost.allocations, cost.ownAllocations, cost.locks, cost.ownLocks, cost.fastestNs, cost.medianNs, behind);
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
    counted::begin();
    bool const isMade = trtc_states_new(session, nullptr, &states) == TRTC_OK;
    Cost const making = counts();
    require(isMade, "states");
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
    print("making", making, ", ");
    print("ours", ours, ", ");
    print("direct", alone, ", ");
    std::printf("\"same\": %s}\n", before == memory[1] ? "true" : "false");
    trtc_states_free(&states);
    trtc_session_free(&session);
    return 0;
}
