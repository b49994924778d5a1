#include "manifest.h"

#include "error.h"
#include "record.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace trtc::runtime
{
namespace
{

constexpr int64_t kMOST_ELEMENTS = (int64_t{1} << 31) - 1; // of one tensor, as TensorRT has it
constexpr size_t kLONGEST_NAME = 200;
constexpr size_t kLONGEST_PATH = 1000;

// The fields were checked by the table: what is read here has its type, or is not there.

std::string textOf(Json const& from, char const* name, char const* fallback = "")
{
    Json const* const found = from.find(name);
    return found != nullptr && found->is(Json::Kind::kSTRING) ? found->text : fallback;
}

std::optional<std::string> optionalText(Json const& from, char const* name)
{
    Json const* const found = from.find(name);
    return found != nullptr && found->is(Json::Kind::kSTRING) ? std::optional(found->text) : std::nullopt;
}

std::optional<int64_t> optionalInteger(Json const& from, char const* name)
{
    Json const* const found = from.find(name);
    return found != nullptr && found->is(Json::Kind::kINT) ? std::optional(found->integer) : std::nullopt;
}

std::vector<Json> const& itemsOf(Json const& from, char const* name)
{
    static std::vector<Json> const kNONE;
    Json const* const found = from.find(name);
    return found == nullptr ? kNONE : found->items;
}

std::map<std::string, Json> const& membersOf(Json const& from, char const* name)
{
    static std::map<std::string, Json> const kNONE;
    Json const* const found = from.find(name);
    return found == nullptr ? kNONE : found->members;
}

std::vector<std::string> textsOf(Json const& from, char const* name)
{
    std::vector<std::string> found;
    for (Json const& each : itemsOf(from, name))
    {
        found.push_back(each.text);
    }
    return found;
}

[[noreturn]] void refuse(std::string const& what)
{
    throw bundleError("manifest.json: " + what + ".");
}

void checkName(std::string const& name, std::string const& what)
{
    bool const isPrintable = std::none_of(
        name.begin(), name.end(), [](char each) { return static_cast<unsigned char>(each) < 0x20 || each == 0x7F; });
    if (name.empty() || name.size() > 4 * kLONGEST_NAME || !isPrintable)
    {
        refuse(what + " has the name '" + shown(name, 60) + "', which cannot be one");
    }
}

Dim dimOf(Json const& from)
{
    Dim made;
    if (from.is(Json::Kind::kSTRING))
    {
        checkName(from.text, "an axis");
        made.symbol = from.text;
        return made;
    }
    if (from.integer < 0 || from.integer > kMOST_ELEMENTS)
    {
        refuse("an axis is " + from.text + "; it is a name, or a number from 0 to " + std::to_string(kMOST_ELEMENTS));
    }
    made.length = from.integer;
    return made;
}

Dims dimsOf(Json const& from, std::string const& what)
{
    Dims found;
    int64_t elements = 1;
    for (Json const& each : itemsOf(from, "shape"))
    {
        found.push_back(dimOf(each));
        if (found.back().isNumber() && (elements *= std::max<int64_t>(found.back().length, 1)) > kMOST_ELEMENTS)
        {
            refuse(what + " has more than " + std::to_string(kMOST_ELEMENTS) + " elements");
        }
    }
    if (found.size() > TRTC_MOST_AXES)
    {
        refuse(what + " has " + std::to_string(found.size()) + " axes; there are at most "
            + std::to_string(TRTC_MOST_AXES));
    }
    return found;
}

std::vector<TensorInfo> tensorsOf(Json const& graph, char const* side, std::string const& owner)
{
    std::vector<TensorInfo> found;
    std::set<std::string> names;
    for (Json const& each : itemsOf(graph, side))
    {
        TensorInfo made;
        made.name = textOf(each, "name");
        made.dtype = textOf(each, "dtype");
        std::string const what = "'" + shown(owner + "." + made.name) + "'";
        checkName(made.name, "a tensor of the graph '" + shown(owner) + "'");
        if (!isWord("DTYPES", made.dtype))
        {
            refuse(what + " is of the dtype '" + shown(made.dtype, 60) + "', which is not known");
        }
        made.shape = dimsOf(each, what);
        if (!names.insert(made.name).second)
        {
            refuse("graph '" + shown(owner) + "' has two tensors named '" + shown(made.name) + "'");
        }
        found.push_back(std::move(made));
    }
    return found;
}

Graph graphFrom(Json const& from)
{
    Graph made;
    made.name = textOf(from, "name");
    made.file = textOf(from, "file");
    made.role = textOf(from, "role", "model");
    checkName(made.name, "a graph");
    if (made.name.find_first_of("./\\") != std::string::npos)
    {
        refuse("'" + shown(made.name, 60) + "' cannot be the name of a graph, as files are named after it");
    }
    if (!isWord("ROLES", made.role))
    {
        refuse("graph '" + shown(made.name, 60) + "' has the role '" + shown(made.role, 60)
            + "', which this library does not know");
    }
    made.inputs = tensorsOf(from, "inputs", made.name);
    made.outputs = tensorsOf(from, "outputs", made.name);
    return made;
}

State stateFrom(Json const& from)
{
    State made;
    made.graph = textOf(from, "graph");
    made.input = optionalText(from, "input");
    made.output = optionalText(from, "output");
    made.name = optionalText(from, "name");
    made.dtype = textOf(from, "dtype", "float32");
    made.kind = textOf(from, "kind", "history");
    made.capacity = optionalInteger(from, "capacity");
    made.layer = optionalInteger(from, "layer");
    std::string const what = "state '" + shown(made.key()) + "'";
    made.shape = dimsOf(from, what);
    if (Json const* const initial = from.find("initial"))
    {
        made.initial = *initial;
    }
    else
    {
        made.initial.kind = Json::Kind::kSTRING;
        made.initial.text = "zeros";
    }
    if (!isWord("DTYPES", made.dtype) || !isWord("STATE_KINDS", made.kind))
    {
        refuse(what + " is of the dtype '" + shown(made.dtype, 60) + "' and the kind '" + shown(made.kind, 60)
            + "', of which one is not known");
    }
    if (made.capacity && (*made.capacity < 0 || *made.capacity > kMOST_ELEMENTS))
    {
        refuse(what + " has the capacity " + std::to_string(*made.capacity));
    }
    if ((!made.input || !made.output) && !made.name)
    {
        refuse(what + " is read or written by the graph '" + shown(made.graph, 60)
            + "' alone, and has no name for the others");
    }
    for (char const* part : {"shape", "dtype", "initial", "capacity", "kind", "layer", "compare", "bits"})
    {
        Json const* const found = from.find(part);
        made.shared += '\n';
        if (found != nullptr && !found->is(Json::Kind::kNULL))
        {
            writeCanonical(*found, made.shared);
        }
        else if (std::strcmp(part, "dtype") == 0 || std::strcmp(part, "kind") == 0)
        {
            writeCanonical(std::strcmp(part, "dtype") == 0 ? made.dtype : made.kind, made.shared);
        }
        else if (std::strcmp(part, "initial") == 0)
        {
            made.shared += "\"zeros\"";
        }
    }
    return made;
}

Range rangeFrom(Json const& from)
{
    return {from.find("min")->integer, from.find("opt")->integer, from.find("max")->integer};
}

Capacity capacityFrom(Json const& from)
{
    Capacity made;
    made.symbol = textOf(from, "symbol");
    made.used = optionalText(from, "used");
    made.multiple = optionalInteger(from, "multiple").value_or(1);
    for (auto const& [graph, count] : membersOf(from, "adds"))
    {
        bool const isNumber = count.is(Json::Kind::kINT);
        if (isNumber ? count.integer < 0 || count.integer > kMOST_ELEMENTS : count.text != "tokens")
        {
            refuse("the capacity '" + shown(made.symbol, 60) + "' has '" + shown(count.text, 60) + "' slots added by '"
                + shown(graph, 60) + "'; it is a number, or \"tokens\"");
        }
        made.adds[graph] = isNumber ? std::optional(count.integer) : std::nullopt;
    }
    return made;
}

Pass passFrom(Json const& from)
{
    Pass made;
    made.graphs = textsOf(from, "graphs");
    made.tokens = dimOf(*from.find("tokens"));
    made.logits = textOf(from, "logits");
    made.rows = textOf(from, "rows", "last");
    Json const* const whole = from.find("whole");
    made.whole = whole != nullptr && whole->truth;
    return made;
}

Procedure procedureFrom(Json const& from)
{
    Procedure made;
    made.prompt = passFrom(*from.find("prompt"));
    made.step = passFrom(*from.find("step"));
    for (auto const& [name, what] : membersOf(from, "feeds"))
    {
        made.feeds[name] = what.text;
    }
    made.position = textOf(from, "position", "seen");
    for (Json const& each : itemsOf(from, "upkeep"))
    {
        made.upkeep.push_back({textOf(each, "graph"), textOf(each, "after"), optionalText(each, "capacity"),
            optionalInteger(each, "at_least")});
    }
    for (Json const& each : itemsOf(from, "media"))
    {
        made.media.push_back({textsOf(each, "graphs"), optionalInteger(each, "token"), optionalInteger(each, "rows")});
    }
    Json const* const score = from.find("score");
    if (score != nullptr && score->is(Json::Kind::kOBJECT))
    {
        made.score = passFrom(*score);
    }
    return made;
}

void checkVersion(Json const& data, std::string const& where)
{
    Json const* const version = data.find("schema_version");
    std::string const text = version != nullptr && version->is(Json::Kind::kSTRING) ? version->text : "";
    auto const dot = text.find('.');
    auto isNumber = [](std::string const& part)
    { return !part.empty() && part.size() <= 6 && part.find_first_not_of("0123456789") == std::string::npos; };
    if (dot == std::string::npos || !isNumber(text.substr(0, dot)) || !isNumber(text.substr(dot + 1)))
    {
        throw bundleError(where + " has no 'schema_version' such as \"1.0\", so it is not a bundle's.");
    }
    int const major = std::stoi(text.substr(0, dot));
    if (major > 1)
    {
        throw bundleError(where + " has schema version " + text
            + ", and this library reads up to 1.x; install a newer one or export the bundle again with this version.");
    }
    if (major < 1)
    {
        throw bundleError(
            where + " has schema version " + text + ", which was never published; export the bundle again.");
    }
}

//! Files that the parts of a manifest name, and the hashes that they give for some.
void collectFiles(Json const& data, Manifest& made)
{
    std::set<std::string> ownForm;
    for (char const* part : {"lowered", "engines"})
    {
        for (Json const& each : itemsOf(data, part))
        {
            ownForm.insert(textOf(each, "graph", "model"));
            made.recorded.emplace_back(textOf(each, "file"), textOf(each, "sha256"));
            made.needed.push_back(textOf(each, "file"));
        }
    }
    for (Json const& each : itemsOf(data, "graphs"))
    {
        std::string const file = textOf(each, "file");
        if (made.files.count(file) != 0
            || ownForm.count(textOf(each, "name")) == 0) // else pruned to what a target needs
        {
            made.needed.push_back(file);
            for (std::string const& name : textsOf(each, "external_data"))
            {
                made.needed.push_back(name);
            }
        }
    }
    for (State const& state : made.states)
    {
        if (Json const* const file = state.initial.find("file"))
        {
            made.needed.push_back(file->text);
        }
    }
    for (Json const& each : itemsOf(data, "weights"))
    {
        if (optionalInteger(each, "group"))
        {
            made.quantizedGraphs.insert(textOf(each, "graph"));
        }
    }
}

} // namespace

int64_t Capacity::needed(std::vector<std::string> const& names, int64_t held, int64_t tokens) const
{
    int64_t total = held;
    for (std::string const& graph : names)
    {
        auto const found = adds.find(graph);
        total += found == adds.end() ? 0 : found->second.value_or(tokens);
    }
    return total;
}

Graph const* Manifest::graph(std::string const& wanted) const
{
    auto const found =
        std::find_if(graphs.begin(), graphs.end(), [&](Graph const& each) { return each.name == wanted; });
    return found == graphs.end() ? nullptr : &*found;
}

State const* Manifest::state(std::string const& key) const
{
    auto const found = std::find_if(states.begin(), states.end(), [&](State const& each) { return each.key() == key; });
    return found == states.end() ? nullptr : &*found;
}

Capacity const* Manifest::capacity(std::string const& symbol) const
{
    auto const found =
        std::find_if(capacities.begin(), capacities.end(), [&](Capacity const& each) { return each.symbol == symbol; });
    return found == capacities.end() ? nullptr : &*found;
}

std::string pathProblem(std::string const& path)
{
    if (path.empty() || path[0] == '/' || path.find_first_of(std::string("\\:\0", 3)) != std::string::npos)
    {
        return "is not a relative path with '/' between its parts";
    }
    size_t begin = 0;
    while (begin <= path.size())
    {
        auto const end = std::min(path.find('/', begin), path.size());
        std::string const part = path.substr(begin, end - begin);
        if (part == "..")
        {
            return "leads out of the bundle";
        }
        if (part.empty() || part == ".")
        {
            return "cannot be the name of a file in a bundle";
        }
        begin = end + 1;
    }
    return path == "manifest.json" || path.size() > kLONGEST_PATH ? "cannot be the name of a file in a bundle" : "";
}

Manifest readManifest(char const* bytes, size_t count, std::string const& where, bool checkDigest)
{
    Json data;
    try
    {
        data = parseJson(bytes, count);
    }
    catch (std::invalid_argument const& error)
    {
        throw bundleError(where + " is not valid JSON (" + error.what() + "); copy or export the bundle again.");
    }
    checkVersion(data, where);
    checkManifestFields(data, where);
    Manifest made;
    made.name = textOf(data, "name");
    made.digest = textOf(data, "digest");
    for (Json const& each : itemsOf(data, "graphs"))
    {
        made.graphs.push_back(graphFrom(each));
    }
    for (Json const& each : itemsOf(data, "links"))
    {
        made.links.push_back({textOf(each, "from"), textOf(each, "to")});
    }
    for (Json const& each : itemsOf(data, "states"))
    {
        made.states.push_back(stateFrom(each));
    }
    for (auto const& [symbol, range] : membersOf(data, "lengths"))
    {
        made.lengths[symbol] = rangeFrom(range);
    }
    for (Json const& each : itemsOf(data, "capacities"))
    {
        made.capacities.push_back(capacityFrom(each));
    }
    Json const* const procedure = data.find("procedure");
    if (procedure != nullptr && procedure->is(Json::Kind::kOBJECT))
    {
        made.procedure = procedureFrom(*procedure);
    }
    Json const* const text = data.find("text");
    if (text != nullptr && text->is(Json::Kind::kOBJECT))
    {
        TextInfo& into = made.text.emplace();
        into.tokenizer = textOf(*text, "tokenizer");
        into.context = optionalInteger(*text, "context");
        for (Json const& token : itemsOf(*text, "stop"))
        {
            into.stop.push_back(token.integer);
        }
        if (Json const* const generation = text->find("generation"))
        {
            into.generation = *generation;
        }
    }
    if (Json const* const preprocess = data.find("preprocess"))
    {
        made.preprocess = *preprocess;
    }
    if (Json const* const postprocess = data.find("postprocess"))
    {
        made.postprocess = *postprocess;
    }
    made.hasOperators = !itemsOf(data, "operators").empty();
    for (auto const& [name, info] : membersOf(data, "files"))
    {
        made.files[name] = {textOf(info, "sha256"), info.find("bytes")->integer};
        std::string const problem = pathProblem(name);
        if (!problem.empty())
        {
            refuse("file path '" + shown(name) + "' " + problem);
        }
        if (made.files[name].bytes < 0)
        {
            refuse("file '" + shown(name) + "' has " + std::to_string(made.files[name].bytes) + " bytes");
        }
    }
    collectFiles(data, made);
    for (std::string const& file : made.needed)
    {
        if (made.files.count(file) == 0)
        {
            refuse("a part needs the file '" + shown(file) + "', which is not listed in 'files'");
        }
    }
    std::string const problem = wiringProblem(made);
    if (!problem.empty())
    {
        refuse(problem);
    }
    for (auto const& [file, said] : made.recorded)
    {
        if (made.files[file].sha256 != said)
        {
            refuse("two different things are said of '" + shown(file) + "'; export the bundle again");
        }
    }
    if (checkDigest && digestOf(data) != made.digest)
    {
        throw bundleError("'" + where
            + "' was changed after it was written; copy the bundle again from where it was "
              "made, or export it again.");
    }
    return made;
}

trtc_dtype dtypeOf(std::string const& name)
{
    static std::map<std::string, trtc_dtype> const kTYPES = {{"bool", TRTC_BOOL}, {"int8", TRTC_INT8},
        {"uint8", TRTC_UINT8}, {"int16", TRTC_INT16}, {"uint16", TRTC_UINT16}, {"int32", TRTC_INT32},
        {"uint32", TRTC_UINT32}, {"int64", TRTC_INT64}, {"uint64", TRTC_UINT64}, {"float16", TRTC_FLOAT16},
        {"bfloat16", TRTC_BFLOAT16}, {"float32", TRTC_FLOAT32}, {"float64", TRTC_FLOAT64},
        {"float8_e4m3fn", TRTC_FLOAT8_E4M3FN}, {"float8_e4m3fnuz", TRTC_FLOAT8_E4M3FNUZ},
        {"float8_e5m2", TRTC_FLOAT8_E5M2}, {"float8_e5m2fnuz", TRTC_FLOAT8_E5M2FNUZ}};
    auto const found = kTYPES.find(name);
    return found == kTYPES.end() ? TRTC_DTYPE_NONE : found->second;
}

} // namespace trtc::runtime
