#include "loaded.h"

#include "error.h"
#include "in_place.h"
#include "initial.h"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <stdexcept>
#include <tuple>

namespace trtc::runtime
{
namespace
{

constexpr uint64_t kSHARED_AND_PACKED = uint64_t{64} << 20;
constexpr size_t kALIGNMENT = 64;

} // namespace

void FreesMemory::operator()(char* data) const noexcept
{
    std::free(data);
}

Memory newMemory(size_t bytes)
{
    if (bytes > SIZE_MAX / 2)
    {
        throw Error(TRTC_ERROR_MEMORY, "A tensor would take more memory than there is; run fewer sequences.");
    }
    size_t const whole = std::max((bytes + kALIGNMENT - 1) / kALIGNMENT * kALIGNMENT, kALIGNMENT);
    auto* const found = static_cast<char*>(std::aligned_alloc(kALIGNMENT, whole));
    if (found == nullptr)
    {
        throw Error(TRTC_ERROR_MEMORY,
            "There is no memory for a tensor of " + std::to_string(bytes)
                + " bytes; run fewer sequences, or give a smaller capacity.");
    }
    return Memory(found);
}

std::string shapeText(int64_t const* shape, size_t rank)
{
    std::string found = "[";
    for (size_t at = 0; at < rank; ++at)
    {
        found += (at ? ", " : "") + std::to_string(shape[at]);
    }
    return found + "]";
}

Loaded::Loaded(std::string const& path, LoadOptions const& options)
    : bundle(path, options.checkHashes, options.requireDigest)
{
    load(options);
    wire();
    for (StateSpec& state : states)
    {
        if (Json const* const file = state.spec->initial.find("file"))
        {
            state.initial = bundle.content(file->text);
        }
    }
    bundle.checkRest();
    bundle.forget();
}

std::vector<std::vector<Stored>> Loaded::readStored(std::vector<Graph const*> const& wanted)
{
    std::vector<std::vector<Stored>> found;
    for (Graph const* graph : wanted)
    {
        auto const content = bundle.content(graph->file);
        std::string const what = "'" + shown(graph->file) + "' of the bundle ";
        try
        {
            found.push_back(storedOutside(content->data(), content->size()));
        }
        catch (std::invalid_argument const& error)
        {
            throw bundleError(what + "cannot be read (" + error.what() + "); export the bundle again.");
        }
        auto const slash = graph->file.rfind('/');
        std::string const folder = slash == std::string::npos ? "" : graph->file.substr(0, slash + 1);
        for (Stored& each : found.back())
        {
            std::string const takes = what + "takes '" + shown(each.name) + "' from '" + shown(each.location) + "'";
            std::string const problem = pathProblem(each.location);
            if (!problem.empty())
            {
                throw bundleError(takes + ", which " + problem
                    + "; export the bundle again, its weights beside the ONNX "
                      "file.");
            }
            auto const file = bundle.manifest().files.find(folder + each.location);
            if (file == bundle.manifest().files.end())
            {
                throw bundleError(takes
                    + ", which the manifest does not list, so nothing says what it is; export it "
                      "again.");
            }
            auto const size = static_cast<uint64_t>(file->second.bytes);
            if (each.offset > size || (each.hasLength && each.length > size - each.offset))
            {
                throw bundleError(takes + ", which ends before it; export the bundle again.");
            }
            if (!each.isWeight)
            {
                throw unsupportedError(takes
                    + ", and it is an attribute of a node; this library hands over weights of "
                      "the main graph alone: write it into the ONNX file.");
            }
        }
    }
    return found;
}

void Loaded::load(LoadOptions const& options)
{
    Manifest const& manifest = bundle.manifest();
    std::vector<Graph const*> wanted;
    for (std::string const& name : options.graphs)
    {
        if (manifest.graph(name) == nullptr)
        {
            throw bundleError("The bundle has no graph '" + shown(name) + "'.");
        }
    }
    for (Graph const& graph : manifest.graphs)
    {
        if (options.graphs.empty()
            || std::find(options.graphs.begin(), options.graphs.end(), graph.name) != options.graphs.end())
        {
            wanted.push_back(&graph);
        }
    }
    auto const stored = readStored(wanted);
    // What one graph packs the other cannot use: graphs that share large weights would have a copy each.
    std::map<std::tuple<std::string, uint64_t, uint64_t>, int> counted;
    for (auto const& each : stored)
    {
        std::set<std::tuple<std::string, uint64_t, uint64_t>> mine;
        for (Stored const& tensor : each)
        {
            mine.emplace(tensor.location, tensor.offset, tensor.length);
        }
        for (auto const& key : mine)
        {
            ++counted[key];
        }
    }
    uint64_t shared = 0;
    for (auto const& [key, count] : counted)
    {
        shared += count > 1 ? std::get<2>(key) : 0;
    }
    ort = std::make_shared<OrtLibrary>(options.onnxruntime);
    for (size_t at = 0; at < wanted.size(); ++at)
    {
        auto const slash = wanted[at]->file.rfind('/');
        std::string const folder = slash == std::string::npos ? "" : wanted[at]->file.substr(0, slash + 1);
        std::map<std::string, std::shared_ptr<Content const>> files;
        for (Stored const& tensor : stored[at])
        {
            files.emplace(tensor.location, bundle.content(folder + tensor.location));
        }
        std::vector<Beside> beside;
        for (auto const& [location, content] : files)
        {
            beside.push_back({location, content->data(), content->size()});
        }
        OrtOptions how;
        how.nativeLibrary = manifest.hasOperators ? options.nativeLibrary : "";
        how.threads = options.threads;
        how.spin = options.spin;
        auto const model = bundle.content(wanted[at]->file);
        std::map<std::string, std::string> carried; // outputs of states and their inputs
        for (State const& state : manifest.states)
        {
            if (state.graph == wanted[at]->name && state.input && state.output)
            {
                carried[*state.output] = *state.input;
            }
        }
        std::vector<OnnxNode> nodes;
        std::map<std::string, std::vector<OnnxNode const*>> writers;
        if (!how.nativeLibrary.empty() && !carried.empty())
        {
            std::set<std::string> given;
            for (TensorInfo const& info : wanted[at]->outputs)
            {
                given.insert(info.name);
            }
            nodes = nodesOf(model->data(), model->size());
            writers = writersOf(nodes, carried, given, aliasesOf(how.nativeLibrary));
            how.saysWhatIsNative = !writers.empty();
        }
        how.pack =
            wanted.size() == 1 || shared <= kSHARED_AND_PACKED || manifest.quantizedGraphs.count(wanted[at]->name) != 0;
        LoadedGraph made;
        made.spec = wanted[at];
        made.ort = std::make_unique<OrtGraph>(ort, *wanted[at], model->data(), model->size(), beside, how);
        if (how.saysWhatIsNative)
        {
            made.mayBeInPlace = inPlace(writers, nodes, made.ort->nodesWithKernels(kDOMAIN));
        }
        graphs.push_back(std::move(made));
    }
}

size_t Loaded::symbolOf(std::string const& name)
{
    size_t const found = symbol(name);
    if (found != kNONE)
    {
        return found;
    }
    Symbol made;
    made.name = name;
    made.capacity = bundle.manifest().capacity(name);
    if (made.capacity != nullptr)
    {
        Range const& range = bundle.manifest().lengths.at(name);
        made.least = range.min;
        made.most = range.max;
    }
    symbols.push_back(made);
    return symbols.size() - 1;
}

std::vector<Axis> Loaded::axesOf(Dims const& dims)
{
    std::vector<Axis> found;
    for (Dim const& dim : dims)
    {
        found.push_back({dim.length, dim.isNumber() ? kNONE : symbolOf(dim.symbol)});
    }
    return found;
}

void Loaded::wire()
{
    Manifest const& manifest = bundle.manifest();
    batch = symbolOf("batch");
    std::set<std::string> given; // symbols of inputs that are no states
    for (Graph const& graph : manifest.graphs)
    {
        for (TensorInfo const& info : graph.inputs)
        {
            bool const isState = std::any_of(manifest.states.begin(), manifest.states.end(),
                [&](State const& state) { return state.graph == graph.name && state.input == info.name; });
            for (Dim const& dim : info.shape)
            {
                if (!isState && !dim.isNumber())
                {
                    given.insert(dim.symbol);
                }
            }
        }
    }
    for (State const& state : manifest.states)
    {
        if (graph(state.graph) == kNONE || this->state(state.key()) != kNONE)
        {
            continue;
        }
        StateSpec made;
        made.key = state.key();
        made.dtype = dtypeOf(state.dtype);
        made.itemBytes = trtc_dtype_bytes(made.dtype);
        made.axes = axesOf(state.shape);
        made.spec = &state;
        for (size_t at = 0; at < made.axes.size(); ++at)
        {
            size_t const id = made.axes[at].symbol;
            made.batchAxis = id == batch && id != kNONE ? at : made.batchAxis;
            if (id != kNONE && symbols[id].capacity == nullptr && given.count(symbols[id].name) == 0)
            {
                made.grows = true;
                symbols[id].grows = true;
                symbols[id].most = state.capacity.value_or(-1);
            }
        }
        if (made.dtype == TRTC_DTYPE_NONE)
        {
            throw unsupportedError("The state '" + shown(made.key) + "' is " + state.dtype
                + ", which this library does not carry; export the states as another.");
        }
        states.push_back(std::move(made));
    }
    std::map<std::string, std::string> linked;
    for (Link const& link : manifest.links)
    {
        if (graph(graphOf(link.source)) != kNONE && graph(graphOf(link.to)) != kNONE)
        {
            linked[link.to] = link.source;
        }
    }
    std::map<std::string, size_t> slots; // of outputs, by `graph.tensor`
    std::vector<std::set<std::string>> swappers(states.size());
    std::map<std::string, int> carriers;
    for (LoadedGraph& each : graphs)
    {
        std::set<size_t> known;
        for (bool const isInput : {true, false})
        {
            for (TensorInfo const& info : isInput ? each.spec->inputs : each.spec->outputs)
            {
                Port made;
                made.name = info.name;
                made.whole = each.spec->name + "." + info.name;
                made.dtype = dtypeOf(info.dtype);
                made.itemBytes = trtc_dtype_bytes(made.dtype);
                made.axes = axesOf(info.shape);
                for (State const& state : manifest.states)
                {
                    if (state.graph == each.spec->name && (isInput ? state.input : state.output) == info.name)
                    {
                        made.state = this->state(state.key());
                        each.states.push_back(made.state);
                    }
                }
                if (isInput)
                {
                    for (Axis const& axis : made.axes)
                    {
                        known.insert(axis.symbol);
                    }
                }
                else
                {
                    made.isDetermined = std::all_of(made.axes.begin(), made.axes.end(),
                        [&](Axis const& axis) { return axis.symbol == kNONE || known.count(axis.symbol) != 0; });
                }
                auto const link = linked.find(made.whole);
                if (made.state == kNONE)
                {
                    made.isGiven = isInput && link == linked.end();
                    if (!made.isGiven && isInput && slots.count(link->second) == 0)
                    {
                        throw bundleError("'" + shown(link->second) + "' is linked to '" + shown(made.whole)
                            + "' and is a state; export the bundle again.");
                    }
                    made.slot = isInput && !made.isGiven ? slots.at(link->second) : numSlots++;
                    slots[made.whole] = made.slot;
                }
                else if (!isInput && !states[made.state].grows && each.mayBeInPlace.count(made.name) != 0)
                {
                    made.isInPlace = true;
                    each.inPlace.push_back(made.state);
                }
                else if (!isInput && !states[made.state].grows)
                {
                    swappers[made.state].insert(each.spec->name);
                }
                (isInput ? each.inputs : each.outputs).push_back(std::move(made));
            }
        }
        std::sort(each.states.begin(), each.states.end());
        each.states.erase(std::unique(each.states.begin(), each.states.end()), each.states.end());
        for (State const& state : manifest.states)
        {
            if (state.graph == each.spec->name && state.input && state.output && ++carriers[state.key()] > 1)
            {
                alternative = state.key();
            }
        }
    }
    std::map<std::set<std::string>, size_t> turns; // one for all states that the same graphs swap
    for (size_t at = 0; at < states.size(); ++at)
    {
        states[at].turn = turns.emplace(swappers[at], turns.size()).first->second;
    }
    numTurns = turns.size();
    if (numTurns > 64)
    {
        throw unsupportedError("The graphs of this bundle share their states in too many ways for this library.");
    }
    std::set<std::string> sources;
    for (auto const& [to, source] : linked)
    {
        sources.insert(source);
    }
    for (LoadedGraph& each : graphs)
    {
        everyGraph.push_back(everyGraph.size());
        for (auto const& [ports, open] :
            {std::pair(&each.inputs, &each.openInputs), std::pair(&each.outputs, &each.openOutputs)})
        {
            for (Port const& port : *ports)
            {
                if (port.state == kNONE)
                {
                    open->push_back(&port);
                }
            }
        }
        std::set<size_t> mine, goesOn;
        for (size_t const state : each.states)
        {
            if (!states[state].grows && !swappers[state].empty())
            {
                mine.insert(states[state].turn);
                if (swappers[state].count(each.spec->name) != 0)
                {
                    goesOn.insert(states[state].turn);
                }
            }
        }
        each.turns.assign(mine.begin(), mine.end());
        each.swapped.assign(goesOn.begin(), goesOn.end());
        for (Port const& port : each.inputs)
        {
            if (port.isGiven)
            {
                inputs.push_back(&port);
            }
        }
        for (Port const& port : each.outputs)
        {
            if (port.state == kNONE && sources.count(port.whole) == 0)
            {
                outputs.push_back(&port);
            }
        }
    }
}

size_t Loaded::graph(std::string const& name) const
{
    auto const found =
        std::find_if(graphs.begin(), graphs.end(), [&](LoadedGraph const& each) { return each.spec->name == name; });
    return found == graphs.end() ? kNONE : static_cast<size_t>(found - graphs.begin());
}

size_t Loaded::state(std::string const& key) const
{
    auto const found =
        std::find_if(states.begin(), states.end(), [&](StateSpec const& each) { return each.key == key; });
    return found == states.end() ? kNONE : static_cast<size_t>(found - states.begin());
}

size_t Loaded::symbol(std::string const& name) const
{
    auto const found =
        std::find_if(symbols.begin(), symbols.end(), [&](Symbol const& each) { return each.name == name; });
    return found == symbols.end() ? kNONE : static_cast<size_t>(found - symbols.begin());
}

void Loaded::initial(StateSpec const& state, std::vector<int64_t> const& shape, char* into) const
{
    fillInitial(*state.spec, state.dtype, state.initial.get(), shape, into);
}

} // namespace trtc::runtime
