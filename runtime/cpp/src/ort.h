// ONNX Runtime on the CPU, found when a session is opened: nothing is linked.
#pragma once

#include "manifest.h"

#include <memory>
#include <onnxruntime_c_api.h>
#include <set>
#include <string>
#include <vector>

namespace trtc::runtime
{

constexpr uint32_t kORT_API = 20; // the oldest that has all that is called here

//! The loaded library. It stays loaded until the process ends, as its threads may.
class OrtLibrary
{
public:
    //! Load it: from a path, or where the loader finds it ("").
    explicit OrtLibrary(std::string const& path);
    OrtLibrary(OrtLibrary const&) = delete;
    OrtLibrary& operator=(OrtLibrary const&) = delete;
    ~OrtLibrary();

    OrtApi const& api() const noexcept
    {
        return *mApi;
    }

    std::string const& version() const noexcept
    {
        return mVersion;
    }

    OrtEnv* env() const noexcept
    {
        return mEnv;
    }

    OrtMemoryInfo* cpu() const noexcept
    {
        return mCpu;
    }

    OrtAllocator* allocator() const noexcept
    {
        return mAllocator;
    }

    //! The interface of version 24, or null.
    OrtApi const* api24() const noexcept
    {
        return mApi24;
    }

    //! Throw what a call said, if it failed: `what` begins the sentence.
    void check(OrtStatus* status, trtc_status code, std::string const& what) const;

private:
    OrtApi const* mApi = nullptr;
    OrtApi const* mApi24 = nullptr;
    OrtEnv* mEnv = nullptr;
    OrtMemoryInfo* mCpu = nullptr;
    OrtAllocator* mAllocator = nullptr;
    std::string mVersion;
};

//! ONNX Runtime's number of a dtype.
ONNXTensorElementDataType ortType(trtc_dtype dtype);

//! Weights that lie beside an ONNX file: the name that it has for the file, and its content.
struct Beside
{
    std::string location;
    char const* data;
    size_t bytes;
};

struct OrtOptions
{
    std::string nativeLibrary; //!< "": the ONNX bodies of operators run
    bool saysWhatIsNative = false;
    int threads = 0;
    bool spin = true;
    bool pack = true;
};

//! One loaded graph. Several threads may run it, each with bindings of its own.
class OrtGraph
{
public:
    OrtGraph(std::shared_ptr<OrtLibrary> library, Graph const& graph, char const* model, size_t bytes,
        std::vector<Beside> const& beside, OrtOptions const& options);
    OrtGraph(OrtGraph const&) = delete;
    OrtGraph& operator=(OrtGraph const&) = delete;
    ~OrtGraph();

    OrtLibrary const& library() const noexcept
    {
        return *mLibrary;
    }

    OrtSession* session() const noexcept
    {
        return mSession;
    }

    std::string const& name() const noexcept
    {
        return mName;
    }

    //! Names of the nodes of a domain that ONNX Runtime has a kernel for, if it was asked to say so; before ONNX
    //! Runtime 1.24 none.
    std::set<std::string> nodesWithKernels(std::string const& domain) const;

private:
    std::shared_ptr<OrtLibrary> mLibrary;
    OrtSession* mSession = nullptr;
    std::string mName;

    void compare(std::vector<TensorInfo> const& listed, bool isInput, std::string const& file) const;
};

//! A tensor's memory as ONNX Runtime has it.
class OrtTensor
{
public:
    OrtTensor(OrtLibrary const& library, OrtValue* value)
        : mLibrary(&library)
        , mValue(value)
    {
    }

    OrtTensor(OrtTensor const&) = delete;
    OrtTensor& operator=(OrtTensor const&) = delete;

    ~OrtTensor()
    {
        mLibrary->api().ReleaseValue(mValue);
    }

    OrtValue* value() const noexcept
    {
        return mValue;
    }

    void* data() const;
    std::vector<int64_t> shape() const;

private:
    OrtLibrary const* mLibrary;
    OrtValue* mValue;
};

//! A graph with memory tied to its tensors; for one thread at a time. What stays where it was is told once.
class Binding
{
public:
    Binding(OrtGraph const& graph, Graph const& spec);
    Binding(Binding const&) = delete;
    Binding& operator=(Binding const&) = delete;
    ~Binding();

    //! Tie memory to an input or output, by its number in the manifest.
    void bind(bool isInput, size_t index, void* data, size_t bytes, int64_t const* shape, size_t rank);

    //! Let ONNX Runtime make the memory of an output in the next run.
    void bindAnew(size_t output);

    void run();

    //! The memory that the last run made for an output of `bindAnew`.
    std::shared_ptr<OrtTensor> made(size_t output);

private:
    struct Port
    {
        char const* name;
        ONNXTensorElementDataType type;
        void* data = nullptr;
        int64_t shape[TRTC_MOST_AXES] = {};
        size_t rank = 0;
        size_t place = SIZE_MAX; //!< of an output: its number in the order in which they were first bound
        bool isTied = false;
    };

    OrtGraph const& mGraph;
    OrtIoBinding* mBinding = nullptr;
    std::vector<Port> mInputs, mOutputs;
    size_t mPlaces = 0;
    char mNothing = 0; //!< where an empty tensor begins
};

} // namespace trtc::runtime
