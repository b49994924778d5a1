// The C interface: handles are checked, exceptions become a status and a sentence.

#include "api_call.h"

#include <cstdlib>

using namespace trtc::runtime;

namespace
{

void describe(Loaded const& loaded, std::string const& name, trtc_dtype dtype, std::vector<Axis> const& axes,
    trtc_tensor_info& info)
{
    info = {};
    info.name = name.c_str();
    info.dtype = dtype;
    info.rank = static_cast<int32_t>(axes.size());
    for (size_t at = 0; at < axes.size(); ++at)
    {
        bool const isNumber = axes[at].symbol == kNONE;
        info.shape[at] = isNumber ? axes[at].length : -1;
        info.symbols[at] = isNumber ? nullptr : loaded.symbols[axes[at].symbol].name.c_str();
    }
}

trtc_status describeOne(
    trtc_session const* session, std::vector<Port const*> Loaded::* side, size_t index, trtc_tensor_info* info) noexcept
{
    return guarded(
        [&]
        {
            needs(session, "session");
            needs(info, "info");
            Loaded const& loaded = *session->loaded;
            auto const& ports = loaded.*side;
            if (index >= ports.size())
            {
                throw configError(
                    "index=" + std::to_string(index) + "; there are " + std::to_string(ports.size()) + ".");
            }
            describe(loaded, loaded.publicName(*ports[index]), ports[index]->dtype, ports[index]->axes, *info);
        });
}

Port const& portOf(
    std::vector<Port const*> const& ports, Loaded const& loaded, char const* name, char const* what, bool byOwnName)
{
    needs(name, "the name of a tensor");
    for (Port const* port : ports)
    {
        if ((byOwnName ? port->name : loaded.publicName(*port)) == name)
        {
            return *port;
        }
    }
    std::string there;
    for (Port const* port : ports)
    {
        there += (there.empty() ? "" : ", ") + (byOwnName ? port->name : loaded.publicName(*port));
    }
    throw configError(std::string(what) + " '" + shown(name) + "' is not known; there is "
        + (there.empty() ? "none" : shown(there, 600)) + ".");
}

void giveAndTake(States& states, std::vector<Port const*> const& inputs, std::vector<Port const*> const& outputs,
    bool byOwnName, trtc_tensor const* given, size_t numGiven, trtc_tensor* taken, size_t numTaken)
{
    if (numGiven != 0)
    {
        needs(given, "inputs");
    }
    if (numTaken != 0)
    {
        needs(taken, "outputs");
    }
    states.begin();
    for (size_t at = 0; at < numGiven; ++at)
    {
        Port const& port = portOf(inputs, states.loaded(), given[at].name, "Input", byOwnName);
        states.give(port.slot, viewOf(given[at], port));
    }
    for (size_t at = 0; at < numTaken; ++at)
    {
        states.take(portOf(outputs, states.loaded(), taken[at].name, "Output", byOwnName).slot, &taken[at]);
    }
}

void fillIn(
    States const& states, std::vector<Port const*> const& outputs, bool byOwnName, trtc_tensor* taken, size_t numTaken)
{
    for (size_t at = 0; at < numTaken; ++at)
    {
        Port const& port = portOf(outputs, states.loaded(), taken[at].name, "Output", byOwnName);
        View const& view = states.slot(port.slot);
        taken[at].dtype = port.dtype;
        taken[at].rank = static_cast<int32_t>(view.rank);
        std::copy(view.shape, view.shape + view.rank, taken[at].shape);
    }
}

} // namespace

extern "C" {

char const* trtc_last_error(void)
{
    return lastError().c_str();
}

char const* trtc_version(void)
{
    return TRTC_VERSION_TEXT;
}

trtc_status trtc_session_open(char const* path, trtc_session_options const* options, trtc_session** session)
{
    if (session != nullptr)
    {
        *session = nullptr;
    }
    return guarded(
        [&]
        {
            needs(path, "path");
            needs(session, "session");
            trtc_session_options const given = known(options);
            std::string const backend = textOrNone(given.backend);
            if (!backend.empty() && backend != "ort-cpu")
            {
                throw configError("backend '" + shown(backend, 60) + "' is not known; there is ort-cpu.");
            }
            if (given.threads < 0)
            {
                throw configError("threads=" + std::to_string(given.threads)
                    + "; give at least 1, or 0 for the backend's own choice.");
            }
            LoadOptions how;
            how.onnxruntime = textOrNone(given.onnxruntime);
            how.nativeLibrary = textOrNone(given.native_library);
            how.requireDigest = textOrNone(given.require_digest);
            if (given.graphs != nullptr && given.num_graphs == 0)
            {
                throw configError("graphs names none; give at least one, or NULL for all.");
            }
            for (size_t at = 0; given.graphs != nullptr && at < given.num_graphs; ++at)
            {
                needs(given.graphs[at], "the name of a graph");
                how.graphs.emplace_back(given.graphs[at]);
            }
            how.threads = given.threads;
            how.spin = given.no_spin == 0;
            how.checkHashes = given.do_not_check_hashes == 0;
            auto made = std::make_unique<trtc_session>();
            made->loaded = std::make_shared<Loaded>(path, how);
            *session = made.release();
        });
}

void trtc_session_free(trtc_session** session)
{
    if (session != nullptr && *session != nullptr)
    {
        (*session)->loaded->isClosed.store(true);
        delete *session;
        *session = nullptr;
    }
}

char const* trtc_session_digest(trtc_session const* session)
{
    return session == nullptr ? nullptr : session->loaded->bundle.manifest().digest.c_str();
}

char const* trtc_session_backend_version(trtc_session const* session)
{
    return session == nullptr ? nullptr : session->loaded->ort->version().c_str();
}

size_t trtc_session_num_inputs(trtc_session const* session)
{
    return session == nullptr ? 0 : session->loaded->inputs.size();
}

size_t trtc_session_num_outputs(trtc_session const* session)
{
    return session == nullptr ? 0 : session->loaded->outputs.size();
}

trtc_status trtc_session_input(trtc_session const* session, size_t index, trtc_tensor_info* info)
{
    return describeOne(session, &Loaded::inputs, index, info);
}

trtc_status trtc_session_output(trtc_session const* session, size_t index, trtc_tensor_info* info)
{
    return describeOne(session, &Loaded::outputs, index, info);
}

size_t trtc_session_num_states(trtc_session const* session)
{
    return session == nullptr ? 0 : session->loaded->states.size();
}

trtc_status trtc_session_state(trtc_session const* session, size_t index, trtc_tensor_info* info)
{
    return guarded(
        [&]
        {
            needs(session, "session");
            needs(info, "info");
            Loaded const& loaded = *session->loaded;
            if (index >= loaded.states.size())
            {
                throw configError(
                    "index=" + std::to_string(index) + "; there are " + std::to_string(loaded.states.size()) + ".");
            }
            StateSpec const& spec = loaded.states[index];
            describe(loaded, spec.key, spec.dtype, spec.axes, *info);
        });
}

size_t trtc_session_num_graphs(trtc_session const* session)
{
    return session == nullptr ? 0 : session->loaded->graphs.size();
}

char const* trtc_session_graph(trtc_session const* session, size_t index)
{
    return session == nullptr || index >= session->loaded->graphs.size()
        ? nullptr
        : session->loaded->graphs[index].spec->name.c_str();
}

trtc_status trtc_session_read_file(trtc_session const* session, char const* name, char** data, size_t* bytes)
{
    return guarded(
        [&]
        {
            needs(session, "session");
            needs(name, "name");
            needs(data, "data");
            needs(bytes, "bytes");
            *data = nullptr;
            *bytes = 0;
            auto const content = session->loaded->bundle.read(name);
            *data = copied(content->data(), content->size());
            *bytes = content->size();
        });
}

trtc_status trtc_session_manifest(trtc_session const* session, char** json, size_t* bytes)
{
    return guarded(
        [&]
        {
            needs(session, "session");
            needs(json, "json");
            needs(bytes, "bytes");
            std::string const& text = session->loaded->bundle.manifestText();
            *json = copied(text.data(), text.size());
            *bytes = text.size();
        });
}

void trtc_bytes_free(char** data)
{
    if (data != nullptr)
    {
        std::free(*data);
        *data = nullptr;
    }
}

trtc_status trtc_states_new(trtc_session const* session, trtc_states_options const* options, trtc_states** states)
{
    if (states != nullptr)
    {
        *states = nullptr;
    }
    return guarded(
        [&]
        {
            needs(session, "session");
            needs(states, "states");
            trtc_states_options const given = known(options);
            auto made = std::make_unique<trtc_states>();
            made->mine = std::make_unique<States>(session->loaded, given.batch, given.capacity);
            made->states = made->mine.get();
            *states = made.release();
        });
}

void trtc_states_free(trtc_states** states)
{
    if (states != nullptr && *states != nullptr)
    {
        if ((*states)->mine != nullptr) // else they are the sequences'
        {
            delete *states;
        }
        *states = nullptr;
    }
}

trtc_status trtc_states_reset(trtc_states* states)
{
    return guarded(
        [&]
        {
            needs(states, "states");
            Claim const claim(*states->states);
            states->states->reset();
        });
}

trtc_status trtc_states_fork(trtc_states* states, trtc_states** copy)
{
    if (copy != nullptr)
    {
        *copy = nullptr;
    }
    return guarded(
        [&]
        {
            needs(states, "states");
            needs(copy, "copy");
            Claim const claim(*states->states);
            auto made = std::make_unique<trtc_states>();
            made->mine = states->states->fork();
            made->states = made->mine.get();
            *copy = made.release();
        });
}

trtc_status trtc_states_keep(trtc_states* states, size_t const* rows, size_t num_rows)
{
    return guarded(
        [&]
        {
            needs(states, "states");
            Claim const claim(*states->states);
            states->states->keep(rowsOf(rows, num_rows));
        });
}

trtc_status trtc_states_value(trtc_states* states, trtc_tensor* value)
{
    return guarded(
        [&]
        {
            needs(states, "states");
            needs(value, "value");
            needs(value->name, "the name of a state");
            Claim const claim(*states->states);
            States& held = *states->states;
            size_t const number = held.loaded().state(value->name);
            if (number == kNONE)
            {
                throw configError("There is no state '" + shown(value->name) + "'.");
            }
            StateSpec const& spec = held.loaded().states[number];
            value->dtype = spec.dtype;
            value->rank = -1;
            char const* const data = held.current(number);
            if (data == nullptr)
            {
                value->bytes = value->data == nullptr ? 0 : value->bytes;
                return;
            }
            std::vector<int64_t> const& shape = held.value(number).shape;
            size_t const bytes = elementsOf(shape.data(), shape.size()) * spec.itemBytes;
            if (value->data != nullptr && value->bytes < bytes)
            {
                throw shapeError("The state '" + shown(value->name) + "' has " + std::to_string(bytes)
                    + " bytes, and the buffer " + std::to_string(value->bytes) + "; give a larger one.");
            }
            value->rank = static_cast<int32_t>(shape.size());
            std::copy(shape.begin(), shape.end(), value->shape);
            if (value->data == nullptr)
            {
                value->bytes = bytes;
                return;
            }
            std::memcpy(value->data, data, bytes);
        });
}

void const* trtc_states_data(trtc_states const* states, char const* name)
{
    size_t const number = states == nullptr || name == nullptr ? kNONE : states->states->loaded().state(name);
    return number == kNONE ? nullptr : states->states->current(number);
}

trtc_status trtc_run(
    trtc_states* states, trtc_tensor const* inputs, size_t num_inputs, trtc_tensor* outputs, size_t num_outputs)
{
    return guarded(
        [&]
        {
            needs(states, "states");
            States& held = *states->states;
            Loaded const& loaded = held.loaded();
            Claim const claim(held);
            if (!loaded.alternative.empty())
            {
                throw configError("Several graphs carry on the same state '" + shown(loaded.alternative)
                    + "', so one run takes one of them; call trtc_run_graph.");
            }
            giveAndTake(held, loaded.inputs, loaded.outputs, false, inputs, num_inputs, outputs, num_outputs);
            held.run(loaded.everyGraph.data(), loaded.everyGraph.size());
            fillIn(held, loaded.outputs, false, outputs, num_outputs);
        });
}

trtc_status trtc_run_graph(trtc_states* states, char const* graph, trtc_tensor const* inputs, size_t num_inputs,
    trtc_tensor* outputs, size_t num_outputs)
{
    return guarded(
        [&]
        {
            needs(states, "states");
            needs(graph, "graph");
            States& held = *states->states;
            Claim const claim(held);
            size_t const number = held.loaded().graph(graph);
            if (number == kNONE)
            {
                throw configError("graph '" + shown(graph) + "' is not loaded.");
            }
            LoadedGraph const& of = held.loaded().graphs[number];
            giveAndTake(held, of.openInputs, of.openOutputs, true, inputs, num_inputs, outputs, num_outputs);
            held.run(&number, 1);
            fillIn(held, of.openOutputs, true, outputs, num_outputs);
        });
}

} // extern "C"
