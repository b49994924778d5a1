#include "ort.h"

#include "error.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>

namespace trtc::runtime
{

namespace
{

// What the interface has from version 24 on, and the headers at hand may lack: a function keeps its place for ever.
constexpr int kASSIGNMENT_API = 24;
constexpr size_t kGET_ASSIGNMENT = 407, kGET_NODES = 409, kGET_NODE_NAME = 410, kGET_NODE_DOMAIN = 411;
#if ORT_API_VERSION >= 24
static_assert(offsetof(OrtApi, Session_GetEpGraphAssignmentInfo) == kGET_ASSIGNMENT * sizeof(void*));
static_assert(offsetof(OrtApi, EpAssignedSubgraph_GetNodes) == kGET_NODES * sizeof(void*));
static_assert(offsetof(OrtApi, EpAssignedNode_GetName) == kGET_NODE_NAME * sizeof(void*));
static_assert(offsetof(OrtApi, EpAssignedNode_GetDomain) == kGET_NODE_DOMAIN * sizeof(void*));
#endif

template <typename Function>
Function functionAt(OrtApi const& api, size_t place)
{
    Function found = nullptr;
    std::memcpy(&found, reinterpret_cast<char const*>(&api) + place * sizeof(void*), sizeof found);
    return found;
}

} // namespace

OrtLibrary::OrtLibrary(std::string const& path)
{
    void* handle = nullptr;
    for (std::string const& name :
        path.empty() ? std::vector<std::string>{"libonnxruntime.so.1", "libonnxruntime.so"} : std::vector{path})
    {
        handle = handle == nullptr ? ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL) : handle;
    }
    if (handle == nullptr)
    {
        char const* const said = ::dlerror();
        throw unsupportedError("ONNX Runtime cannot be loaded (" + shown(said == nullptr ? "" : said, 300)
            + "); give the path of libonnxruntime.so as the option 'onnxruntime', or put its folder on the loader's "
              "path.");
    }
    auto const getBase = reinterpret_cast<OrtApiBase const* (*)()>(::dlsym(handle, "OrtGetApiBase"));
    OrtApiBase const* const base = getBase == nullptr ? nullptr : getBase();
    if (base == nullptr)
    {
        throw unsupportedError("'" + shown(path, 300)
            + "' is no ONNX Runtime: it has no OrtGetApiBase; give the path of "
              "libonnxruntime.so.");
    }
    mVersion = base->GetVersionString();
    mApi = base->GetApi(kORT_API);
    if (mApi == nullptr)
    {
        throw unsupportedError(
            "ONNX Runtime " + mVersion + " is too old; 1." + std::to_string(kORT_API) + " or newer is needed.");
    }
    int major = 0, minor = 0;
    if (std::sscanf(mVersion.c_str(), "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= kASSIGNMENT_API))
    {
        mApi24 = base->GetApi(kASSIGNMENT_API); // an older one would print that it is too old
    }
    std::string const what = "ONNX Runtime " + mVersion + " cannot be started";
    check(mApi->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "trt_compress", &mEnv), TRTC_ERROR_UNSUPPORTED, what);
    check(mApi->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &mCpu), TRTC_ERROR_UNSUPPORTED, what);
    check(mApi->GetAllocatorWithDefaultOptions(&mAllocator), TRTC_ERROR_UNSUPPORTED, what);
}

OrtLibrary::~OrtLibrary()
{
    if (mApi != nullptr)
    {
        mApi->ReleaseMemoryInfo(mCpu);
        mApi->ReleaseEnv(mEnv);
    }
}

void OrtLibrary::check(OrtStatus* status, trtc_status code, std::string const& what) const
{
    if (status == nullptr)
    {
        return;
    }
    std::string said = mApi->GetErrorMessage(status);
    mApi->ReleaseStatus(status);
    said.resize(std::min(said.find('\n'), said.size()));
    while (!said.empty() && said.back() == '.')
    {
        said.pop_back();
    }
    throw Error(code, what + ": " + shown(said, 600) + ".");
}

ONNXTensorElementDataType ortType(trtc_dtype dtype)
{
    switch (dtype)
    {
    case TRTC_BOOL: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    case TRTC_INT8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case TRTC_UINT8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case TRTC_INT16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16;
    case TRTC_UINT16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16;
    case TRTC_INT32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case TRTC_UINT32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32;
    case TRTC_INT64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case TRTC_UINT64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64;
    case TRTC_FLOAT16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case TRTC_BFLOAT16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case TRTC_FLOAT32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case TRTC_FLOAT64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case TRTC_FLOAT8_E4M3FN: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;
    case TRTC_FLOAT8_E4M3FNUZ: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ;
    case TRTC_FLOAT8_E5M2: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2;
    case TRTC_FLOAT8_E5M2FNUZ: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ;
    default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    }
}

namespace
{

//! Options of one session, released where their name ends.
struct Options
{
    OrtApi const& api;
    OrtSessionOptions* made = nullptr;

    explicit Options(OrtApi const& of)
        : api(of)
    {
    }

    ~Options()
    {
        api.ReleaseSessionOptions(made);
    }
};

} // namespace

OrtGraph::OrtGraph(std::shared_ptr<OrtLibrary> library, Graph const& graph, char const* model, size_t bytes,
    std::vector<Beside> const& beside, OrtOptions const& options)
    : mLibrary(std::move(library))
    , mName(graph.name)
{
    OrtApi const& api = mLibrary->api();
    auto const check = [this](OrtStatus* status, std::string const& what, trtc_status code = TRTC_ERROR_BUNDLE)
    { mLibrary->check(status, code, "ONNX Runtime " + mLibrary->version() + " " + what); };
    Options made(api);
    check(api.CreateSessionOptions(&made.made), "has no options", TRTC_ERROR_UNSUPPORTED);
    auto const enter = [&](char const* key, char const* value)
    { check(api.AddSessionConfigEntry(made.made, key, value), "refuses an option", TRTC_ERROR_UNSUPPORTED); };
    check(api.SetSessionLogSeverityLevel(made.made, ORT_LOGGING_LEVEL_FATAL), "refuses an option",
        TRTC_ERROR_UNSUPPORTED);
    enter("session.load_model_format", "ONNX");
    if (options.threads > 0)
    {
        check(api.SetIntraOpNumThreads(made.made, options.threads), "refuses the threads", TRTC_ERROR_CONFIG);
    }
    if (!options.spin)
    {
        enter("session.intra_op.allow_spinning", "0");
    }
    if (!options.pack)
    {
        enter("session.disable_prepacking", "1");
    }
    if (options.saysWhatIsNative && mLibrary->api24() != nullptr)
    {
        enter("session.record_ep_graph_assignment_info", "1");
    }
    if (!options.nativeLibrary.empty())
    {
        check(api.RegisterCustomOpsLibrary_V2(made.made, options.nativeLibrary.c_str()),
            "cannot load '" + shown(options.nativeLibrary, 300)
                + "' (build it again with 'trt-compress plugins build --force')",
            TRTC_ERROR_PLUGIN);
    }
    if (!beside.empty())
    {
        std::vector<char const*> names;
        std::vector<char*> data;
        std::vector<size_t> sizes;
        for (Beside const& each : beside)
        {
            names.push_back(each.location.c_str());
            data.push_back(const_cast<char*>(each.data)); // it is only read
            sizes.push_back(each.bytes);
        }
        check(api.AddExternalInitializersFromFilesInMemory(
                  made.made, names.data(), data.data(), sizes.data(), names.size()),
            "refuses the weights of '" + shown(graph.file) + "'");
    }
    check(api.CreateSessionFromArray(mLibrary->env(), model, bytes, made.made, &mSession),
        "cannot load '" + shown(graph.file) + "'");
    try
    {
        compare(graph.inputs, true, graph.file);
        compare(graph.outputs, false, graph.file);
    }
    catch (...)
    {
        api.ReleaseSession(mSession);
        throw;
    }
}

OrtGraph::~OrtGraph()
{
    if (mSession != nullptr)
    {
        mLibrary->api().ReleaseSession(mSession);
    }
}

std::set<std::string> OrtGraph::nodesWithKernels(std::string const& domain) const
{
    using List = void const* const*;
    std::set<std::string> found;
    if (mLibrary->api24() == nullptr)
    {
        return found;
    }
    OrtApi const& api = *mLibrary->api24();
    auto const check = [this](OrtStatus* status)
    { mLibrary->check(status, TRTC_ERROR_UNSUPPORTED, "The graph '" + mName + "' does not say how its nodes run"); };
    auto const getParts = functionAt<OrtStatus* (*)(OrtSession const*, List*, size_t*)>(api, kGET_ASSIGNMENT);
    auto const getNodes = functionAt<OrtStatus* (*)(void const*, List*, size_t*)>(api, kGET_NODES);
    auto const getName = functionAt<OrtStatus* (*)(void const*, char const**)>(api, kGET_NODE_NAME);
    auto const getDomain = functionAt<OrtStatus* (*)(void const*, char const**)>(api, kGET_NODE_DOMAIN);
    List parts = nullptr;
    size_t count = 0;
    check(getParts(mSession, &parts, &count));
    for (size_t part = 0; part < count; ++part)
    {
        List nodes = nullptr;
        size_t many = 0;
        check(getNodes(parts[part], &nodes, &many));
        for (size_t at = 0; at < many; ++at)
        {
            char const* of = nullptr;
            char const* name = nullptr;
            check(getDomain(nodes[at], &of));
            check(getName(nodes[at], &name));
            if (of != nullptr && name != nullptr && domain == of)
            {
                found.insert(name);
            }
        }
    }
    return found;
}

void OrtGraph::compare(std::vector<TensorInfo> const& listed, bool isInput, std::string const& file) const
{
    OrtApi const& api = mLibrary->api();
    auto const check = [this](OrtStatus* status)
    { mLibrary->check(status, TRTC_ERROR_BUNDLE, "The graph '" + mName + "' cannot be looked at"); };
    size_t count = 0;
    check(isInput ? api.SessionGetInputCount(mSession, &count) : api.SessionGetOutputCount(mSession, &count));
    std::map<std::string, ONNXTensorElementDataType> found;
    for (size_t at = 0; at < count; ++at)
    {
        char* name = nullptr;
        check(isInput ? api.SessionGetInputName(mSession, at, mLibrary->allocator(), &name)
                      : api.SessionGetOutputName(mSession, at, mLibrary->allocator(), &name));
        std::string const text = name;
        check(api.AllocatorFree(mLibrary->allocator(), name));
        OrtTypeInfo* info = nullptr;
        check(isInput ? api.SessionGetInputTypeInfo(mSession, at, &info)
                      : api.SessionGetOutputTypeInfo(mSession, at, &info));
        OrtTensorTypeAndShapeInfo const* tensor = nullptr;
        auto type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        OrtStatus* status = api.CastTypeInfoToTensorInfo(info, &tensor);
        if (status == nullptr && tensor != nullptr)
        {
            status = api.GetTensorElementType(tensor, &type);
        }
        api.ReleaseTypeInfo(info);
        check(status);
        found[text] = type;
    }
    std::string const advice = "; export the bundle again.";
    if (found.size() != listed.size())
    {
        throw bundleError("'" + shown(file) + "' has " + std::to_string(found.size())
            + (isInput ? " inputs" : " outputs") + ", and the manifest lists " + std::to_string(listed.size())
            + advice);
    }
    for (TensorInfo const& info : listed)
    {
        auto const there = found.find(info.name);
        if (there == found.end())
        {
            throw bundleError("'" + shown(file) + "' has no " + (isInput ? "input" : "output") + " '" + shown(info.name)
                + "', which the manifest lists" + advice);
        }
        trtc_dtype const dtype = dtypeOf(info.dtype);
        if (dtype == TRTC_DTYPE_NONE)
        {
            throw unsupportedError("'" + shown(info.name) + "' is " + info.dtype
                + ", which this library does not carry; export inputs, outputs and states as another.");
        }
        if (there->second != ortType(dtype))
        {
            throw bundleError("'" + shown(info.name) + "' has another dtype in '" + shown(file)
                + "' than the manifest's " + info.dtype + advice);
        }
    }
}

void* OrtTensor::data() const
{
    void* found = nullptr;
    mLibrary->check(
        mLibrary->api().GetTensorMutableData(mValue, &found), TRTC_ERROR_UNSUPPORTED, "A tensor has no memory");
    return found;
}

std::vector<int64_t> OrtTensor::shape() const
{
    OrtApi const& api = mLibrary->api();
    OrtTensorTypeAndShapeInfo* info = nullptr;
    mLibrary->check(api.GetTensorTypeAndShape(mValue, &info), TRTC_ERROR_UNSUPPORTED, "A tensor has no shape");
    size_t rank = 0;
    OrtStatus* status = api.GetDimensionsCount(info, &rank);
    std::vector<int64_t> found(rank);
    if (status == nullptr)
    {
        status = api.GetDimensions(info, found.data(), rank);
    }
    api.ReleaseTensorTypeAndShapeInfo(info);
    mLibrary->check(status, TRTC_ERROR_UNSUPPORTED, "A tensor has no shape");
    return found;
}

Binding::Binding(OrtGraph const& graph, Graph const& spec)
    : mGraph(graph)
{
    for (auto const& [infos, ports] : {std::pair(&spec.inputs, &mInputs), std::pair(&spec.outputs, &mOutputs)})
    {
        for (TensorInfo const& info : *infos)
        {
            Port made{};
            made.name = info.name.c_str();
            made.type = ortType(dtypeOf(info.dtype));
            made.place = SIZE_MAX;
            ports->push_back(made);
        }
    }
    OrtLibrary const& library = graph.library();
    library.check(library.api().CreateIoBinding(graph.session(), &mBinding), TRTC_ERROR_UNSUPPORTED,
        "ONNX Runtime cannot bind memory");
}

Binding::~Binding()
{
    mGraph.library().api().ReleaseIoBinding(mBinding);
}

void Binding::bind(bool isInput, size_t index, void* data, size_t bytes, int64_t const* shape, size_t rank)
{
    Port& port = isInput ? mInputs[index] : mOutputs[index];
    if (port.isTied && port.data == data && port.rank == rank && std::equal(shape, shape + rank, port.shape))
    {
        return;
    }
    OrtLibrary const& library = mGraph.library();
    OrtApi const& api = library.api();
    OrtValue* made = nullptr;
    port.isTied = false;
    library.check(api.CreateTensorWithDataAsOrtValue(
                      library.cpu(), data == nullptr ? &mNothing : data, bytes, shape, rank, port.type, &made),
        TRTC_ERROR_SHAPE, "'" + std::string(port.name) + "' cannot be bound");
    OrtStatus* const status =
        isInput ? api.BindInput(mBinding, port.name, made) : api.BindOutput(mBinding, port.name, made);
    api.ReleaseValue(made); // the binding has it
    library.check(status, TRTC_ERROR_SHAPE, "'" + std::string(port.name) + "' cannot be bound");
    if (!isInput && port.place == SIZE_MAX)
    {
        port.place = mPlaces++;
    }
    port.data = data;
    port.rank = rank;
    std::copy(shape, shape + rank, port.shape);
    port.isTied = true;
}

void Binding::bindAnew(size_t output)
{
    Port& port = mOutputs[output];
    OrtLibrary const& library = mGraph.library();
    library.check(library.api().BindOutputToDevice(mBinding, port.name, library.cpu()), TRTC_ERROR_UNSUPPORTED,
        "'" + std::string(port.name) + "' cannot be bound");
    if (port.place == SIZE_MAX)
    {
        port.place = mPlaces++;
    }
    port.isTied = false;
}

void Binding::run()
{
    OrtLibrary const& library = mGraph.library();
    OrtStatus* const status = library.api().RunWithBinding(mGraph.session(), nullptr, mBinding);
    if (status != nullptr)
    {
        library.check(status, TRTC_ERROR_UNSUPPORTED, "ONNX Runtime failed in the graph '" + mGraph.name() + "'");
    }
}

std::shared_ptr<OrtTensor> Binding::made(size_t output)
{
    OrtLibrary const& library = mGraph.library();
    OrtApi const& api = library.api();
    OrtValue** values = nullptr;
    size_t count = 0;
    library.check(api.GetBoundOutputValues(mBinding, library.allocator(), &values, &count), TRTC_ERROR_UNSUPPORTED,
        "ONNX Runtime gives no outputs");
    std::shared_ptr<OrtTensor> found;
    for (size_t at = 0; at < count; ++at)
    {
        auto each = std::make_shared<OrtTensor>(library, values[at]);
        found = at == mOutputs[output].place ? std::move(each) : found;
    }
    OrtStatus* const status = api.AllocatorFree(library.allocator(), values);
    library.check(status, TRTC_ERROR_UNSUPPORTED, "ONNX Runtime does not take its memory back");
    if (found == nullptr)
    {
        throw Error(TRTC_ERROR_INTERNAL, "An output was bound and is not there.");
    }
    return found;
}

} // namespace trtc::runtime
