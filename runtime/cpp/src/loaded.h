// The graphs of a bundle as they were loaded, with every name made a number: what states and sequences run.
#pragma once

#include "bundle.h"
#include "onnx_file.h"
#include "ort.h"

#include <atomic>
#include <memory>

namespace trtc::runtime
{

constexpr size_t kNONE = SIZE_MAX;

//! Memory of a tensor, with an address that suits every vector unit.
struct FreesMemory
{
    void operator()(char* data) const noexcept;
};

using Memory = std::unique_ptr<char[], FreesMemory>;

//! Memory of so many bytes; it is not set. Throws Error (TRTC_ERROR_MEMORY).
Memory newMemory(size_t bytes);

//! The length of an axis: a number, or the number of a symbol.
struct Axis
{
    int64_t length = 0;
    size_t symbol = kNONE;
};

//! A tensor of a graph.
struct Port
{
    std::string name, whole; //!< bare, and as `graph.tensor`
    trtc_dtype dtype = TRTC_DTYPE_NONE;
    size_t itemBytes = 0;
    std::vector<Axis> axes;
    size_t state = kNONE;      //!< the state that it reads or writes
    size_t slot = kNONE;       //!< where its value is in a run: an output's own, and what it is linked to
    bool isGiven = false;      //!< of an input: neither a state nor linked
    bool isDetermined = false; //!< of an output: its shape follows from those of inputs and states
    bool isInPlace = false;    //!< of an output: it is written into the memory of the state
};

struct LoadedGraph
{
    Graph const* spec = nullptr;
    std::unique_ptr<OrtGraph> ort;
    std::vector<Port> inputs, outputs;
    std::vector<Port const*> openInputs, openOutputs; //!< those that are no states
    std::vector<size_t> states;                       //!< all that it reads or writes
    std::vector<size_t> turns;                        //!< numbers of the turns of those that are swapped
    std::vector<size_t> swapped;                      //!< turns that go on when it has run
    std::set<std::string> mayBeInPlace;               //!< outputs of states that have the memory of their inputs
    std::vector<size_t> inPlace;                      //!< states that it writes in place
};

//! A state, as the first graph that has it declares it.
struct StateSpec
{
    std::string key;
    trtc_dtype dtype = TRTC_DTYPE_NONE;
    size_t itemBytes = 0;
    std::vector<Axis> axes;
    bool grows = false;
    size_t turn = 0;
    size_t batchAxis = kNONE;
    State const* spec = nullptr;
    std::shared_ptr<Content const> initial; //!< of a file
};

struct Symbol
{
    std::string name;
    bool grows = false;
    Capacity const* capacity = nullptr;
    int64_t least = 1;
    int64_t most = -1; //!< -1: any
};

struct LoadOptions
{
    std::string onnxruntime, nativeLibrary, requireDigest;
    std::vector<std::string> graphs;
    int threads = 0;
    bool spin = true;
    bool checkHashes = true;
};

class Loaded
{
public:
    Loaded(std::string const& path, LoadOptions const& options);

    Bundle bundle;
    std::shared_ptr<OrtLibrary> ort;
    std::vector<LoadedGraph> graphs;
    std::vector<StateSpec> states;
    std::vector<Symbol> symbols;
    size_t batch = kNONE; //!< number of the symbol "batch"
    size_t numTurns = 0;
    size_t numSlots = 0;
    std::vector<Port const*> inputs, outputs; //!< of a run of all graphs
    std::vector<size_t> everyGraph;
    std::string alternative; //!< a state that several graphs carry on, so that one has to be chosen
    std::atomic<bool> isClosed{false};

    size_t graph(std::string const& name) const; //!< kNONE: it is not loaded
    size_t state(std::string const& key) const;
    size_t symbol(std::string const& name) const;

    //! The name of a port in a run of all graphs.
    std::string const& publicName(Port const& port) const
    {
        return graphs.size() == 1 ? port.name : port.whole;
    }

    //! What a state holds before the first run, into memory of this shape.
    void initial(StateSpec const& state, std::vector<int64_t> const& shape, char* into) const;

private:
    void load(LoadOptions const& options);
    void wire();
    size_t symbolOf(std::string const& name);
    std::vector<Axis> axesOf(Dims const& dims);
    std::vector<std::vector<Stored>> readStored(std::vector<Graph const*> const& wanted);
};

//! Number of elements of a shape.
inline size_t elementsOf(int64_t const* shape, size_t rank) noexcept
{
    size_t found = 1;
    for (size_t at = 0; at < rank; ++at)
    {
        found *= static_cast<size_t>(shape[at]);
    }
    return found;
}

//! "[2, 3]".
std::string shapeText(int64_t const* shape, size_t rank);

} // namespace trtc::runtime
