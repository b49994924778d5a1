// A libcuda.so.1 over host memory, strict about its arguments: what the project calls of the CUDA driver, so that the
// layer above it runs without a GPU. Handles are 64-bit values that break when they are cut to 32; a pointer must lie
// in an allocation with all that is done to it; what a capture forbids spoils the capture. Kernels are those of the
// emulation: a library called libtrtc_cuda.so in the same process is told of captures and replays.
//
//   TRTC_FAKE_GPUS=0                 no GPU
//   TRTC_FAKE_FAIL=cuMemAlloc_v2:3   the third call of that function fails with CUDA_ERROR_OUT_OF_MEMORY
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

namespace
{
using Address = unsigned long long;

enum Status : int
{
    kSUCCESS = 0,
    kINVALID_VALUE = 1,
    kOUT_OF_MEMORY = 2,
    kNOT_INITIALIZED = 3,
    kINVALID_DEVICE = 101,
    kINVALID_CONTEXT = 201,
    kINVALID_HANDLE = 400,
    kNOT_READY = 600,
    kLAUNCH_FAILED = 719,
    kCAPTURE_UNSUPPORTED = 900,
    kCAPTURE_INVALIDATED = 901,
    kCAPTURE_IMPLICIT = 906,
};

constexpr uintptr_t kCONTEXT = 0x7ead00000010U;
constexpr int kUNKNOWN = -1;

// The emulated kernels of one library in this process.
struct Emulation
{
    void (*begin)();
    void* (*end)();
    int (*replay)(void*);
    void (*forget)(void*);
    char const* (*fault)();
};

struct Graph
{
    std::vector<std::function<void()>> steps;
    std::vector<std::pair<Emulation, void*>> kernels; // what each library kept
};

struct Stream
{
    bool capturing{false};
    bool spoiled{false};
    Graph graph;
};

struct Event
{
    double milliseconds{-1.0};
    bool awaited{false};
};

struct Driver
{
    std::recursive_mutex mutex;
    bool initialized{false};
    bool retained{false};
    bool lost{false};
    uintptr_t next{0x7eb000000100U};
    std::map<uintptr_t, size_t> memory;
    std::map<uintptr_t, Stream> streams;
    std::map<uintptr_t, Event> events;
    std::map<uintptr_t, Graph> graphs;
    std::map<uintptr_t, Graph> executables;
    std::map<std::string, int> calls;
    std::string text;
};

Driver& driver()
{
    static auto* const sDriver = new Driver; // outlives every thread
    return *sDriver;
}

thread_local uintptr_t tContext = 0U;

double now()
{
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

int findLibraries(dl_phdr_info* info, size_t /*size*/, void* names)
{
    if (std::strstr(info->dlpi_name, "libtrtc_cuda.so") != nullptr)
    {
        static_cast<std::vector<std::string>*>(names)->emplace_back(info->dlpi_name);
    }
    return 0;
}

std::vector<Emulation> emulations()
{
    std::vector<std::string> names;
    dl_iterate_phdr(&findLibraries, &names);
    std::vector<Emulation> found;
    for (std::string const& name : names)
    {
        void* const library = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (library == nullptr || dlsym(library, "trtcEmulationBeginCapture") == nullptr)
        {
            continue;
        }
        found.push_back({reinterpret_cast<void (*)()>(dlsym(library, "trtcEmulationBeginCapture")),
            reinterpret_cast<void* (*)()>(dlsym(library, "trtcEmulationEndCapture")),
            reinterpret_cast<int (*)(void*)>(dlsym(library, "trtcEmulationReplay")),
            reinterpret_cast<void (*)(void*)>(dlsym(library, "trtcEmulationForget")),
            reinterpret_cast<char const* (*)()>(dlsym(library, "trtcEmulationFault"))});
    }
    return found;
}

bool capturing()
{
    for (auto const& [handle, stream] : driver().streams)
    {
        if (stream.capturing)
        {
            return true;
        }
    }
    return false;
}

// What a capture forbids: waiting, and work on the default stream.
int forbidden()
{
    for (auto& [handle, stream] : driver().streams)
    {
        stream.spoiled = stream.spoiled || stream.capturing;
    }
    return capturing() ? kCAPTURE_IMPLICIT : kSUCCESS;
}

int afterKernels()
{
    Driver& d = driver();
    for (Emulation const& kernels : emulations())
    {
        d.lost = d.lost || kernels.fault()[0] != '\0';
    }
    return d.lost ? kLAUNCH_FAILED : kSUCCESS;
}

// Every entry point begins here; what is wrong before its own arguments are looked at.
int begin(char const* function, bool needsContext)
{
    Driver& d = driver();
    int const number = ++d.calls[function];
    char const* const fail = std::getenv("TRTC_FAKE_FAIL");
    if (fail != nullptr && std::string{function} + ":" + std::to_string(number) == fail)
    {
        return kOUT_OF_MEMORY;
    }
    if (!d.initialized)
    {
        return kNOT_INITIALIZED;
    }
    if (needsContext && (tContext != kCONTEXT || !d.retained))
    {
        return kINVALID_CONTEXT;
    }
    return d.lost ? kLAUNCH_FAILED : kSUCCESS;
}

bool lies(Address pointer, size_t bytes)
{
    auto found = driver().memory.upper_bound(pointer);
    if (found == driver().memory.begin())
    {
        return false;
    }
    --found;
    return pointer >= found->first && pointer + bytes <= found->first + found->second;
}

void* at(Address pointer)
{
    return reinterpret_cast<void*>(pointer);
}

template <typename Map>
uintptr_t make(Map& map)
{
    uintptr_t const handle = driver().next;
    driver().next += 0x100U;
    map[handle];
    return handle;
}

// Runs now, or becomes a step of the capture on `stream`.
int enqueue(void* handle, std::function<void()> const& step)
{
    auto const found = driver().streams.find(reinterpret_cast<uintptr_t>(handle));
    if (found == driver().streams.end())
    {
        return kINVALID_HANDLE;
    }
    if (found->second.capturing)
    {
        found->second.graph.steps.push_back(step);
        return kSUCCESS;
    }
    step();
    return kSUCCESS;
}

int capability(int attribute)
{
    switch (attribute)
    {
    case 13: return 1980000;
    case 16: return 132;
    case 36: return 2619000;
    case 38: return 4 << 20;
    case 75: return 9;
    case 76: return 0;
    default: return kUNKNOWN;
    }
}
} // namespace

#define ENTRY extern "C" __attribute__((visibility("default")))
#define BEGIN_WITH(needsContext)                                                                                       \
    std::lock_guard<std::recursive_mutex> const lock{driver().mutex};                                                  \
    if (int const status = begin(__func__, needsContext))                                                              \
    {                                                                                                                  \
        return status;                                                                                                 \
    }
#define BEGIN BEGIN_WITH(true)
#define BEGIN_WITHOUT_CONTEXT BEGIN_WITH(false)

ENTRY int cuInit(unsigned flags)
{
    driver().initialized = flags == 0U;
    return driver().initialized ? kSUCCESS : kINVALID_VALUE;
}

ENTRY int cuDeviceGetCount(int* count)
{
    BEGIN_WITHOUT_CONTEXT
    char const* const gpus = std::getenv("TRTC_FAKE_GPUS");
    *count = gpus == nullptr ? 1 : std::atoi(gpus);
    return kSUCCESS;
}

ENTRY int cuDeviceGet(int* device, int ordinal)
{
    BEGIN_WITHOUT_CONTEXT
    *device = 7; // a driver's devices need not count from 0
    return ordinal == 0 ? kSUCCESS : kINVALID_DEVICE;
}

ENTRY int cuDeviceGetName(char* name, int length, int device)
{
    BEGIN_WITHOUT_CONTEXT
    std::strncpy(name, "Fake H100", static_cast<size_t>(length));
    return device == 7 && length > 9 ? kSUCCESS : kINVALID_VALUE;
}

ENTRY int cuDriverGetVersion(int* version)
{
    BEGIN_WITHOUT_CONTEXT
    *version = 13000;
    return kSUCCESS;
}

ENTRY int cuDeviceTotalMem_v2(size_t* bytes, int device)
{
    BEGIN_WITHOUT_CONTEXT
    *bytes = size_t{80} << 30U;
    return device == 7 ? kSUCCESS : kINVALID_DEVICE;
}

ENTRY int cuDeviceGetAttribute(int* value, int attribute, int device)
{
    BEGIN_WITHOUT_CONTEXT
    *value = capability(attribute);
    return device == 7 && *value != kUNKNOWN ? kSUCCESS : kINVALID_VALUE;
}

ENTRY int cuDevicePrimaryCtxRetain(void** context, int device)
{
    BEGIN_WITHOUT_CONTEXT
    *context = at(kCONTEXT);
    driver().retained = true;
    return device == 7 ? kSUCCESS : kINVALID_DEVICE;
}

ENTRY int cuCtxSetCurrent(void* context)
{
    BEGIN_WITHOUT_CONTEXT
    tContext = reinterpret_cast<uintptr_t>(context);
    return tContext == kCONTEXT ? kSUCCESS : kINVALID_CONTEXT;
}

ENTRY int cuCtxSynchronize()
{
    BEGIN
    int const status = forbidden();
    return status != kSUCCESS ? status : afterKernels();
}

ENTRY int cuMemAlloc_v2(Address* pointer, size_t bytes)
{
    BEGIN
    if (bytes == 0U)
    {
        return kINVALID_VALUE;
    }
    if (int const status = forbidden())
    {
        return status;
    }
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
    {
        return kOUT_OF_MEMORY;
    }
    *pointer = reinterpret_cast<Address>(memory);
    driver().memory[*pointer] = bytes;
    return kSUCCESS;
}

ENTRY int cuMemFree_v2(Address pointer)
{
    BEGIN
    auto const found = driver().memory.find(pointer);
    if (found == driver().memory.end())
    {
        return kINVALID_VALUE;
    }
    munmap(at(pointer), found->second);
    driver().memory.erase(found);
    return kSUCCESS;
}

ENTRY int cuMemcpyHtoD_v2(Address to, void const* from, size_t bytes)
{
    BEGIN
    int const status = !lies(to, bytes) || from == nullptr ? kINVALID_VALUE : forbidden();
    if (status == kSUCCESS)
    {
        std::memcpy(at(to), from, bytes);
    }
    return status;
}

ENTRY int cuMemcpyDtoH_v2(void* to, Address from, size_t bytes)
{
    BEGIN
    int const status = !lies(from, bytes) || to == nullptr ? kINVALID_VALUE : forbidden();
    if (status == kSUCCESS)
    {
        std::memcpy(to, at(from), bytes);
    }
    return status;
}

ENTRY int cuMemsetD8_v2(Address to, unsigned char value, size_t bytes)
{
    BEGIN
    int const status = !lies(to, bytes) ? kINVALID_VALUE : forbidden();
    if (status == kSUCCESS)
    {
        std::memset(at(to), value, bytes);
    }
    return status;
}

ENTRY int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* stream)
{
    BEGIN
    return lies(to, bytes) ? enqueue(stream, [=] { std::memset(at(to), value, bytes); }) : kINVALID_VALUE;
}

ENTRY int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream)
{
    BEGIN
    bool const fits = lies(to, bytes) && lies(from, bytes);
    return fits ? enqueue(stream, [=] { std::memcpy(at(to), at(from), bytes); }) : kINVALID_VALUE;
}

ENTRY int cuStreamCreate(void** stream, unsigned flags)
{
    BEGIN
    *stream = at(make(driver().streams));
    return flags == 1U ? kSUCCESS : kINVALID_VALUE; // beside the default stream, and not waiting for it
}

ENTRY int cuStreamSynchronize(void* stream)
{
    BEGIN
    auto const found = driver().streams.find(reinterpret_cast<uintptr_t>(stream));
    if (found == driver().streams.end())
    {
        return kINVALID_HANDLE;
    }
    if (found->second.capturing)
    {
        found->second.spoiled = true;
        return kCAPTURE_UNSUPPORTED;
    }
    return afterKernels();
}

ENTRY int cuStreamBeginCapture_v2(void* stream, int mode)
{
    BEGIN
    auto const found = driver().streams.find(reinterpret_cast<uintptr_t>(stream));
    if (found == driver().streams.end() || mode < 0 || mode > 2)
    {
        return found == driver().streams.end() ? kINVALID_HANDLE : kINVALID_VALUE;
    }
    if (capturing())
    {
        return kCAPTURE_UNSUPPORTED;
    }
    found->second = Stream{true, false, {}};
    for (Emulation const& kernels : emulations())
    {
        kernels.begin();
    }
    return kSUCCESS;
}

ENTRY int cuStreamEndCapture(void* stream, void** graph)
{
    BEGIN
    auto const found = driver().streams.find(reinterpret_cast<uintptr_t>(stream));
    if (found == driver().streams.end() || !found->second.capturing)
    {
        return kINVALID_HANDLE;
    }
    found->second.capturing = false;
    for (Emulation const& kernels : emulations())
    {
        found->second.graph.kernels.emplace_back(kernels, kernels.end());
    }
    if (found->second.spoiled)
    {
        *graph = nullptr;
        return kCAPTURE_INVALIDATED;
    }
    uintptr_t const handle = make(driver().graphs);
    driver().graphs[handle] = found->second.graph;
    *graph = at(handle);
    return kSUCCESS;
}

ENTRY int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags)
{
    BEGIN
    auto const found = driver().graphs.find(reinterpret_cast<uintptr_t>(graph));
    if (found == driver().graphs.end() || flags != 0U)
    {
        return found == driver().graphs.end() ? kINVALID_HANDLE : kINVALID_VALUE;
    }
    uintptr_t const handle = make(driver().executables);
    driver().executables[handle] = found->second;
    *executable = at(handle);
    return kSUCCESS;
}

ENTRY int cuGraphLaunch(void* executable, void* stream)
{
    BEGIN
    auto const found = driver().executables.find(reinterpret_cast<uintptr_t>(executable));
    if (found == driver().executables.end())
    {
        return kINVALID_HANDLE;
    }
    Graph const graph = found->second;
    return enqueue(stream,
        [graph]
        {
            for (auto const& step : graph.steps)
            {
                step();
            }
            for (auto const& [kernels, kept] : graph.kernels)
            {
                driver().lost = driver().lost || kernels.replay(kept) != 0;
            }
        });
}

ENTRY int cuGraphDestroy(void* graph)
{
    BEGIN
    return driver().graphs.erase(reinterpret_cast<uintptr_t>(graph)) == 1U ? kSUCCESS : kINVALID_HANDLE;
}

ENTRY int cuGraphExecDestroy(void* executable)
{
    BEGIN
    auto const found = driver().executables.find(reinterpret_cast<uintptr_t>(executable));
    if (found == driver().executables.end())
    {
        return kINVALID_HANDLE;
    }
    for (auto const& [kernels, kept] : found->second.kernels)
    {
        kernels.forget(kept);
    }
    driver().executables.erase(found);
    return kSUCCESS;
}

ENTRY int cuEventCreate(void** event, unsigned flags)
{
    BEGIN
    *event = at(make(driver().events));
    return flags == 0U ? kSUCCESS : kINVALID_VALUE;
}

ENTRY int cuEventDestroy_v2(void* event)
{
    BEGIN
    return driver().events.erase(reinterpret_cast<uintptr_t>(event)) == 1U ? kSUCCESS : kINVALID_HANDLE;
}

ENTRY int cuEventRecord(void* event, void* stream)
{
    BEGIN
    auto const found = driver().events.find(reinterpret_cast<uintptr_t>(event));
    bool const known = driver().streams.count(reinterpret_cast<uintptr_t>(stream)) == 1U;
    if (found == driver().events.end() || !known)
    {
        return kINVALID_HANDLE;
    }
    found->second = Event{now(), false};
    return kSUCCESS;
}

ENTRY int cuEventSynchronize(void* event)
{
    BEGIN
    auto const found = driver().events.find(reinterpret_cast<uintptr_t>(event));
    if (found == driver().events.end())
    {
        return kINVALID_HANDLE;
    }
    for (auto& [handle, other] : driver().events) // one stream: what was recorded before is done too
    {
        other.awaited = other.awaited || other.milliseconds <= found->second.milliseconds;
    }
    int const status = forbidden();
    return status != kSUCCESS ? status : afterKernels();
}

ENTRY int cuEventElapsedTime(float* milliseconds, void* start, void* end)
{
    BEGIN
    auto const from = driver().events.find(reinterpret_cast<uintptr_t>(start));
    auto const to = driver().events.find(reinterpret_cast<uintptr_t>(end));
    if (from == driver().events.end() || to == driver().events.end())
    {
        return kINVALID_HANDLE;
    }
    if (!from->second.awaited || !to->second.awaited)
    {
        return kNOT_READY;
    }
    *milliseconds = static_cast<float>(to->second.milliseconds - from->second.milliseconds);
    return kSUCCESS;
}

ENTRY int cuGetErrorString(int status, char const** text)
{
    switch (status)
    {
    case kINVALID_VALUE: *text = "invalid argument"; return kSUCCESS;
    case kOUT_OF_MEMORY: *text = "out of memory"; return kSUCCESS;
    case kINVALID_CONTEXT: *text = "invalid device context"; return kSUCCESS;
    case kINVALID_HANDLE: *text = "invalid resource handle"; return kSUCCESS;
    case kLAUNCH_FAILED: *text = "unspecified launch failure"; return kSUCCESS;
    case kCAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; return kSUCCESS;
    case kCAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; return kSUCCESS;
    case kCAPTURE_IMPLICIT:
        *text = "operation would make the legacy stream depend on a capturing stream";
        return kSUCCESS;
    default: *text = nullptr; return kINVALID_VALUE;
    }
}

// For the tests: what is alive, as `memory streams events graphs executables`, and how often a function was called.
ENTRY char const* trtcFakeAlive()
{
    Driver& d = driver();
    d.text.clear();
    for (size_t const count :
        {d.memory.size(), d.streams.size(), d.events.size(), d.graphs.size(), d.executables.size()})
    {
        d.text += (d.text.empty() ? "" : " ") + std::to_string(count);
    }
    return d.text.c_str();
}

ENTRY int trtcFakeCalls(char const* function)
{
    return driver().calls[function];
}
